"""A batch on backends of unequal speed ends as soon as it can: the decisions of `routing`, in a time of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.batch import lower_bound
from gateway.jobs.routing.snapshot import BackendView
from gateway.jobs.scheduling.stealing_rules import Stuck, steal_work
from tests.support.routing import shortest

UNKNOWN = 1.0
LEFT_AT_LEAST = 0.25


@dataclass
class Place:
    """A backend: what is pending there, by tag, what runs and since when, how long it takes, and is known to take."""

    name: str
    seconds: float
    pending: list[int] = field(default_factory=list)
    running: int | None = None
    began: float = 0.0
    known: float | None = None
    used_at: int = 0

    def load(self) -> int:
        """How many jobs it has."""
        return len(self.pending) + (self.running is not None)


class Batch:
    """Equal jobs, all there at once."""

    def __init__(self, jobs: int, seconds: Sequence[float], max_queue: int) -> None:
        self.places = {f"b{number}": Place(f"b{number}", each) for number, each in enumerate(seconds)}
        self.waiting = list(range(jobs))
        self.moved: set[int] = set()
        self.now = 0.0
        self._max_queue = max_queue
        self._uses = 0

    def makespan(self, *, taking_over: bool) -> float:
        """Run all; when the last one ends."""
        while True:
            self._send()
            if taking_over:
                self._take_over()
            for position in self.places.values():
                if position.running is None and position.pending:
                    position.running, position.began = position.pending.pop(0), self.now
            busy = [position for position in self.places.values() if position.running is not None]
            if not busy:
                return self.now
            first = min(busy, key=lambda position: position.began + position.seconds)
            self.now = first.began + first.seconds
            first.known, first.running = first.seconds, None

    def _send(self) -> None:
        while self.waiting:
            places = self.places.values()
            choice = shortest(
                BackendView(
                    position.name,
                    self._max_queue - position.load(),
                    pending=len(position.pending),
                    running=int(position.running is not None),
                    used_at=position.used_at,
                )
                for position in places
            )
            if choice is None:
                return
            self._uses += 1
            self.places[choice].used_at = self._uses
            self.places[choice].pending.append(self.waiting.pop(0))

    def _take_over(self) -> None:
        while idle := {
            position.name: self._usual(position) for position in self.places.values() if not position.load()
        }:
            choice = steal_work(idle, [stuck for position in self.places.values() for stuck in self._stuck(position)])
            if choice is None:
                return
            stuck, target = choice
            queue_key = int(stuck.upstream_id)
            self.places[stuck.backend].pending.remove(queue_key)
            self.places[target].pending.append(queue_key)
            self.moved.add(queue_key)

    def _stuck(self, position: Place) -> list[Stuck]:
        usual, ahead, found = self._usual(position), 0.0, []
        if position.running is not None:
            ahead = max(usual - (self.now - position.began), usual * LEFT_AT_LEAST)
        for turn, queue_key in enumerate(position.pending):
            ahead += usual
            if queue_key not in self.moved:
                found.append(Stuck(turn, position.name, str(queue_key), ahead))
        return found

    def _usual(self, position: Place) -> float:
        known = [each.known for each in self.places.values() if each.known is not None]
        return position.known or (sum(known) / len(known) if known else UNKNOWN)


def test_the_batch_of_the_benchmark() -> None:
    bound = lower_bound(400, (0.4, 0.2, 0.1))
    assert Batch(400, (0.4, 0.2, 0.1), 16).makespan(taking_over=True) < 1.02 * bound
    assert Batch(400, (0.4, 0.2, 0.1), 16).makespan(taking_over=False) > 1.1 * bound


@settings(max_examples=300)
@given(
    st.integers(1, 300),
    st.lists(st.floats(0.05, 2.0), min_size=1, max_size=6),
    st.sampled_from([2, 6, 16, 1000]),
)
def test_taking_over_is_never_far_from_the_bound(jobs: int, seconds: list[float], max_queue: int) -> None:
    """What the slowest has begun it has to end; beyond that nothing is left lying."""
    bound = lower_bound(jobs, seconds)
    makespan = Batch(jobs, seconds, max_queue).makespan(taking_over=True)
    assert bound <= makespan + 1e-6
    assert makespan <= bound + max(seconds)
