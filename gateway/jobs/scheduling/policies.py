"""Policies that choose a backend for a job. Pure, from values to a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """Backend that could take the job.

    `pending` counts prompts that do not run yet: those of others at the last probe, plus the gateway's, reservations
    included. `warm` is higher for a backend that is readier for this work: the session's last backend, the same models,
    the prompt's files. `used_at` is the time of its last job (any monotonic count).
    """

    name: str
    pending: int
    running: int
    free: int
    slow: bool = False
    warm: int = 0
    used_at: float = 0.0


def shortest_queue(candidates: Iterable[Candidate]) -> Candidate | None:
    """Return the candidate with the fewest pending prompts; None if all are full.

    Slow candidates come after all others. Ties: idle before running, then warm, then the least recently used.
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

    `position` is its position in the queue there. `able` are the backends that can run it; None for all.
    """

    position: int
    backend: str
    upstream_id: str
    ends_in: float
    able: frozenset[str] | None = None


def steal_work(idle: Mapping[str, float], stuck: Iterable[Stuck]) -> tuple[Stuck, str] | None:
    """Choose a job for an idle backend; return both, or None if no job would end sooner on one.

    Of the jobs that gain by a move, choose the one with the lowest position, and its fastest idle backend.

    Args:
        idle: the time of a usual job on each idle backend, in seconds.
    """
    for each in sorted(stuck, key=lambda each: each.position):
        fitting = {name: seconds for name, seconds in idle.items() if each.able is None or name in each.able}
        fitting.pop(each.backend, None)
        if fitting:
            target = min(fitting, key=lambda name: (fitting[name], name))
            if fitting[target] < each.ends_in * GAIN:
                return each, target
    return None
