"""Plans with object storage: what goes wrong with the store, beside all else. Pure functions of the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tests.chaos.plan import ClientPlan, Fault, Plan, plan, task

# What can happen to the store, or to the way to it, and for how long (seconds, from and to). Each seed has all of them.
STORE_FAULTS: dict[str, tuple[float, float]] = {
    # The process: kill -9 and a start on the same objects.
    "kill": (0.2, 1.5),
    # It refuses whatever it is given.
    "full": (0.5, 2.0),
    # The network. If an answer is cut, the store has the object, and the gateway does not know it.
    "refuse": (0.1, 1.0),
    "silence": (0.5, 2.5),
    "cut-question": (0.3, 1.0),
    "cut-answer": (0.3, 1.0),
    "delay": (0.5, 1.5),
}
# Backends that are gone with all their files; an empty one comes in its place.
DESTROY = "destroy"
DESTROYED = 2
# Bytes on the gateway's disk for files that wait: much, or little.
MAX_SPOOL = (2**30, 12_000)


@dataclass(frozen=True)
class StoredPlan:
    """All of one run: `base`, the faults of the store, and the settings of storage."""

    base: Plan
    store: tuple[Fault, ...]
    when: str
    max_spool: int
    strips: bool

    def text(self) -> str:
        """Return a line each for the settings, the store and the lanes, then a line for each client."""
        return f"when {self.when}, max_spool {self.max_spool}, strips {self.strips}\n{self.store}\n{self.base.text()}"


def stored_plan(seed: int) -> StoredPlan:
    """Return the plan of a seed."""
    rng = random.Random(f"stored {seed}")
    base = plan(seed)
    # If the clock of a backend is wrong, a tenant can't be shown its own output, in a store or not: it looks older than
    # the job (`output_older_than_job`).
    lanes = [tuple(fault for fault in lane if not fault.kind.startswith("clock:")) for lane in base.lanes]
    for lane in rng.sample(range(len(lanes)), DESTROYED):
        destroyed = Fault(rng.uniform(0.5, 1.5), DESTROY, rng.uniform(0.1, 1.0))
        place = rng.randrange(len(lanes[lane]) + 1)
        lanes[lane] = (*lanes[lane][:place], destroyed, *lanes[lane][place:])
    kinds = rng.sample(list(STORE_FAULTS), len(STORE_FAULTS))
    store = tuple(Fault(rng.uniform(0.2, 0.8), kind, rng.uniform(*STORE_FAULTS[kind])) for kind in kinds)
    when, max_spool = rng.choice(("before", "after")), rng.choice(MAX_SPOOL)
    return StoredPlan(replace(base, lanes=tuple(lanes)), store, when, max_spool, rng.random() < 0.5)


def short_plan(seed: int) -> StoredPlan:
    """Return a plan of half a second, in which a backend is killed. What else happens waits for events."""
    rng = random.Random(f"short {seed}")
    clients = []
    for number in range(2):
        tasks = tuple(task(rng, 0.04, rng.randrange(1, 2**24)) for _ in range(9))
        clients.append(ClientPlan(f"client-{number}", True, False, tasks, ()))
    base = Plan(seed, ((Fault(0.3, "kill", 0.1),), ()), (), (), tuple(clients))
    return StoredPlan(base, (), "after", MAX_SPOOL[0], strips=False)
