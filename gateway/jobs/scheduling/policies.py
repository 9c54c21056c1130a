"""Policies that choose a backend for a job. Pure, from values to a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend that could take the job.

    `pending` counts what is not running there: other people's at the last probe, plus ours, reservations included.
    `warm` says how ready it is for this work: the session's last backend, the same models. `used_at` is when it was
    last given a job (any monotonic count).
    """

    name: str
    pending: int
    running: int
    free: int
    slow: bool = False
    warm: int = 0
    used_at: float = 0.0


def shortest_queue(candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate with the fewest pending; None if each is full.

    Slow ones come after all others. Ties: idle before running, then warm, then the least recently used.
    """
    best: Candidate | None = None
    best_key: tuple[bool, int, int, int, float] | None = None
    for candidate in candidates:
        if candidate.free <= 0:
            continue
        key = (candidate.slow, candidate.pending, candidate.running, -candidate.warm, candidate.used_at)
        if best_key is None or key < best_key:
            best, best_key = candidate, key
    return best


def leaves_room(free: int, max_queue: int) -> bool:
    """Return True if a tenant that has jobs on a backend may send one more there, of whose places so many are free.

    The last place is for a tenant that has nothing there. Else it would wait until one of the other's jobs ends, and
    then for the next, which has begun by then.
    """
    return free > 1 or max_queue == 1


# A job is moved only if it ends sooner by this factor: moving costs a few requests, and maybe a model to load.
GAIN = 0.9


@dataclass(frozen=True, slots=True)
class Stuck:
    """A job that has not started on the backend that has it. `ends_in`: seconds until it would end there, estimated.

    `position` is its place in the queue there. `able` are the backends that can run it; None for all.
    """

    position: int
    backend: str
    upstream_id: str
    ends_in: float
    able: frozenset[str] | None = None


def steal_work(idle: Mapping[str, float], stuck: Iterable[Stuck]) -> tuple[Stuck, str] | None:
    """Which job goes to which idle backend; None if none would end sooner there.

    The first in its queue that gains by it, to where it ends soonest.

    Args:
        idle: the seconds that a job takes on each idle backend.
    """
    for each in sorted(stuck, key=lambda each: each.position):
        fitting = {name: seconds for name, seconds in idle.items() if each.able is None or name in each.able}
        fitting.pop(each.backend, None)
        if fitting:
            target = min(fitting, key=lambda name: (fitting[name], name))
            if fitting[target] < each.ends_in * GAIN:
                return each, target
    return None
