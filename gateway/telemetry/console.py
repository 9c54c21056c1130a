"""Log lines for people: one line an event, coloured on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from typing import Any

_RESET = "\x1b[0m"
_DIM, _RED, _GREEN, _YELLOW, _BLUE, _BOLD = ("\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[34m", "\x1b[1m")
_LEVELS = {"debug": _DIM, "info": "", "warning": _YELLOW, "error": _RED}
_STATUSES = {"queued": _DIM, "running": _BLUE, "done": _GREEN, "failed": _RED}
_NAME_WIDTH = 22
# Fields of a job's line that its sentence tells, or that people have no use for.
_TOLD = frozenset({"prompt_id", "status", "duration_ms", "wait_ms", "backend", "upstream_id", "request_id", "outcome"})


def shows_colors(is_terminal: bool, environment: Mapping[str, str]) -> bool:
    """Return True if lines are coloured: on a terminal that can, unless NO_COLOR is set (no-color.org)."""
    return is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


class ConsoleRenderer:
    """Renderer of log lines for people. All texts of others are escaped, because a terminal obeys control characters.

    Args:
        has_colors: True if the lines go to a terminal that shows colours.
    """

    def __init__(self, *, has_colors: bool) -> None:
        self._has_colors = has_colors

    def __call__(self, _logger: Any, _method: str, line: MutableMapping[str, Any]) -> str:
        """Return the text of a line."""
        fields = dict(line)
        event, level = str(fields.pop("event")), str(fields.pop("level", "info"))
        fields.pop("part", None)
        traceback = fields.pop("exception", None)
        now = self._painted(time.strftime("%Y-%m-%d %H:%M:%S"), _DIM)
        if event == "job":
            told, fields = job_sentence(fields), {name: fields[name] for name in fields if name not in _TOLD}
            if fields.get("attempt") == 1:
                del fields["attempt"]
            status = str(line["status"])
            shown = self._painted(f"job {status:<{_NAME_WIDTH - 4}}", _STATUSES.get(status, "")) + f" {told}"
        else:
            shown = self._painted(f"{shown_value(event):<{_NAME_WIDTH}}", _LEVELS.get(level, "") or _BOLD)
        rest = " ".join(
            f"{self._painted(f'{name}=', _DIM)}{shown_value(value)}"
            for name, value in fields.items()
            if value is not None
        )
        text = f"{now} {self._painted(f'{level:<7}', _LEVELS.get(level, ''))} {shown} {rest}".rstrip()
        return f"{text}\n{_indented(str(traceback))}" if traceback else text

    def _painted(self, text: str, color: str) -> str:
        return f"{color}{text}{_RESET}" if self._has_colors and color else text


def job_sentence(fields: MutableMapping[str, Any]) -> str:
    """Return where a job is and what its times were, as in ``8fe1… on gpu0, ran 8.1 s, waited 0.3 s``."""
    words = [shown_value(fields["prompt_id"])]
    if fields.get("backend") is not None:
        words.append(f"on {shown_value(fields['backend'])}")
    status, times = fields["status"], []
    if status in ("done", "failed"):
        times.append(f"{'took' if fields.get('wait_ms') is None else 'ran'} {_seconds(fields['duration_ms'])}")
    if fields.get("wait_ms") is not None:
        times.append(f"waited {_seconds(fields['wait_ms'])}")
    return " ".join(words) + "".join(f", {each}" for each in times)


def shown_value(value: Any) -> str:
    """Return a value as one word: quoted if it holds spaces or quotes, without control characters."""
    text = value if isinstance(value, str) else repr(value)
    is_plain = text and text.isprintable() and not any(each in text for each in " \"'=")
    return text if is_plain or (not isinstance(value, str) and text.isprintable()) else repr(text)


def _indented(text: str) -> str:
    """Return a traceback without control characters. Indent it, because an error's text may look like a log line."""
    shown = "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)
    return "\n".join(f"    {line}" for line in shown.split("\n"))


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.1f} s"
