"""Rules of sending jobs beside the routing policies: room for other tenants, and work stealing. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


def leaves_room(free: int, max_queue: int) -> bool:
    """Return True if a tenant that has jobs on a backend may send one more there, by the number of free slots.

    The last slot is kept for a tenant that has no job there. Else that tenant would wait until one of the other's jobs
    ends, and then for the next, which has begun by then.
    """
    return free > 1 or max_queue == 1


# A job is moved only if it ends sooner by this factor, because a move costs a few requests, and maybe a model load.
GAIN = 0.9


@dataclass(frozen=True, slots=True)
class Stuck:
    """Job that has not started on its backend. `ends_in` is the estimated time until it would end there, in seconds.

    `position` is its position in the queue there. `able` are the backends that can run it; None for all. `seconds` are
    the learned times of its own run on idle backends, loads included; None to take that of a usual job.
    """

    position: int
    backend: str
    upstream_id: str
    ends_in: float
    able: frozenset[str] | None = None
    seconds: Mapping[str, float] | None = None


def steals(idle: Mapping[str, float], stuck: Iterable[Stuck]) -> Iterator[tuple[Stuck, str]]:
    """Choose jobs for idle backends; yield each with its backend. None that is left would end sooner on another one.

    Of the jobs that gain by a move, those with the lowest positions come first, each to its fastest idle backend.

    Args:
        idle: the time of a usual job on each idle backend, in seconds.
    """
    left = dict(idle)
    for each in sorted(stuck, key=lambda each: each.position):
        if not left:
            return
        times = left if each.seconds is None else each.seconds
        fitting = {name: times[name] for name in left if name in times and (each.able is None or name in each.able)}
        fitting.pop(each.backend, None)
        if fitting:
            target = min(fitting, key=lambda name: (fitting[name], name))
            if fitting[target] < each.ends_in * GAIN:
                del left[target]
                yield each, target


def steal_work(idle: Mapping[str, float], stuck: Iterable[Stuck]) -> tuple[Stuck, str] | None:
    """Choose a job for an idle backend, the first of `steals`; None if no job would end sooner on one."""
    return next(steals(idle, stuck), None)
