"""Memory of jobs that ran out of GPU memory, so that later jobs alike go to larger devices.

The key is a tenant and a signature, because a signature does not tell all that a run needs: a tenant whose graphs fill
a GPU keeps no other tenant from it. All times are seconds since 1970, passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from gateway.telemetry.times import iso

# A device is larger than another from so many times its memory on, because equal cards differ a little.
LARGER = 1.02
# A shortage is remembered for so long, in seconds, unless the settings say otherwise.
REMEMBER_SECONDS = 86_400.0
# Signatures that are remembered, of one tenant and of all; the oldest are forgotten.
MAX_OF_TENANT, MAX_SIGNATURES = 100, 2_000
MAX_TEXT = 128
MAX_BYTES = 2**60
# Latest time that is read from the store, because text forms of times end with the year 9999.
MAX_TIME = 2**37


def larger_than(size: int, sizes: Iterable[tuple[str, int]]) -> frozenset[str]:
    """Return the names of the devices that are larger than one of `size` bytes, of names and sizes."""
    return frozenset(name for name, other in sizes if other > size * LARGER)


@dataclass(frozen=True, slots=True)
class Shortage:
    """A signature of a tenant that ran out of memory.

    `size` are the bytes of the largest device on which it did, `backend` the last one, `at` the last time.
    """

    tenant: str
    signature: str
    model: str
    backend: str
    size: int
    times: int
    at: float


class OutOfMemory:
    """Shortages of all tenants.

    Args:
        on_change: called when the store has to know a change.

    Attributes:
        seconds: time for which a shortage is remembered; 0: none is.
        changes: count of changes, by which waiting jobs are judged anew.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None, seconds: float = REMEMBER_SECONDS) -> None:
        self._on_change = on_change
        self.seconds = seconds
        self.changes = 0
        # By tenant and signature, the oldest first in each tenant.
        self._known: dict[str, dict[str, Shortage]] = {}
        self._count = 0
        self._next_end = math.inf

    def __len__(self) -> int:
        return self._count

    def size_of(self, tenant: str, signature: str) -> int:
        """Return the bytes of the largest device on which a tenant's jobs alike ran out of memory; 0 if none did."""
        own = self._known.get(tenant)
        found = own.get(signature) if own is not None else None
        return found.size if found is not None else 0

    def note(self, tenant: str, signature: str, model: str, backend: str, size: int, now: float) -> Shortage | None:
        """Note that a job ran out of memory on a device of `size` bytes. Return None if it is not remembered."""
        if not signature or self.seconds <= 0 or not 0 < size <= MAX_BYTES:
            return None
        before = self._known.get(tenant, {}).get(signature)
        found = Shortage(tenant, signature, model[:MAX_TEXT], backend, size, 1, now)
        if before is not None:
            found = replace(found, size=max(size, before.size), times=before.times + 1)
        self._put(found)
        self._changed()
        return found

    def forget(self, signature: str | None = None) -> int:
        """Forget a signature of all tenants, or all signatures. Return how many shortages were forgotten."""
        return self._drop([each for each in self.all() if signature is None or each.signature == signature])

    def expire(self, now: float) -> None:
        """Forget the shortages whose time is over."""
        if now >= self._next_end:
            self._drop([each for each in self.all() if each.at + self.seconds <= now])
            self._next_end = min((each.at for each in self.all()), default=math.inf) + self.seconds

    def all(self) -> Collection[Shortage]:
        """Return all shortages."""
        return [each for own in self._known.values() for each in own.values()]

    def describe(self) -> list[dict[str, Any]]:
        """Return the shortages for the admin API, the newest first."""
        return [
            {
                "signature": each.signature,
                "tenant": each.tenant,
                "model": each.model or None,
                "backend": each.backend,
                "vram_gib": round(each.size / 2**30, 2),
                "times": each.times,
                "last": iso(each.at),
                "until": iso(each.at + self.seconds),
            }
            for each in sorted(self.all(), key=lambda each: -each.at)
        ]

    # -- record --------------------------------------------------------------------------------------------------

    def rows(self) -> list[list[Any]]:
        """Return the record for the store."""
        return [[e.tenant, e.signature, e.model, e.backend, e.size, e.times, round(e.at)] for e in self.all()]

    def restore(self, rows: Any) -> None:
        """Take over an earlier run's record. Skip all that is malformed."""
        for shortage in _read(rows):
            if self.seconds > 0:
                self._put(shortage)

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _put(self, shortage: Shortage) -> None:
        own = self._known.setdefault(shortage.tenant, {})
        self._count += own.pop(shortage.signature, None) is None
        own[shortage.signature] = shortage
        self._next_end = min(self._next_end, shortage.at + self.seconds)
        if len(own) > MAX_OF_TENANT:
            self._remove(next(iter(own.values())))
        while self._count > MAX_SIGNATURES:
            # The tenant with the most signatures loses one, so that no other loses its own to it.
            most = max(self._known.values(), key=len)
            self._remove(next(iter(most.values())))

    def _remove(self, shortage: Shortage) -> None:
        own = self._known[shortage.tenant]
        del own[shortage.signature]
        self._count -= 1
        if not own:
            del self._known[shortage.tenant]

    def _drop(self, shortages: Collection[Shortage]) -> int:
        for each in shortages:
            self._remove(each)
        if shortages:
            self._changed()
        return len(shortages)

    def _changed(self) -> None:
        self.changes += 1
        self._on_change()


def _read(rows: Any) -> Iterator[Shortage]:
    for row in rows[:MAX_SIGNATURES] if isinstance(rows, list) else ():
        if not (isinstance(row, list) and len(row) == 7 and all(isinstance(each, str) for each in row[:4])):
            continue
        tenant, signature, model, backend, size, times, at = row
        if not all(type(each) is int and 0 < each <= MAX_BYTES for each in (size, times, at)) or at > MAX_TIME:
            continue
        if signature and all(len(each) <= MAX_TEXT for each in row[:4]):
            yield Shortage(tenant, signature, model, backend, size, times, float(at))
