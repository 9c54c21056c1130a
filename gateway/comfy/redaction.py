"""Redact facts about the host in errors: absolute paths become ``…/`` and the last name. Pure.

ComfyUI puts the text of a Python exception, its traceback and the inputs of the node into ``execution_error``
(execution.py, handle_execution_error), and all of that into the history entry. Absolute paths in there name the
folders of the host, and of other tenants.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

from gateway.comfy.file_refs import finished

_MAX_DEPTH = 64
# What is left of one path may be the end of another one, in a text that is no sentence.
_MAX_PASSES = 8
_ELLIPSIS = "…"
# Of longer texts so much is told: in 16 KB of slashes it takes 8 ms to look for paths.
_LONG_TEXT, _SHORT_TEXT = 16 * 1024, 4 * 1024

# A character of a name. Quotes, blanks, angle brackets and bars end an unquoted path.
_NAME = r"""[^\s/\\'"`<>|]"""
# Behind these a slash continues something: a relative path, a fraction, a closed bracket, a path that was redacted.
_FREE = r"(?<![\w./\\~)\]}%…-])"
_PATH = re.compile(
    "|".join(
        (
            # Left as it is: a URL of any scheme but file, because its path is that of another host.
            rf"(?P<url>(?<!\w)(?!file:)[a-z][a-z0-9+.-]{{0,20}}://{_NAME}+[^\s'\"`<>]*)",
            # In quotes a path may have blanks, but not in its first name: '/imagine a cat, 1/2' is a text.
            rf"(?<=['\"`])(?:file:)?/+{_NAME}+/[^'\"`\n]*(?=['\"`])",
            r"(?<=['\"`])[a-z]:[/\\]+[^'\"`\n]*(?=['\"`])",
            # file:///a/b, C:\a b\c or C:/a/b, \\server\share\a (also with its backslashes doubled by repr).
            r"(?<!\w)(?<!…/)file:[/\\]+[^\s'\"`<>]*",
            rf"(?<!\w)(?<!…/)[a-z]:[/\\]+(?:{_NAME}+(?: {_NAME}+){{0,5}}[/\\]+)*{_NAME}+",
            rf"{_FREE}\\\\{_NAME}+\\(?!\\)(?:{_NAME}+(?: {_NAME}+){{0,5}}\\)*{_NAME}*",
            rf"{_FREE}\\{{4}}{_NAME}+\\\\(?:{_NAME}+(?: {_NAME}+){{0,5}}\\\\)*{_NAME}*",
            # /a/b, or one name if it has a suffix: /a.png.
            rf"{_FREE}/+(?:{_NAME}+/+)+{_NAME}*",
            rf"{_FREE}/+{_NAME}*\.[a-z0-9]{{1,8}}(?!{_NAME})",
        )
    ),
    re.IGNORECASE,
)
_SEPARATORS = re.compile(r"[/\\]+")
_ENDS = ".,:;!?)]}"


def without_paths(text: str) -> str:
    """Return a text in which only the last name of each absolute path is left (POSIX, Windows, UNC and file:).

    URLs, relative paths and fractions stay. Outside of quotes a path ends at a blank.
    """
    for _ in range(_MAX_PASSES):
        before = text
        if "/" not in text and "\\" not in text:
            break
        text = _PATH.sub(_shortened, text)
        if text == before:
            break
    return text


def _shortened(match: re.Match[str]) -> str:
    path = match[0]
    if match["url"] is not None:
        return path
    kept = path.rstrip(_ENDS)
    names = [name for name in _SEPARATORS.split(kept) if name]
    last = names[-1] if len(names) > 1 or not kept.endswith(":") else ""
    return f"{_ELLIPSIS}/{last}{path[len(kept) :]}"


def redact_value(value: Any) -> Any:
    """Return a JSON value without absolute paths in its texts. What lies too deep is left out."""
    return finished(_redacting(value, _MAX_DEPTH))


def _redacting(value: Any, depth: int) -> Generator[None, None, Any]:
    if isinstance(value, str):
        return without_paths(_shown(value))
    if not isinstance(value, (dict, list, tuple)):
        return value
    if depth == 0:
        return _ELLIPSIS
    if isinstance(value, dict):
        told = {}
        for name, item in value.items():
            told[name] = yield from _redacting(item, depth - 1)
            yield
        return told
    items = []
    for item in value:
        items.append((yield from _redacting(item, depth - 1)))
        yield
    return items


def _shown(text: str) -> str:
    """Return a text, if it is long only its beginning: a path is looked for in each place of it."""
    left = len(text) - _SHORT_TEXT
    return text if len(text) <= _LONG_TEXT else f"{text[:_SHORT_TEXT]}{_ELLIPSIS} ({left} characters more)"


# What the data of an execution_error tells in words. The rest are ids and names of classes.
_TOLD = ("exception_message", "traceback", "current_inputs", "current_outputs", "details", "extra_info")
_TOLD_NAMES = frozenset(_TOLD)


def redact_error(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of an ``execution_error`` without absolute paths."""
    return finished(redacting_error(data))


def redacting_error(data: dict[str, Any]) -> Generator[None, None, dict[str, Any]]:
    """Redact as `redact_error` does, in short steps."""
    told = {}
    for name, value in data.items():
        told[name] = (yield from _redacting(value, _MAX_DEPTH)) if name in _TOLD else value
    return told


def redact_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a history entry whose ``execution_error`` tells no absolute path.

    What /api/jobs says about the error is made from the entry, and tells none either.
    """
    return finished(redacting_entry(entry))


def redacting_entry(entry: dict[str, Any]) -> Generator[None, None, dict[str, Any]]:
    """Redact as `redact_entry` does, in short steps."""
    status = entry.get("status")
    messages = status.get("messages") if isinstance(status, dict) else None
    if not isinstance(status, dict) or not isinstance(messages, list):
        return entry
    told = []
    for message in messages:
        told.append((yield from _redacting_message(message)))
        yield
    return {**entry, "status": {**status, "messages": told}}


def _redacting_message(message: Any) -> Generator[None, None, Any]:
    if not isinstance(message, (list, tuple)) or len(message) != 2 or not isinstance(message[1], dict):
        return message
    return message if _TOLD_NAMES.isdisjoint(message[1]) else [message[0], (yield from redacting_error(message[1]))]
