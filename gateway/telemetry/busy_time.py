"""Seconds for which each backend has run something, counted live. Pure: times of one monotonic clock are passed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Busy:
    running: int = 0
    runs_foreign: bool = False
    since: float = 0.0
    seconds: float = 0.0

    @property
    def is_busy(self) -> bool:
        return self.running > 0 or self.runs_foreign


class BusyTime:
    """Busy time of backends: a backend is busy while it runs one or more of the gateway's jobs, or others' prompts."""

    def __init__(self) -> None:
        self._backends: dict[str, _Busy] = {}

    def begin(self, backend: str, now: float) -> None:
        """Note that a job runs."""
        busy = self._at(backend, now)
        busy.running += 1

    def end(self, backend: str, now: float) -> None:
        """Note that a job runs no longer."""
        busy = self._at(backend, now)
        busy.running -= 1

    def foreign(self, backend: str, now: float, *, runs: bool) -> None:
        """Note if a backend runs a prompt that is not the gateway's."""
        if runs or backend in self._backends:
            self._at(backend, now).runs_foreign = runs

    def seconds(self, now: float) -> Iterator[tuple[Sequence[str], float]]:
        """Yield each backend that was ever busy, as the one label of its series, with its seconds up to now."""
        for backend in self._backends:
            yield (backend,), self._at(backend, now).seconds

    def _at(self, backend: str, now: float) -> _Busy:
        """Return a backend's count, brought up to now."""
        busy = self._backends.get(backend)
        if busy is None:
            busy = self._backends[backend] = _Busy()
        elif busy.is_busy:
            busy.seconds += now - busy.since
        busy.since = now
        return busy
