"""A batch on backends of unequal speed ends as soon as it can: the decisions of `routing`, in a time of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.batch import lower_bound
from gateway.jobs.scheduling.policies import Candidate, Stuck, shortest_queue, take_over

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
            for place in self.places.values():
                if place.running is None and place.pending:
                    place.running, place.began = place.pending.pop(0), self.now
            busy = [place for place in self.places.values() if place.running is not None]
            if not busy:
                return self.now
            first = min(busy, key=lambda place: place.began + place.seconds)
            self.now = first.began + first.seconds
            first.known, first.running = first.seconds, None

    def _send(self) -> None:
        while self.waiting:
            places = self.places.values()
            choice = shortest_queue(
                Candidate(
                    place.name,
                    len(place.pending),
                    int(place.running is not None),
                    self._max_queue - place.load(),
                    used_at=place.used_at,
                )
                for place in places
            )
            if choice is None:
                return
            self._uses += 1
            self.places[choice.name].used_at = self._uses
            self.places[choice.name].pending.append(self.waiting.pop(0))

    def _take_over(self) -> None:
        while idle := {place.name: self._usual(place) for place in self.places.values() if not place.load()}:
            choice = take_over(idle, [stuck for place in self.places.values() for stuck in self._stuck(place)])
            if choice is None:
                return
            stuck, target = choice
            tag = int(stuck.upstream_id)
            self.places[stuck.backend].pending.remove(tag)
            self.places[target].pending.append(tag)
            self.moved.add(tag)

    def _stuck(self, place: Place) -> list[Stuck]:
        usual, ahead, found = self._usual(place), 0.0, []
        if place.running is not None:
            ahead = max(usual - (self.now - place.began), usual * LEFT_AT_LEAST)
        for turn, tag in enumerate(place.pending):
            ahead += usual
            if tag not in self.moved:
                found.append(Stuck(turn, place.name, str(tag), ahead))
        return found

    def _usual(self, place: Place) -> float:
        known = [each.known for each in self.places.values() if each.known is not None]
        return place.known or (sum(known) / len(known) if known else UNKNOWN)


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
