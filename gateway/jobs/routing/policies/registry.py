"""Registry of the routing policies, by the names that `routing.policy` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from gateway.jobs.routing.policies.least_work import LeastWork
from gateway.jobs.routing.policies.pinned import Pinned
from gateway.jobs.routing.policies.random_two import RandomTwo
from gateway.jobs.routing.policies.round_robin import RoundRobin
from gateway.jobs.routing.policies.shortest_queue import ShortestQueue
from gateway.jobs.routing.snapshot import Choice, Snapshot


class Policy(Protocol):
    """Rule that chooses which waiting job goes to which backend. Call `choose` again until the answer is None."""

    @property
    def binds_late(self) -> bool:
        """Return True if jobs wait in the gateway until a backend is about to need one."""

    def choose(self, snapshot: Snapshot) -> Choice | None:
        """Return the next job to send and its backend; None if nothing is to be sent now."""


POLICIES: Mapping[str, Callable[[], Policy]] = {
    "shortest_queue": ShortestQueue,
    "least_work": LeastWork,
    "round_robin": RoundRobin,
    "random_two": RandomTwo,
    "pinned": Pinned,
}
