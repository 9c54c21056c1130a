"""JSON as ComfyUI reads and writes it, fast where that is safe.

ComfyUI parses with Python's json (server.py, ``request.json()``): NaN, Infinity, lone surrogates and integers of any
size are accepted, and workflows saved by older frontends hold ``NaN``. orjson refuses the first three and silently
turns an integer beyond 64 bits into a float, so a document with any of these goes through the standard library.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson

# Digits to "0", opening brackets to "[", all else to " ": a run of 19 digits is then found by a plain search, ten times
# faster than by a regex, and both kinds of brackets are counted at once.
_MARKS = bytes(48 if 48 <= byte <= 57 else 91 if byte in b"[{" else 32 for byte in range(256))
# The same without the brackets, where the ends of such runs are looked at.
_DIGITS_ONLY = bytes(48 if 48 <= byte <= 57 else 32 for byte in range(256))
_MAYBE_BEYOND_64_BITS = b"0" * 19
_BEFORE_INTEGER = frozenset({b"", b"[", b":", b",", b" ", b"\t", b"\n", b"\r"})
_BEHIND_INTEGER = frozenset({b"", b"]", b"}", b",", b" ", b"\t", b"\n", b"\r"})


# A value takes up to 230 bytes in memory, whatever it took to send it; all that a million can take is bearable.
MAX_VALUES = 1_000_000
# If orjson can't write a value, json does, in ASCII: up to three times as long, and ten times as slowly. Web UIs that
# write NaN send no pictures.
_MAX_ODD = 1024 * 1024
_ODD = "NaN, Infinity, half a surrogate pair or an integer beyond 64 bits"
# json escapes DEL as well.
_BEYOND_ASCII = bytes(range(127, 256))


class MalformedJson(ValueError):
    """Bytes that are not JSON, even by Python's generous reading."""


class TooMuchJson(MalformedJson):
    """Bytes that may be JSON, but have more values, or deeper nesting, than the gateway reads."""


def read_bounded(data: bytes, max_depth: int, max_values: int = MAX_VALUES) -> tuple[Any, Callable[[Any], bytes]]:
    """Parse JSON from strangers. Return the value, and an encoder that writes all of it again.

    The size of `data` and `max_values` bound time and memory. Values are counted by their separators before any is
    made, and a separator inside a text counts, too. `max_depth` is the maximum nesting of arrays and objects.

    Raises:
        TooMuchJson: it has too many values, or lies too deep.
        MalformedJson: it is not JSON.
    """
    marks = data.translate(_MARKS)
    opened = marks.count(b"[")
    # Each value takes a byte at least, so a short document need not be counted.
    if len(data) > max_values and opened + data.count(b",") > max_values:
        raise TooMuchJson(f"it has more than {max_values} values")
    value, is_plain = _parse(data, marks)
    if not is_plain and len(data) > _MAX_ODD:
        value, is_plain = _plain_if_equal(data, value)
    if not is_plain and len(data) > _MAX_ODD:
        raise TooMuchJson(f"it holds {_ODD}, and such a document may have {_MAX_ODD} bytes")
    if opened > max_depth and _is_deeper(value, max_depth, is_plain):
        raise TooMuchJson(f"it is nested more than {max_depth} deep")
    return value, dumps if is_plain else dumps_exact


def _plain_if_equal(data: bytes, value: Any) -> tuple[Any, bool]:
    """Return orjson's value of a document if it is the same, and True; else the value as it is, and False.

    Many digits in a row may be those of a text.
    """
    try:
        plain = orjson.loads(data)
    except orjson.JSONDecodeError:
        return value, False
    return (plain, True) if json.dumps(plain) == json.dumps(value) else (value, False)


def escaped_size(data: bytes) -> int:
    """Return about how long a document in UTF-8 is as ComfyUI writes it: each character beyond ASCII takes 6 or 12.

    Raises:
        MalformedJson: it is not in UTF-8.
    """
    if data.isascii() and b"\x7f" not in data:
        return len(data)
    try:
        units = len(data.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")) // 2
    except UnicodeDecodeError as error:
        raise MalformedJson(str(error)) from error
    plain = len(data.translate(None, _BEYOND_ASCII))
    return plain + 6 * (units - plain)


def count_values(data: bytes) -> int:
    """Return a bound of the values in a JSON document, without parsing it: its commas and opening brackets."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _measure_encoder_depth() -> int:
    """Return how deep arrays may lie in one another for orjson to write them."""
    value: list[Any] = []
    for depth in range(1, 100_000):
        try:
            orjson.dumps(value)
        except TypeError:
            return depth - 1
        value = [value]
    return 0


_ENCODER_DEPTH = _measure_encoder_depth()


def _is_deeper(value: Any, maximum: int, is_plain: bool) -> bool:
    """Return True if arrays and objects lie more than `maximum` deep. `is_plain`: orjson can write the value.

    orjson writes a value faster than a loop of Python's looks through it, and refuses one that is too deep.
    """
    if is_plain and maximum <= _ENCODER_DEPTH:
        wrapped = value
        for _ in range(_ENCODER_DEPTH - maximum):
            wrapped = [wrapped]
        try:
            orjson.dumps(wrapped)
        except TypeError:
            pass
        else:
            return False
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(maximum):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for children in inner for child in children if isinstance(child, (dict, list))]
        if not level:
            return False
    return bool(level)


def loads(data: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        MalformedJson: it is not JSON, or nested too deep to read.
    """
    return _parse(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)[0]


def loads_told(data: bytes) -> tuple[Any, bool]:
    """Parse JSON; the second value is True if orjson says all of it again, so that `loads_plain` may read that.

    Raises:
        MalformedJson: it is not JSON, or nested too deep to read.
    """
    return _parse(data)


def loads_plain(data: bytes) -> Any:
    """Parse a plain document that `dumps` wrote: without checks, which halves the time of a long text.

    Raises:
        MalformedJson: it is not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise MalformedJson(str(error)) from error


def loads_exactly(raw: bytes) -> Any | None:
    """Parse JSON with orjson; None if orjson can't read it, or may change an integer."""
    if _has_integer_beyond_64_bits(raw):
        return None
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def _has_integer_beyond_64_bits(raw: bytes) -> bool:
    """Return True for a document with such an integer, and for one with a text that looks as if it held one."""
    shown = raw.translate(_DIGITS_ONLY)
    at = shown.find(_MAYBE_BEYOND_64_BITS)
    while at >= 0:
        end = shown.find(b" ", at)
        end = len(raw) if end < 0 else end
        before, behind = raw[max(at - 1, 0) : at], raw[end : end + 1]
        is_negative = before == b"-"
        # If a point, an exponent or a letter touches the digits, they are a float's, or a text's.
        if (before in _BEFORE_INTEGER or is_negative) and behind in _BEHIND_INTEGER:
            maximum = 2**63 if is_negative else 2**64 - 1
            if end - at > 20 or int(raw[at:end]) > maximum:
                return True
        at = shown.find(_MAYBE_BEYOND_64_BITS, end)
    return False


def _parse(raw: bytes, marks: bytes | None = None) -> tuple[Any, bool]:
    """Return the value, and True if orjson could read it, because then it can write it, too.

    Orjson refuses 1e999, for example, which is inf. `marks` is the document translated by `_MARKS`, if known already.
    """
    if _MAYBE_BEYOND_64_BITS not in (raw.translate(_MARKS) if marks is None else marks):
        try:
            return orjson.loads(raw), True
        except orjson.JSONDecodeError:
            pass
    try:
        return json.loads(raw), False
    except ValueError as error:
        raise MalformedJson(str(error)) from error
    except RecursionError as error:
        raise TooMuchJson("it is nested too deep") from error


def dumps(value: Any) -> bytes:
    """Encode a value that came from `loads`, or plain data of ours. NaN must go through `dumps_exact`."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def packed(data: bytes) -> bytes:
    """Return a copy without the spare room of some 8 KB that orjson's results keep of its buffer."""
    return bytes(memoryview(data))


def dumps_exact(value: Any) -> bytes:
    """Encode as ComfyUI's own json.dumps does: NaN stays NaN (orjson would write null)."""
    return json.dumps(value).encode()


def encoder_for(raw: bytes) -> Callable[[Any], bytes]:
    """Return the encoder that writes all of `raw` again: `dumps_exact` if `raw` holds a NaN or an Infinity."""
    return dumps_exact if b"NaN" in raw or b"Infinity" in raw else dumps


def dumps_sorted(value: Any) -> bytes:
    """Return an encoding that does not depend on the order of keys."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(value, sort_keys=True).encode()
