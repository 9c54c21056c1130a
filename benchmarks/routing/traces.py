"""Traces: jobs with their arrival, kind, real work and tenant, and the fleets that they meet."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from gateway.jobs.routing.signature import Signature, Workload

DATA = Path(__file__).parent / "data"
SPEEDS = (1.0, 1.0, 0.5, 2.0)
LOAD_SECONDS = 15.0
LOAD = 0.8


@dataclass(frozen=True, slots=True)
class Kind:
    """Kind of job: a model, and the seconds of a usual run at speed 1."""

    model: str
    seconds: float
    steps: int
    px: float = 1.0

    @property
    def work(self) -> Workload:
        """Return the workload that the gateway sees."""
        signature = Signature(self.model, 0, "euler", self.steps, 1024, 1024, 1, 1, "", float(self.steps), self.px)
        return Workload(signature, f"{self.model}:{self.steps}:{self.px}", "1", ("2",))


KINDS = (Kind("sdxl", 8.0, 20), Kind("sdxl", 12.0, 30), Kind("flux", 35.0, 20), Kind("wan", 240.0, 20, 20.0))
SHARES = (0.55, 0.15, 0.2, 0.1)


@dataclass(frozen=True, slots=True)
class Arrival:
    """Job of a trace. `seconds` is its real time on a warm backend of speed 1."""

    at: float
    kind: Kind
    seconds: float
    tenant: str = "one"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Backends: their speeds, the models that each keeps, the time of a load, and a change of speeds, if any.

    From the time `changes_at` on, backend `changed` runs at `new_speed`.
    """

    speeds: tuple[float, ...] = SPEEDS
    keeps: int = 1
    load_seconds: float = LOAD_SECONDS
    changes_at: float = float("inf")
    changed: int = 0
    new_speed: float = 1.0

    @property
    def best_speeds(self) -> tuple[float, ...]:
        """Return the highest speed that each backend ever has."""
        changed = self.changes_at < float("inf")
        return tuple(max(speed, self.new_speed) if changed and backend == self.changed else speed
                     for backend, speed in enumerate(self.speeds))  # fmt: skip

    def speed(self, backend: int, now: float) -> float:
        """Return the speed of a backend at a time."""
        return self.new_speed if backend == self.changed and now >= self.changes_at else self.speeds[backend]


def poisson(seed: int, count: int = 250, load: float = LOAD) -> list[Arrival]:
    """Return the issue's trace: Poisson arrivals of three models, at a part of the fleet's speed."""
    random, now, found = Random(seed), 0.0, []
    mean = sum(kind.seconds * share for kind, share in zip(KINDS, SHARES, strict=True))
    rate = load * sum(SPEEDS) / mean
    for _ in range(count):
        now += random.expovariate(rate)
        kind = random.choices(KINDS, SHARES)[0]
        found.append(Arrival(now, kind, kind.seconds * random.uniform(0.7, 1.4)))
    return found


def batch(seed: int, count: int) -> list[Arrival]:
    """Return the same jobs, all at once."""
    return [replace(each, at=0.0) for each in poisson(seed, count)]


def bursty(seed: int, count: int = 250, burst: int = 25) -> list[Arrival]:
    """Return the same jobs in bursts, at the same mean rate."""
    found = poisson(seed, count)
    return [replace(each, at=found[at - at % burst].at) for at, each in enumerate(found)]


def tenants(seed: int, flood: int = 400, others: int = 7, each_sends: int = 40) -> list[Arrival]:
    """Return eight tenants' jobs: one floods at the start, the others send the same mix in the first minutes."""
    random = Random(seed)
    jobs = batch(seed, flood + others * each_sends)
    found = [replace(each, tenant="flood") for each in jobs[:flood]]
    for at, each in enumerate(jobs[flood:]):
        found.append(replace(each, at=random.uniform(0.0, 120.0), tenant=f"tenant-{at % others}"))
    return sorted(found, key=lambda each: each.at)


def two_modes(seed: int, count: int = 250) -> list[Arrival]:
    """Return jobs of one signature a model, each of which hides a short and a long mode."""
    random = Random(seed)
    found = []
    for each in poisson(seed, count, 0.7):
        mode = random.choice((0.3, 1.7)) if each.kind.model != "sdxl" else random.choice((0.4, 3.0))
        found.append(
            replace(each, kind=KINDS[0] if each.kind.model == "sdxl" else each.kind, seconds=each.seconds * mode)
        )
    return found


def many_kinds(seed: int, count: int = 400, models: int = 12, speeds: tuple[float, ...] = SPEEDS) -> list[Arrival]:
    """Return jobs of many models and signatures, whose popularity falls and whose work varies widely."""
    random = Random(seed)
    kinds, shares = [], []
    for model in range(models):
        base = random.lognormvariate(2.5, 0.8)
        for steps in (8, 20, 30):
            kinds.append(Kind(f"model-{model}", base * (0.2 + steps / 20), steps))
            shares.append(random.random() / (1 + model))
    mean = sum(kind.seconds * share for kind, share in zip(kinds, shares, strict=True)) / sum(shares)
    rate, now, found = LOAD * sum(speeds) / (mean * 1.05), 0.0, []
    for _ in range(count):
        now += random.expovariate(rate)
        kind = random.choices(kinds, shares)[0]
        found.append(Arrival(now, kind, kind.seconds * random.uniform(0.7, 1.4)))
    return found


def short_jobs(seed: int, count: int = 400) -> list[Arrival]:
    """Return jobs as a fast card runs them (1, 4 and 9 s, five checkpoints), for four GPUs of speed 1."""
    random, now, found = Random(seed), 0.0, []
    kinds = [*(Kind(f"sd15-{n}", 1.0, 20) for n in "ab"), *(Kind(f"sdxl-{n}", 4.0, 20) for n in "ab")]
    kinds.append(Kind("sdxl-a", 9.0, 30, 4.0))
    shares = (0.3, 0.2, 0.25, 0.15, 0.1)
    mean = sum(kind.seconds * share for kind, share in zip(kinds, shares, strict=True))
    for _ in range(count):
        now += random.expovariate(LOAD * 4 / mean)
        kind = random.choices(kinds, shares)[0]
        found.append(Arrival(now, kind, kind.seconds * random.lognormvariate(0.0, 0.15)))
    return found


def one_model(seed: int, count: int = 300) -> list[Arrival]:
    """Return equal jobs of one model, for four GPUs of speed 1: a fleet for which no policy is worth anything."""
    random, now, found = Random(seed), 0.0, []
    for _ in range(count):
        now += random.expovariate(LOAD * 4 / 10.0)
        found.append(Arrival(now, Kind("sdxl", 10.0, 20), 10.0 * random.lognormvariate(0.0, 0.1)))
    return found


def stored(name: str, make: Callable[[], list[Arrival]]) -> list[Arrival]:
    """Return a trace of the repository; write it if it is not there yet."""
    path = DATA / f"{name}.json"
    if not path.exists():
        rows = [[round(each.at, 3), KINDS.index(each.kind), round(each.seconds, 3)] for each in make()]
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return [Arrival(at, KINDS[kind], seconds) for at, kind, seconds in json.loads(path.read_text())]
