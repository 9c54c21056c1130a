"""Snapshots for tests of routing policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.jobs.routing.levels import Level
from gateway.jobs.routing.policies.shortest_queue import ShortestQueue
from gateway.jobs.routing.signature import Workload
from gateway.jobs.routing.snapshot import BackendView, Board, Head, Snapshot
from tests.support.workloads import workload

LOAD_SECONDS = 15.0


class KnownCosts:
    """Costs by the steps of a workload: so many seconds on a backend of speed 1."""

    def __init__(self, speeds: Mapping[str, float] | None = None, load: float = LOAD_SECONDS) -> None:
        self._speeds = speeds or {}
        self._load = load

    def usual_seconds(self, work: Workload) -> float:
        """The steps."""
        return float(work.signature.steps)

    def factor(self, model: str, backend: str) -> float:
        """One over the speed."""
        return 1.0 / self._speeds.get(backend, 1.0)

    def deviations(self, work: Workload) -> Mapping[str, Level]:
        """None."""
        return {}

    def run_costs(self, model: str, backend: str) -> tuple[float, float]:
        """Both."""
        return self.factor(model, backend), self._load

    def load_seconds(self, model: str, backend: str) -> float:
        """The same everywhere."""
        return self._load


def shortest(views: Iterable[BackendView]) -> str | None:
    """The backend that the default policy chooses."""
    choice = ShortestQueue().choose(snapshot(views, [head("", 1)]))
    return choice.backend if choice is not None else None


def head(model: str, seconds: int, *, tenant: str = "one", number: float = 0.0, since: float = 0.0, lead: float = 0.0,
         count: int = 1, able: Iterable[str] | None = None) -> Head:  # fmt: skip
    """The head of jobs that take so many seconds."""
    allowed = None if able is None else frozenset(able)
    return Head(tenant, workload(model, seconds), count, since, (lead, number), lead, allowed)


def snapshot(views: Iterable[BackendView], heads: Iterable[Head], speeds: Mapping[str, float] | None = None,
             now: float = 0.0) -> Snapshot:  # fmt: skip
    """A snapshot of backends of known speeds."""
    return Snapshot(now, Board(views), tuple(heads), KnownCosts(speeds))
