"""Outlier ejection: a backend that fails jobs which others can run gets none for a time. A pure state machine.

A failure counts against a backend if another one has ended work of the same kind well: a workflow that fails everywhere
is nobody's fault but its own. `after` such failures in a row eject it, for a time that doubles with each ejection until
it ends something well. The last backend is never ejected, nor more than `share` of all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

MAX_KINDS = 1000
# The key by which two kinds of work differ.
Kind = str | frozenset[str]


@dataclass(slots=True)
class _Record:
    """A backend's failures in a row, by kind of work, and its ejections in a row."""

    failures: list[Kind] = field(default_factory=list)
    times: int = 0
    until: float = float("-inf")


class Ejections:
    """The ejections of a fleet. All times are seconds on one monotonic clock, passed in.

    Args:
        names: all backends.
        after: failures in a row until one is ejected.
        first: duration of the first ejection, in seconds.
        maximum: maximum duration of an ejection, in seconds.
        share: the share of `names` that may be ejected at a time, from 0 to 1.
    """

    def __init__(self, names: Collection[str], after: int, first: float, maximum: float, share: float) -> None:
        self._records = {name: _Record() for name in names}
        self._after = after
        self._first = first
        self._maximum = maximum
        self._limit = min(int(len(names) * share + 1e-9), len(names) - 1)
        self._able: OrderedDict[Kind, set[str]] = OrderedDict()
        self._last_until = float("-inf")

    def record(self, name: str) -> tuple[list[tuple[Kind, frozenset[str]]], int, float]:
        """Return a backend's failures and ejections in a row, and the end of the last ejection.

        Each failure comes with the backends that can do such work.
        """
        record = self._records[name]
        failures = [(kind, frozenset(self._able.get(kind, ()))) for kind in record.failures]
        return failures, record.times, record.until

    def restore(
        self, name: str, failures: Collection[tuple[Kind, Collection[str]]], times: int, seconds: float, now: float
    ) -> None:
        """Put back the `record` of an earlier run. `seconds` are left of the ejection."""
        for kind, able in failures:
            self._able.setdefault(kind, set()).update(able)
        until = now + min(seconds, self._maximum) if seconds > 0 else float("-inf")
        self._records[name] = _Record([kind for kind, _ in failures][-self._after :], times, until)
        self._last_until = max(self._last_until, until)

    def succeeded(self, name: str, kind: Kind, now: float) -> bool:
        """Note that a backend ended work of a kind well. During an ejection this ends no row of failures.

        The work may have begun before the ejection, so it proves nothing. Returns True if it ends a row of failures.
        """
        able = self._able.setdefault(kind, set())
        able.add(name)
        self._able.move_to_end(kind)
        if len(self._able) > MAX_KINDS:
            self._able.popitem(last=False)
        record = self._records[name]
        had_failed = bool(record.failures or record.times) and now >= record.until
        if had_failed:
            record.failures = []
            record.times = 0
        return had_failed

    def failed(self, name: str, kind: Kind, now: float, others: Collection[str]) -> float | None:
        """Note that a backend failed at work of a kind. `others` are the backends that could take work instead.

        Returns the seconds for which this ejects the backend, None if it does not.
        """
        record = self._records[name]
        if now < record.until:
            return None
        self._able.get(kind, set()).discard(name)
        record.failures = [*record.failures, kind][-self._after :]
        if len(record.failures) < self._after or not all(self._able.get(each) for each in record.failures):
            return None
        seconds = self.eject(name, now, others)
        if seconds is not None:
            # After its time one more failure suffices.
            record.failures = record.failures[1:]
        return seconds

    def eject(self, name: str, now: float, others: Collection[str]) -> float | None:
        """Eject a backend that is known to be at fault. Arguments and result are as for `failed`."""
        record, out = self._records[name], self.ejected(now)
        if now < record.until or len(out) >= self._limit or not set(others) - out - {name}:
            return None
        seconds = min(self._first * 2.0 ** min(record.times, 60), self._maximum)
        record.times += 1
        record.until = now + seconds
        self._last_until = max(self._last_until, record.until)
        return seconds

    def may_be_any(self, now: float) -> bool:
        """Return False if no backend is ejected, without a look at each."""
        return now < self._last_until

    def ejected(self, now: float) -> set[str]:
        """Return the names of all ejected backends."""
        return {name for name, record in self._records.items() if now < record.until}

    def out(self, names: Collection[str], now: float) -> set[str]:
        """Return the ejected of these eligible backends. If all are ejected, leave out the one that is back soonest."""
        out = self.ejected(now) & set(names)
        if out and len(out) == len(set(names)):
            out.remove(min(out, key=lambda name: (self._records[name].until, name)))
        return out
