"""``python -m benchmarks.routing [--quick] [--plot FILE] [NAME…]``: policies on traces, as a table.

First the policies are simulated. Then the real gateway, and nginx, run the first trace before simulated backends, time
run fast; a name of ``real`` runs that alone, and ``goals`` the real gateway on all traces that have goals. All policies
start with no knowledge, and each has one configuration for all traces.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from benchmarks import servers
from benchmarks.routing import plot, real, traces
from benchmarks.routing.figures import Figures, average, figures
from benchmarks.routing.simulation import Simulation
from benchmarks.routing.sketches import LateBinding, greedy, mean_bound
from benchmarks.routing.traces import Arrival, Fleet
from gateway.jobs.routing.policies.least_work import LeastWork
from gateway.jobs.routing.policies.pinned import Pinned
from gateway.jobs.routing.policies.random_two import RandomTwo
from gateway.jobs.routing.policies.registry import Policy
from gateway.jobs.routing.policies.round_robin import RoundRobin
from gateway.jobs.routing.policies.shortest_queue import ShortestQueue

# Greedy with known times takes 81, 212, 182 and 89 s on average on these.
SEEDS = (3, 11, 17, 23)
# Nothing was tuned on these.
FURTHER = tuple(range(1001, 1011))
MIXED = (1.0, 1.0, 0.5, 2.0) * 6
FOUR, ALL, EQUAL = Fleet(), Fleet(keeps=9), Fleet((1.0, 1.0, 1.0, 1.0), load_seconds=4.0)


@dataclass(frozen=True, slots=True)
class Case:
    """Trace of several seeds, and its fleet."""

    name: str
    make: Callable[[int], Sequence[Arrival]]
    seeds: Sequence[int] = SEEDS
    fleet: Fleet = FOUR


def _stored(seed: int) -> list[Arrival]:
    return traces.stored(f"poisson-{seed}", partial(traces.poisson, seed))


def _stored_batch(count: int, seed: int) -> list[Arrival]:
    return traces.stored(f"batch-{seed}", partial(traces.batch, seed, 400))[:count]


CASES = (
    Case("Poisson, 80% load", _stored),
    Case("the same, ten further seeds", traces.poisson, FURTHER),
    Case("the same, all models kept", _stored, SEEDS, ALL),
    Case("bursts of 25", traces.bursty),
    Case("120 at once", partial(_stored_batch, 120)),
    Case("400 at once", partial(_stored_batch, 400)),
    Case("400 at once, all models kept", partial(_stored_batch, 400), SEEDS, ALL),
    Case("eight tenants, one floods", traces.tenants),
    Case("a GPU 5 times slower from 1200 s on", partial(traces.poisson, load=0.6), SEEDS,
         Fleet(changes_at=1200.0, changed=0, new_speed=0.2)),
    Case("a GPU 5 times faster from 1200 s on", traces.poisson, SEEDS,
         Fleet(changes_at=1200.0, changed=2, new_speed=2.5)),
    Case("signatures that hide two modes", traces.two_modes),
    Case("short jobs, four equal GPUs", traces.short_jobs, SEEDS, EQUAL),
    Case("one model, equal jobs, four equal GPUs", traces.one_model, SEEDS, EQUAL),
    Case("36 signatures of 12 models", traces.many_kinds),
    Case("the same, 24 GPUs", partial(traces.many_kinds, count=1500, speeds=MIXED), SEEDS[:2], Fleet(MIXED)),
)  # fmt: skip
POLICIES: dict[str, Callable[[], Policy]] = {
    "least_work": LeastWork,
    "shortest_queue": ShortestQueue,
    "random_two": lambda: RandomTwo(Random(1)),
    "round_robin": RoundRobin,
    "pinned": Pinned,
    "sketch: late binding": LateBinding,
}


# Rows of the real gateway. Under `pinned` the one tenant of this trace would have one GPU.
REAL = ("least_work", "shortest_queue", "random_two", "round_robin", real.NGINX)
# Traces for which `least_work` has goals: four seeds, and batches.
GOALS = (
    *((f"Poisson, 80% load, seed {seed}", partial(_stored, seed), FOUR) for seed in SEEDS),
    ("120 at once", partial(_stored_batch, 120, SEEDS[0]), FOUR),
    ("400 at once", partial(_stored_batch, 400, SEEDS[0]), FOUR),
    ("eight tenants, one floods", partial(traces.tenants, SEEDS[0]), FOUR),
    ("Poisson, all models kept", partial(_stored, SEEDS[0]), ALL),
)


def run_real(*, goals: bool) -> None:
    """Print the rows of the real gateway."""
    print("\n| trace, real gateway | policy | mean, s | p95, s | makespan / bound | loads | Jain | |")
    print("|---|---|---|---|---|---|---|---|")
    if goals:
        for name, make, fleet in GOALS:
            print(_row(name, "least_work", asyncio.run(real.measure("least_work", make(), fleet))), flush=True)
        return
    for policy in REAL:
        found = asyncio.run(real.measure(policy, _stored(SEEDS[0]), FOUR))
        print(_row(f"Poisson, 80% load, seed {SEEDS[0]}", policy, found), flush=True)


def simulate(case: Case, make: Callable[[], Policy], seeds: Sequence[int] | None = None) -> Figures:
    """Return the mean figures of a policy over a case's seeds."""
    return average([figures(run(case, make, seed)) for seed in seeds or case.seeds])


def run(case: Case, make: Callable[[], Policy], seed: int) -> Simulation:
    """Simulate one seed. The gateway lets idle backends steal under its default policy."""
    return Simulation(case.make(seed), case.fleet, make(), steals=make is ShortestQueue).run()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.routing", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed a case")
    parser.add_argument("--plot", type=Path, help="write a plot (SVG) to this file")
    parser.add_argument("names", nargs="*", help="only traces whose names contain one of these")
    arguments = parser.parse_args()
    began, means = time.monotonic(), dict[str, dict[str, float]]()
    print("| trace | policy | mean, s | p95, s | makespan / bound | loads | Jain | idle in vain |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        if arguments.names and not any(name in case.name for name in arguments.names):
            continue
        seeds = case.seeds[:1] if arguments.quick else case.seeds
        made = [case.make(seed) for seed in seeds]
        bound = sum(mean_bound(trace, case.fleet) for trace in made) / len(made)
        for name, make in POLICIES.items():
            if name == "pinned" and "tenants" not in case.name:
                # One tenant would have one GPU.
                continue
            found = simulate(case, make, seeds)
            means.setdefault(case.name, {})[name] = found.mean
            print(_row(case.name, name, found), flush=True)
        if case.fleet.keeps == 1 and case.fleet.changes_at == float("inf"):
            known = [greedy(trace, case.fleet) for trace in made]
            mean, loads = (sum(each) / len(known) for each in zip(*known, strict=True))
            means[case.name]["sketch: greedy"] = mean
            print(f"| {case.name} | sketch: greedy, times known | {mean:.0f} | | | {loads:.0f} | | |")
        print(f"| {case.name} | bound of the mean | {bound:.0f} | | 1 | | | |")
    if not arguments.names or {"real", "goals"} & set(arguments.names):
        servers.install("nginx-light")
        run_real(goals="goals" in arguments.names)
    print(f"\n{time.monotonic() - began:.0f} s in all.")
    if arguments.plot:
        arguments.plot.write_text(plot.bars(means))


def _row(case: str, name: str, found: Figures) -> str:
    cells = (f"{found.mean:.0f}", f"{found.p95:.0f}", f"{found.makespan:.2f}", f"{found.loads:.0f}")
    return f"| {case} | {name} | {' | '.join(cells)} | {found.jain:.2f} | {found.idle:.1%} |"


if __name__ == "__main__":
    main()
