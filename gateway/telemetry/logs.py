"""Structured logs: one JSON object a line on standard error, written without holding up the event loop."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import orjson
import structlog
from aiohttp.http_exceptions import HttpProcessingError

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str = "info", style: str = "json", stream: TextIO | None = None) -> None:
    """Set up logging for the process.

    Args:
        level: the least severe level that is written: debug, info, warning or error.
        style: ``json`` (a line an event) or ``console`` (for people).
        stream: the stream to write to; standard error if not given.
    """
    lines = cast(TextIO, _Lossy(stream or sys.stderr))
    shared: list[Any] = [structlog.processors.add_log_level]
    if style == "json":
        processors = [
            *shared,
            _TimeStamper(),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_encode),
        ]
    else:
        processors = [
            *shared,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            # Not structlog's default if rich is installed, because that one shows local variables, and so keys.
            structlog.dev.ConsoleRenderer(colors=lines.isatty(), exception_formatter=structlog.dev.plain_traceback),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=lines),
        cache_logger_on_first_use=True,
    )
    # Libraries (aiohttp, asyncio) use the standard logging: write their warnings and errors to the same stream.
    logging.basicConfig(stream=lines, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_without_request)


class _TimeStamper:
    """A processor that adds `ts`, in UTC. The text of a second serves all lines of that second."""

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Add the time to a line."""
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        event["ts"] = f"{self._text}.{nanoseconds // 1000:06d}Z"
        return event


def _without_request(record: logging.LogRecord) -> bool:
    """Redact aiohttp's message about a request that it can't parse, because it quotes lines with keys. Return True."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, HttpProcessingError):
        record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}", ()
        record.exc_info = record.exc_text = None
    return True


class _Lossy(io.TextIOBase):
    """A stream that ignores OSError: if the disk is full, the line is lost, and the work that logged it goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text; if that fails, drop it. Return the length that counts as written."""
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Flush the stream, and ignore a failure."""
        try:
            self._stream.flush()
        except OSError:
            pass

    def isatty(self) -> bool:
        """Return True if the stream is a terminal."""
        return self._stream.isatty()


def get(name: str) -> Any:
    """Return a logger whose lines carry ``part: name``."""
    return structlog.get_logger(part=name)


def get_always(name: str) -> Any:
    """Return a logger like that of `get`, but with lines that are written at any configured level."""
    return structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG), part=name)


def _encode(value: Any, **_: Any) -> str:
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:
        # If a text of a client or node holds half a surrogate pair, use json, because orjson does not take it.
        return json.dumps(value, default=str)
