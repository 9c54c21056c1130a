"""Which backend gets a job: pure, from values to a value."""

from __future__ import annotations

from collections.abc import Iterable
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
