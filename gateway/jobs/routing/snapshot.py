"""Snapshot that policies choose from: backends and heads of waiting jobs. The board is kept as things change. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from gateway.jobs.routing.arrivals import Arrivals
from gateway.jobs.routing.levels import Level
from gateway.jobs.routing.signature import Workload

# A backend gets its next job so many seconds before its running one ends, as far as that is known.
BIND_AHEAD_SECONDS = 5.0
# Backends that compete for one decision: open ones, those that end soon, and holders of each model.
MAX_OPEN, MAX_FASTEST, MAX_SOON, MAX_HOLDERS = 12, 4, 3, 2


class Costs(Protocol):
    """Expected seconds of runs and loads (`times.Times`)."""

    def usual_seconds(self, work: Workload) -> float:
        """Return the expected seconds of a warm run at usual speed."""

    def factor(self, model: str, backend: str) -> float:
        """Return the factor by which runs of a model take longer on a backend."""

    def deviations(self, work: Workload) -> Mapping[str, Level]:
        """Return the factors by which a workload deviates from that, by backend."""

    def run_costs(self, model: str, backend: str) -> tuple[float, float]:
        """Return the factor, and the seconds that a load adds."""

    def load_seconds(self, model: str, backend: str) -> float:
        """Return the expected seconds that a load adds."""


class BackendView(NamedTuple):
    """Backend as policies see it.

    Args:
        slots: jobs that it can take now.
        ends_at: the time at which all jobs that it has will have ended, as expected; in the past if it has none.
        held: models in memory at that time.
        keeps_several: True if loading a model does not push out the others.
        slow: True if it gets a job only if no other backend can run it: it is slow to answer, or ejected.
        factor: time of a run there, compared with usual speed.
        weight: the operator's weight.
    """

    name: str
    slots: int
    ends_at: float = 0.0
    held: frozenset[str] = frozenset()
    keeps_several: bool = False
    pending: int = 0
    running: int = 0
    slow: bool = False
    used_at: float = 0.0
    factor: float = 1.0
    weight: float = 1.0


class Head(NamedTuple):
    """First of the waiting jobs of one tenant and one signature.

    Args:
        jobs: the number of that tenant's waiting jobs of that signature.
        since: the time since which the job waits.
        order: its tenant's lead and its number, the lower the earlier.
        lead: GPU seconds that its tenant got more than the tenant that got the least, by their weights.
        able: the backends that may run it; None for all.
        bonus: its priority, as the seconds of waiting that make up for it.
        rank: the rank of its priority among those that wait, with the steps gained by waiting. Higher ranks go first.
    """

    tenant: str
    work: Workload
    jobs: int = 1
    since: float = 0.0
    order: tuple[float, float] = (0.0, 0.0)
    lead: float = 0.0
    able: frozenset[str] | None = None
    bonus: float = 0.0
    rank: int = 0


class Snapshot(NamedTuple):
    """All that a policy may look at: the time, the board, the heads in order, and the costs.

    Args:
        batch: the heads of all waiting jobs if they are few; else none.
        arrivals: the jobs' arrivals; None if nothing is known of them.
        may_run: returns True if a backend may run the heads' jobs; None if all may that a head names.
        has_room: returns True if a backend can take a job of the heads' tenant now; None to count its slots.
        readiness: how ready backends are for the heads' jobs, beside their models; 0 for all others.
    """

    now: float
    board: Board
    heads: Sequence[Head]
    costs: Costs
    batch: Sequence[Head] = ()
    arrivals: Arrivals | None = None
    may_run: Callable[[BackendView], bool] | None = None
    has_room: Callable[[BackendView], bool] | None = None
    readiness: Mapping[str, int] = {}

    def may(self, head: Head, view: BackendView) -> bool:
        """Return True if a backend may run a head's job, now or later."""
        if head.able is not None and view.name not in head.able:
            return False
        return self.may_run is None or self.may_run(view)

    def fits(self, view: BackendView) -> bool:
        """Return True if a backend can take one of the heads' jobs now."""
        return view.slots > 0 and (self.has_room is None or self.has_room(view))


class Competitors(NamedTuple):
    """Backends that compete for a decision, and of each model the places of those that matter for it."""

    views: list[BackendView]
    places: dict[str, tuple[int, ...]]


class Choice(NamedTuple):
    """Decision that a head's job goes to a backend."""

    head: Head
    backend: str


def open_slots(now: float, ends_at: float, jobs: int, ahead: int, is_idle: bool) -> int:
    """Return the number of jobs that a backend can take now.

    It takes one if it is idle, and `ahead` more once the jobs that it has end within `BIND_AHEAD_SECONDS`.
    """
    if is_idle:
        return 1
    return max(1 + ahead - jobs, 0) if ends_at - now <= BIND_AHEAD_SECONDS else 0


class Board:
    """Backends in the orders that decisions need, so that a decision looks at a few of hundreds."""

    def __init__(self, views: Iterable[BackendView] = ()) -> None:
        self.views: dict[str, BackendView] = {}
        self._by_end: list[tuple[bool, float, str]] = []
        self._open: list[tuple[bool, float, float, str]] = []
        self._by_queue: list[tuple[float, int, float, str]] = []
        self._holders: dict[str, list[tuple[float, str]]] = {}
        for view in views:
            self.put(view)

    def put(self, view: BackendView) -> None:
        """Add a backend, or change it."""
        self.remove(view.name)
        self.views[view.name] = view
        insort(self._by_end, _end_order(view))
        insort(self._by_queue, _queue_order(view))
        if view.slots > 0:
            insort(self._open, _open_order(view))
        for model in view.held:
            insort(self._holders.setdefault(model, []), (view.ends_at, view.name))

    def remove(self, name: str) -> None:
        """Remove a backend that may get no jobs."""
        view = self.views.pop(name, None)
        if view is None:
            return
        del self._by_end[bisect_left(self._by_end, _end_order(view))]
        del self._by_queue[bisect_left(self._by_queue, _queue_order(view))]
        if view.slots > 0:
            del self._open[bisect_left(self._open, _open_order(view))]
        for model in view.held:
            holders = self._holders[model]
            del holders[bisect_left(holders, (view.ends_at, name))]
            if not holders:
                del self._holders[model]

    @property
    def has_open(self) -> bool:
        """Return True if any backend can take a job."""
        return bool(self._open)

    def is_open(self, names: frozenset[str]) -> bool:
        """Return True if one of some backends can take a job."""
        views = self.views
        return any(views[name].slots > 0 for name in names if name in views)

    def in_queue_order(self) -> Iterator[BackendView]:
        """Yield all backends: the fewest pending for the weight first, then idle, then least recently used ones."""
        views = self.views
        for _, _, _, name in self._by_queue:
            yield views[name]

    def holders(self, model: str) -> Iterator[BackendView]:
        """Yield the backends that have a model in memory."""
        for _, name in self._holders.get(model, ()):
            yield self.views[name]

    def warm_models(self) -> list[str]:
        """Return the models in memory of backends that can take a job, the fastest backends' first."""
        models: dict[str, None] = {}
        for *_, name in self._open[:MAX_OPEN]:
            models.update(dict.fromkeys(self.views[name].held))
        return list(models)

    def open_views(self) -> list[BackendView]:
        """Return the backends that can take a job, the fastest first, but slow ones to answer last."""
        return [self.views[name] for *_, name in self._open]

    def competitors(self, models: Iterable[str], able: Iterable[frozenset[str]] = ()) -> Competitors:
        """Return the backends that matter for jobs of some models: open, soon open, or with a model in memory.

        Args:
            able: sets of backends; of each, some matter.
        """
        names = dict.fromkeys(name for *_, name in self._open[:MAX_OPEN])
        for *_, name in self._by_end[:MAX_SOON]:
            names[name] = None
        for allowed in able:
            if allowed.isdisjoint(names):
                names.update(dict.fromkeys(self._first(allowed.__contains__)))
        found = [self.views[name] for name in names]
        general, holders = len(found), {}
        for model in models:
            places = []
            for _, name in self._holders.get(model, ())[:MAX_HOLDERS]:
                if name not in names:
                    places.append(len(found))
                    found.append(self.views[name])
            holders[model] = (*range(general), *places)
        return Competitors(found, holders)

    def _first(self, is_allowed: Callable[[str], bool]) -> list[str]:
        found = [name for *_, name in self._open if is_allowed(name)][:MAX_FASTEST]
        return found + [name for *_, name in self._by_end if is_allowed(name)][:MAX_FASTEST]


def _end_order(view: BackendView) -> tuple[bool, float, str]:
    return view.slow, view.ends_at, view.name


def _open_order(view: BackendView) -> tuple[bool, float, float, str]:
    return view.slow, view.factor, view.used_at, view.name


def _queue_order(view: BackendView) -> tuple[float, int, float, str]:
    return view.pending / view.weight, view.running, view.used_at, view.name
