"""Run of a prompt, as the messages of its history entry tell it: its seconds, and the results that were held. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.comfy.events import timestamp_of
from gateway.comfy.history import messages_of

# A backend's time may be longer than the time that its events tell: by this factor, and by so many seconds more. While
# it loads a model, its events come late.
MAX_FACTOR, MAX_LATE_SECONDS = 1.5, 30.0


@dataclass(frozen=True, slots=True)
class Run:
    """A run that succeeded: its seconds by the backend's clock, and the nodes whose results were held.

    Both are None if the entry does not tell.
    """

    seconds: float | None = None
    cached: frozenset[str] | None = None


def run_of(status: Any) -> Run:
    """Return the run that the status of an entry tells of."""
    start, end, cached = None, None, None
    for name, data in messages_of(status):
        if name == "execution_start":
            start = timestamp_of(data)
        elif name == "execution_cached":
            nodes = data.get("nodes")
            cached = frozenset(each for each in nodes if isinstance(each, str)) if isinstance(nodes, list) else None
        elif name == "execution_success":
            end = timestamp_of(data)
    return Run((end - start) / 1000 if start is not None and end is not None else None, cached)


def run_seconds(told: float | None, measured: float | None) -> float | None:
    """Return the seconds of a run: those that the backend told, unless they can't be.

    Args:
        told: by the backend's clock.
        measured: by the gateway's clock, between the backend's events.
    """
    if told is None or told <= 0 or (measured is not None and told > MAX_FACTOR * measured + MAX_LATE_SECONDS):
        return measured
    return told
