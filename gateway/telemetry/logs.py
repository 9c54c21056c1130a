"""Structured logs: one JSON object a line on standard error, written without holding up the event loop."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, TextIO

import orjson
import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str = "info", style: str = "json", stream: TextIO | None = None) -> None:
    """Set up logging for the process.

    Args:
        level: the least severe level that is written: debug, info, warning or error.
        style: ``json`` (a line an event) or ``console`` (for people).
        stream: where to; standard error if not given.
    """
    stream = stream or sys.stderr
    shared: list[Any] = [structlog.processors.add_log_level]
    if style == "json":
        processors = [
            *shared,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_encode),
        ]
    else:
        processors = [
            *shared,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=stream.isatty()),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    # Libraries below (aiohttp, asyncio) speak through the standard logging; the same stream, warnings and worse.
    logging.basicConfig(stream=stream, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True)


def get(name: str) -> Any:
    """A logger whose lines carry ``part: name``."""
    return structlog.get_logger(part=name)


def _encode(value: Any, **_: Any) -> str:
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:
        # What clients and nodes say may hold half a surrogate pair, which orjson does not take.
        return json.dumps(value, default=str)
