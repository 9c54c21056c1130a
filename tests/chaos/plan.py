"""What goes wrong, and what clients do meanwhile: a pure function of the seed."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

BACKENDS = 4
CLIENTS = 8
JOBS = 300
# Seconds without a sign of life after which the gateway gives a backend up.
LOST_AFTER = 3.0
# Seconds for which things go wrong, and clients come with new jobs.
SPAN = 10.0

# What can happen to a backend, or to the way to it, and for how long (seconds, from and to).
BACKEND_FAULTS: dict[str, tuple[float, float]] = {
    # The process: kill -9 and a start on the same address, with nothing in its queue; SIGSTOP and SIGCONT.
    "kill": (0.1, 2.0),
    "freeze": (LOST_AFTER + 0.5, LOST_AFTER + 1.5),
    "pause": (0.2, 1.0),
    # The network, by the proxy.
    "refuse": (0.1, 1.5),
    "silence": (LOST_AFTER + 0.5, LOST_AFTER + 1.5),
    "drop": (0.0, 0.1),
    "delay": (0.5, 1.5),
    "cut-answer": (0.2, 1.0),
    "cut-question": (0.2, 1.0),
    # ComfyUI itself, by the simulator's own faults.
    "500": (0.2, 1.0),
    "500:/prompt": (0.2, 1.0),
    "hang": (0.2, 1.0),
    # Answers and messages that no ComfyUI gives.
    "odd": (0.2, 1.0),
    "block-loop:0.8": (0.9, 1.2),
    "drop-answer": (0.1, 1.0),
    "drop-socket": (0.1, 0.6),
    "hold-prompt": (0.2, 1.0),
    "hold-answer": (0.2, 1.0),
    # The clock of its machine jumps, and back again after that time.
    "clock:+40d": (0.2, 1.5),
    "clock:-40d": (0.2, 1.5),
    "clock:-2s": (0.2, 1.5),
}
# What can happen to the gateway's machine, beside its process being killed.
GATEWAY_FAULTS: dict[str, tuple[float, float]] = {
    "gateway:full-disk": (1.0, 2.0),
    # It is killed and started again, and the disk is full all the while.
    "gateway:killed-on-full-disk": (1.5, 2.5),
    "gateway:clock:+40d": (0.5, 2.0),
    "gateway:clock:-40d": (0.5, 2.0),
    "gateway:clock:-2s": (0.5, 2.0),
}
KILLED = "gateway:killed"
# With these a backend is gone, or can't be told from one that is: what it has may run again elsewhere.
EXCUSES = frozenset({"kill", "freeze", "refuse", "silence"})
# Each seed has these; the others come as they come.
ALWAYS = ("kill", "freeze", "refuse", "cut-answer")


@dataclass(frozen=True)
class Fault:
    """After `wait` seconds `kind` happens for `seconds`."""

    wait: float
    kind: str
    seconds: float


@dataclass(frozen=True)
class Task:
    """After `wait` seconds a client sends this job, `is_v2` through the Comfy API v2.

    `cancel` is how it goes back on it, `cancel_after` when.
    """

    wait: float
    seed: int
    steps: int
    step_seconds: float
    prompt_id: str | None
    fails: bool
    is_heard: bool
    cancel: str | None
    cancel_after: float
    is_v2: bool


@dataclass(frozen=True)
class ClientPlan:
    """A client and its jobs; its socket is closed and opened again at the times (seconds) of `reconnects`."""

    name: str
    interleave: bool
    wants_metadata: bool
    tasks: tuple[Task, ...]
    reconnects: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """All of one run; each lane goes on by itself.

    `lanes` are the backends' faults, `kills` those of the gateway's process, `surroundings` those of its machine.
    """

    seed: int
    lanes: tuple[tuple[Fault, ...], ...]
    kills: tuple[Fault, ...]
    surroundings: tuple[Fault, ...]
    clients: tuple[ClientPlan, ...]

    def kinds(self) -> set[str]:
        """The kinds of faults that it has."""
        return {fault.kind for fault in self.faults()}

    def faults(self) -> list[Fault]:
        """All faults that it has."""
        return [fault for lane in (*self.lanes, self.kills, self.surroundings) for fault in lane]

    def text(self) -> str:
        """A line each for the lanes, then a line for each client."""
        return "\n".join(map(str, (*self.lanes, self.kills, self.surroundings, *self.clients)))


def plan(seed: int) -> Plan:
    """The plan of a seed."""
    rng = random.Random(seed)
    lanes = _lanes(rng)
    kills = tuple(
        Fault(rng.uniform(1.5, 0.9 * SPAN / count), KILLED, rng.uniform(0.0, 0.8))
        for count in [rng.choice((1, 2, 2))]
        for _ in range(count)
    )
    surroundings = _surroundings(rng)
    seeds = iter(rng.sample(range(1, 2**24), 2 * JOBS))
    return Plan(seed, lanes, kills, surroundings, tuple(_client(rng, number, seeds) for number in range(CLIENTS)))


def _lanes(rng: random.Random) -> tuple[tuple[Fault, ...], ...]:
    kinds = list(ALWAYS)
    lanes: list[list[Fault]] = [[] for _ in range(BACKENDS)]
    ends = [0.0] * BACKENDS
    while min(ends) < SPAN:
        lane = ends.index(min(ends))
        kind = kinds.pop() if kinds else rng.choice(list(BACKEND_FAULTS))
        fault = Fault(rng.uniform(0.6, 2.0), kind, rng.uniform(*BACKEND_FAULTS[kind]))
        lanes[lane].append(fault)
        ends[lane] += fault.wait + fault.seconds
    rng.shuffle(lanes)
    return tuple(map(tuple, lanes))


def _surroundings(rng: random.Random) -> tuple[Fault, ...]:
    """One full disk and one jump of the clock, or two, in any order."""
    disks = [kind for kind in GATEWAY_FAULTS if "disk" in kind]
    clocks = [kind for kind in GATEWAY_FAULTS if "clock" in kind]
    kinds = [rng.choice(disks), *rng.sample(clocks, rng.randint(1, 2))]
    rng.shuffle(kinds)
    return tuple(Fault(rng.uniform(0.5, 1.5), kind, rng.uniform(*GATEWAY_FAULTS[kind])) for kind in kinds)


def _client(rng: random.Random, number: int, seeds: Iterator[int]) -> ClientPlan:
    count = JOBS // CLIENTS + (number < JOBS % CLIENTS)
    # Some come in bursts, some evenly; all have come by the end of the span.
    gaps = [rng.choice((0.0, 0.0, 1.0, 3.0)) * rng.random() + 0.01 for _ in range(count)]
    scale = 0.85 * SPAN / sum(gaps)
    tasks = tuple(task(rng, gap * scale, next(seeds)) for gap in gaps)
    reconnects = tuple(sorted(rng.uniform(1, SPAN) for _ in range(2))) if rng.random() < 0.3 else ()
    return ClientPlan(f"client-{number}", rng.random() < 0.4, rng.random() < 0.3, tasks, reconnects)


def task(rng: random.Random, wait: float, seed: int) -> Task:
    """Return a job that is sent after so many seconds."""
    is_v2 = rng.random() < 0.3
    cancel = rng.choice(("delete", "interrupt", "cancel", "v2")) if rng.random() < 0.15 else None
    return Task(
        wait,
        seed,
        steps=rng.randint(2, 6),
        step_seconds=rng.uniform(0.02, 0.05),
        prompt_id=str(uuid.UUID(int=rng.getrandbits(128), version=4)) if rng.random() < 0.5 and not is_v2 else None,
        fails=rng.random() < 0.05,
        is_heard=rng.random() < 0.9 and not is_v2,
        cancel=cancel,
        cancel_after=rng.choice((0.0, 0.1, 0.5, 1.5)) * rng.random(),
        is_v2=is_v2,
    )
