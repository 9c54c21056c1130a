"""Queue of the copies that are to be made. Pure: times are seconds of the monotonic clock.

Each source, a backend or the gateway's disk, has a lane, and in it each tenant its turn. A source that can't be read
now holds up no other, and a tenant with thousands of files no other tenant.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from itertools import count

from gateway.artifacts.model import Copy
from gateway.comfy.file_refs import FileRef

# Maximum copies that wait, of all tenants and of one.
MAX_PENDING, MAX_OF_TENANT = 100_000, 50_000


class Lanes:
    """Copies that may be made now, by source and tenant."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, OrderedDict[str, deque[Copy]]] = OrderedDict()

    def put(self, copy: Copy) -> None:
        """Add a copy at the end of its tenant's."""
        lane = self._lanes.setdefault(copy.source, OrderedDict())
        lane.setdefault(copy.record.tenant, deque()).append(copy)

    def take(self, is_usable: Callable[[str], bool], is_wanted: Callable[[Copy], bool]) -> Copy | None:
        """Return the next copy of a usable source, and give its source and its tenant their next turn later.

        Drop those that are not wanted any more.
        """
        for source in [each for each in self._lanes if is_usable(each)]:
            lane = self._lanes[source]
            self._lanes.move_to_end(source)
            copy = self._next(lane, is_wanted)
            if not lane:
                del self._lanes[source]
            if copy is not None:
                return copy
        return None

    def _next(self, lane: OrderedDict[str, deque[Copy]], is_wanted: Callable[[Copy], bool]) -> Copy | None:
        while lane:
            tenant, copies = next(iter(lane.items()))
            lane.move_to_end(tenant)
            copy = copies.popleft()
            if not copies:
                del lane[tenant]
            if is_wanted(copy):
                return copy
        return None


class CopyQueue:
    """All copies that are to be made, those under way included."""

    def __init__(self) -> None:
        self._copies: dict[str, Copy] = {}
        self._of_tenants = Counter[str]()
        self._by_name: dict[tuple[str, FileRef], Copy] = {}
        self._urgent, self._ready = Lanes(), Lanes()
        self._later: list[tuple[float, int, Copy]] = []
        self._numbers = count()
        # Copies in the lanes, and those whose turn comes later.
        self._waiting: set[str] = set()

    def __len__(self) -> int:
        """Return the number of copies."""
        return len(self._copies)

    def is_full(self, tenant: str) -> bool:
        """Return True if no further copy of a tenant's may be planned. One tenant leaves room for others."""
        return len(self._copies) >= MAX_PENDING or self._of_tenants[tenant] >= MAX_OF_TENANT

    def age(self, now: float, is_known: Callable[[str], bool]) -> float:
        """Return the seconds for which the oldest copy has waited. Leave out copies from unknown sources.

        Args:
            now: the time, in seconds since 1970.
            is_known: returns False for a source that nobody can read, such as a backend that was removed.
        """
        oldest = next((copy for copy in self._copies.values() if is_known(copy.source)), None)
        return max(0.0, now - oldest.record.created_at / 1000) if oldest is not None else 0.0

    def get(self, key: str) -> Copy | None:
        """Return a copy by its key."""
        return self._copies.get(key)

    def of_name(self, tenant: str, visible: FileRef) -> Copy | None:
        """Return the copy that is planned last for a tenant's name."""
        return self._by_name.get((tenant, visible))

    def add(self, copy: Copy) -> None:
        """Plan a copy, to be made as soon as it can be."""
        self.hold(copy)
        self.put_back(copy)

    def hold(self, copy: Copy) -> None:
        """Plan a copy, to be made once it is put back."""
        if copy.key not in self._copies:
            self._of_tenants[copy.record.tenant] += 1
        self._copies[copy.key] = copy
        self._by_name[copy.name] = copy

    def put_back(self, copy: Copy, at: float | None = None) -> None:
        """Let a copy wait for its turn again, from a time on."""
        if copy.key not in self._copies:
            return
        self._waiting.add(copy.key)
        if at is None:
            (self._urgent if copy.is_urgent else self._ready).put(copy)
        else:
            heapq.heappush(self._later, (at, next(self._numbers), copy))

    def remove(self, copy: Copy) -> None:
        """Take a copy out, because it is made, or not to be made."""
        if self._copies.pop(copy.key, None) is not None:
            self._of_tenants[copy.record.tenant] -= 1
            if not self._of_tenants[copy.record.tenant]:
                del self._of_tenants[copy.record.tenant]
        self._waiting.discard(copy.key)
        if self._by_name.get(copy.name) is copy:
            del self._by_name[copy.name]

    def take(self, now: float, is_usable: Callable[[str], bool]) -> Copy | None:
        """Return the copy whose turn it is, of a source that is usable; None if there is none."""
        while self._later and self._later[0][0] <= now:
            _, _, copy = heapq.heappop(self._later)
            if self._is_waiting(copy):
                self._ready.put(copy)
        for lanes in (self._urgent, self._ready):
            if (taken := lanes.take(is_usable, self._is_waiting)) is not None:
                self._waiting.discard(taken.key)
                return taken
        return None

    def _is_waiting(self, copy: Copy) -> bool:
        return copy.key in self._waiting and self._copies.get(copy.key) is copy

    def next_at(self) -> float | None:
        """Return the time at which the next copy is due that waits for a time; None if none does."""
        while self._later and not self._is_waiting(self._later[0][2]):
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else None
