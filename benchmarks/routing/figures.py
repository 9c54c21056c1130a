"""Figures of a simulated run."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.routing.simulation import Run, Simulation
from benchmarks.routing.sketches import end_bound


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one run, or the means of several.

    Args:
        mean: seconds from arrival to end, on average.
        p95: the same, of the slowest twentieth at least.
        makespan: time until all have ended, over its bound.
        loads: loads of models.
        jain: Jain's index of the work that tenants got while all had some left; 1 if there is one tenant.
        idle: GPU seconds idle although a job waited that would have ended sooner there, over all GPU seconds.
    """

    mean: float
    p95: float
    makespan: float
    loads: float
    jain: float
    idle: float


def figures(simulation: Simulation) -> Figures:
    """Return the figures of a run."""
    runs = simulation.runs
    took = sorted(run.ended - run.arrival.at for run in runs)
    trace = [run.arrival for run in runs]
    span = max(run.ended for run in runs) - trace[0].at
    return Figures(
        sum(took) / len(took),
        took[int(0.95 * len(took))],
        span / end_bound(trace, simulation.fleet),
        sum(run.was_load for run in runs),
        jain(runs),
        wasted(simulation) / (span * len(simulation.machines)),
    )


def average(found: list[Figures]) -> Figures:
    """Return the means of several runs' figures."""
    return Figures(*(sum(getattr(each, name) for each in found) / len(found) for name in Figures.__slots__))


def jain(runs: list[Run]) -> float:
    """Return Jain's index of the tenants' work that was done, from the last tenant's first job to the first's last."""
    tenants: dict[str, list[Run]] = {}
    for run in runs:
        tenants.setdefault(run.arrival.tenant, []).append(run)
    if len(tenants) < 2:
        return 1.0
    first = max(min(run.arrival.at for run in own) for own in tenants.values())
    last = min(max(run.ended for run in own) for own in tenants.values())
    got = []
    for own in tenants.values():
        work = 0.0
        for run in own:
            part = max(min(run.ended, last) - max(run.started, first), 0.0) / (run.ended - run.started)
            work += part * run.arrival.seconds
        got.append(work)
    return sum(got) ** 2 / (len(got) * sum(each * each for each in got))


def wasted(simulation: Simulation) -> float:
    """Return the idle GPU seconds in which a waiting job could have run, and would have ended sooner than it did."""
    fleet, whole = simulation.fleet, 0.0
    runs = sorted(simulation.runs, key=lambda run: run.arrival.at)
    for machine in simulation.machines:
        for since, until, held in machine.idle:
            spans = []
            for run in runs:
                if run.arrival.at >= until:
                    break
                begin, end = max(since, run.arrival.at), min(until, run.started)
                if end - begin > 0.05:
                    load = 0.0 if run.arrival.kind.model in held else fleet.load_seconds
                    if begin + load + run.arrival.seconds / fleet.speed(machine.index, begin) < run.ended:
                        spans.append((begin, end))
            reached = since
            for begin, end in sorted(spans):
                whole += max(end - max(begin, reached), 0.0)
                reached = max(reached, end)
    return whole
