"""Structured logs: one JSON object a line, or lines for people, on standard error, standard output or in a file."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import orjson
import structlog
from aiohttp.http_exceptions import HttpProcessingError

from gateway.telemetry.console import ConsoleRenderer, shows_colors
from gateway.telemetry.log_output import STDERR, STDOUT, LogOutput, open_file

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_DESCRIPTORS = {STDOUT: 1, STDERR: 2}
# Fields that the line of a job's phase begins with, as in ComfyUI's production guide.
_FIRST_OF_JOB = ("prompt_id", "status", "duration_ms", "model", "error")
_FINISH_SECONDS = 1.0

# The output that `configure` chose last; None before.
output: LogOutput | None = None


def configure(level: str = "info", style: str = "json", to: str = STDERR) -> None:
    """Set up logging for the process.

    Args:
        level: the least severe level that is written: debug, info, warning or error.
        style: ``json`` (a line an event) or ``console`` (for people).
        to: ``stderr``, ``stdout`` or the path of a file.

    Raises:
        OSError: the file can't be opened.
    """
    global output
    path = None if to in _DESCRIPTORS else Path(to)
    output = LogOutput(_DESCRIPTORS[to] if path is None else open_file(path), path)
    renderer: list[Any]
    if style == "json":
        renderer = [_render_json]
    else:
        renderer = [ConsoleRenderer(has_colors=shows_colors(output.isatty(), os.environ)), _encode_text]
    structlog.configure(
        # Not structlog's own tracebacks if rich is installed, because those show local variables, and so keys.
        processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_Lines(output),
        cache_logger_on_first_use=True,
    )
    # Libraries (aiohttp, asyncio) use the standard logging: write their warnings and errors as lines of this log.
    handler = _LibraryMessages()
    handler.addFilter(_without_request)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def finish() -> None:
    """Write lines that wait for a slow reader, for a second at most, because the process ends."""
    if output is not None:
        output.finish(_FINISH_SECONDS)


class _Lines:
    """A logger that writes rendered lines, and the factory that returns it."""

    def __init__(self, to: LogOutput) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.exception = self.critical = to.write

    def __call__(self, *_: Any) -> _Lines:
        return self


def _render_json(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> bytes:
    """Return a line of JSON: its time, a job's first fields, what it is, the rest."""
    arranged: dict[str, Any] = {"ts": round(time.time(), 6)}
    event = line.pop("event")
    if event == "job":
        for name in _FIRST_OF_JOB:
            arranged[name] = line.pop(name)
    arranged["event"], arranged["level"] = event, line.pop("level")
    arranged["part"] = line.pop("part", None)
    arranged.update(line)
    try:
        return orjson.dumps(arranged, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # If a text of a client or node holds half a surrogate pair, use json, because orjson does not take it.
        # In the same form, because searches for `"event":"job"` must find the line.
        return json.dumps(arranged, default=str, separators=(",", ":")).encode() + b"\n"


def _encode_text(_logger: Any, _method: str, text: str) -> bytes:
    return text.encode(errors="backslashreplace") + b"\n"


class _LibraryMessages(logging.Handler):
    """A handler that writes what libraries log as lines of this log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            # If a library's arguments do not fit its text, log the text alone.
            message = str(record.msg)
        (_log.warning if record.levelno < logging.ERROR else _log.error)(
            "library_message", library=record.name, message=message, exc_info=record.exc_info
        )


def _without_request(record: logging.LogRecord) -> bool:
    """Redact aiohttp's message about a request that it can't parse, because it quotes lines with keys. Return True."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, HttpProcessingError):
        record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}", ()
        record.exc_info = record.exc_text = None
    return True


def get(name: str) -> Any:
    """Return a logger whose lines carry ``part: name``."""
    return structlog.get_logger(part=name)


def get_always(name: str) -> Any:
    """Return a logger like that of `get`, but with lines that are written at any configured level."""
    return structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG), part=name)


_log = get("libraries")
