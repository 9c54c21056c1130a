"""Redact what errors tell about the host: absolute paths become ``…/`` and the last name. Pure.

ComfyUI puts the text of a Python exception, its traceback and the inputs of the node into ``execution_error``
(execution.py, handle_execution_error), and all of that into the history entry. Absolute paths in there name the
folders of the host, and of other tenants.
"""

from __future__ import annotations

import re
from typing import Any

_MAX_DEPTH = 64
# What is left of one path may be the end of another one, in a text that is no sentence.
_MAX_PASSES = 8
_ELLIPSIS = "…"

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
    return _redacted(value, _MAX_DEPTH)


def _redacted(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, (dict, list, tuple)) and depth == 0:
        return _ELLIPSIS
    if isinstance(value, dict):
        return {name: _redacted(item, depth - 1) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(item, depth - 1) for item in value]
    return value


# What the data of an execution_error tells in words. The rest are ids and names of classes.
_TOLD = ("exception_message", "traceback", "current_inputs", "current_outputs", "details", "extra_info")
_TOLD_NAMES = frozenset(_TOLD)


def redact_error(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of an ``execution_error`` without absolute paths."""
    return {name: redact_value(value) if name in _TOLD else value for name, value in data.items()}


def redact_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a history entry whose ``execution_error`` tells no absolute path.

    What /api/jobs says about the error is made from the entry, and tells none either.
    """
    status = entry.get("status")
    messages = status.get("messages") if isinstance(status, dict) else None
    if not isinstance(status, dict) or not isinstance(messages, list):
        return entry
    return {**entry, "status": {**status, "messages": [_redacted_message(message) for message in messages]}}


def _redacted_message(message: Any) -> Any:
    if not isinstance(message, (list, tuple)) or len(message) != 2 or not isinstance(message[1], dict):
        return message
    return message if _TOLD_NAMES.isdisjoint(message[1]) else [message[0], redact_error(message[1])]
