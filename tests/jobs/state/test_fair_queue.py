"""Fair share, as pure decisions and as a fleet that runs by them: the ledger, its tags, and ComfyUI's heaps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.bus import LocalBus
from gateway.jobs.routing.shares import Shares
from gateway.jobs.routing.snapshot import BackendView
from gateway.jobs.scheduling.stealing_rules import leaves_room
from gateway.jobs.state.fair_queue import FairShare, Queued, position_in
from gateway.jobs.state.history import History
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.submission import read
from gateway.jobs.state.transitions import State
from gateway.store.protocol import Change
from tests.support.routing import shortest

_LOOP = asyncio.new_event_loop()


class Paper:
    """A journal that forgets."""

    def write(self, changes: Sequence[Change]) -> Any:
        """Take them."""
        done: asyncio.Future[None] = asyncio.Future(loop=_LOOP)
        done.set_result(None)
        return done

    try_write = write


@dataclass(frozen=True)
class Arrival:
    """A prompt that comes, and as many `more` of its tenant, each when the one before has ended.

    `cancelled_at` is when its tenant cancels it, if it has not begun by then.
    """

    at: int
    tenant: str = "ben"
    seconds: int = 1
    body: tuple[tuple[str, Any], ...] = ()
    cancelled_at: int | None = None
    more: int = 0


@dataclass
class Place:
    """A backend: ComfyUI's heap on ``number``, and what runs."""

    running: Job | None = None
    ends_at: int = 0
    uses: int = 0


@dataclass
class World:
    """A fleet under a gateway. It notes when each job began, and what ran in which order on each backend."""

    backends: int
    max_queue: int
    arrivals: list[Arrival]
    began: dict[Arrival, int] = field(default_factory=dict)
    ran: dict[str, list[Arrival]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        paper: Any = Paper()
        self.ledger = Ledger(paper, LocalBus(), History(paper, 100, 10_000), "gateway")
        self.places = {f"b{n}": Place() for n in range(self.backends)}
        self.jobs: dict[Job, Arrival] = {}
        self.uses = 0
        self.ran = {name: [] for name in self.places}

    def run(self) -> World:
        """Let time go on until all has run."""
        now, due = 0, sorted(self.arrivals, key=lambda each: each.at)
        while due or len(self.ledger):
            self._end(now)
            self._cancel(now)
            while due and due[0].at <= now:
                self._arrive(due.pop(0), now)
            self._begin(now)
            now += 1
        return self

    def _end(self, now: int) -> None:
        for position in self.places.values():
            if position.running is not None and position.ends_at <= now:
                ended, position.running = position.running, None
                self.ledger.collect(ended)
                # A ComfyUI begins with its next one before the gateway hears of anything.
                self._begin(now)
                _LOOP.run_until_complete(self.ledger.finish(ended, "success", b"{}", b"{}"))
                self._wake()
                if (arrival := self.jobs[ended]).more:
                    self._arrive(replace(arrival, at=now, more=arrival.more - 1), now)

    def _cancel(self, now: int) -> None:
        for job, arrival in self.jobs.items():
            is_due = arrival.cancelled_at is not None and arrival.cancelled_at <= now
            if is_due and job.state in (State.WAITING, State.PENDING):
                self.ledger.cancel(job)
                self._wake()

    def _arrive(self, arrival: Arrival, now: int) -> None:
        prompt = {"1": {"class_type": "KSampler", "inputs": {}}}
        body = json.dumps({"prompt": prompt, **dict(arrival.body)}).encode()
        job = self.ledger.admit(arrival.tenant, read(body), ["1"])
        self.jobs[job] = arrival
        if not self._send(job):
            self.ledger.hold(job)
        self._begin(now)

    def _wake(self) -> None:
        tenants = set(self.ledger.waiting.tenants)
        for job in self.ledger.waiting.in_turn(tenants):
            if not self._send(job):
                tenants.discard(job.tenant)

    def _send(self, job: Job) -> bool:
        candidates = []
        for name, position in self.places.items():
            queued, running = self.ledger.load(name)
            free = self.max_queue - queued - running
            if leaves_room(free, self.max_queue) or not self.ledger.has_on(name, job.tenant):
                candidates.append(BackendView(name, free, pending=queued, running=running, used_at=position.uses))
        choice = shortest(candidates)
        if choice is None:
            return False
        self.uses += 1
        self.places[choice].uses = self.uses
        self.ledger.send(job, choice)
        self.ledger.taken(job, job.upstream_id, b"{}")
        return True

    def _begin(self, now: int) -> None:
        for name, position in self.places.items():
            pending = [job for job in self.ledger.jobs_on(name) if job.state is State.PENDING]
            if position.running is None and pending:
                # The ids decide between equal numbers, as in ComfyUI's heap.
                job = min(pending, key=lambda job: (job.queue_key, job.upstream_id))
                arrival = self.jobs[job]
                position.running, position.ends_at = job, now + arrival.seconds
                self.ledger.start(job, now)
                self.began[arrival] = now
                self.ran[name].append(arrival)

    def before(self, arrival: Arrival) -> list[Arrival]:
        """What ran where a job ran, after that had come and before it began."""
        there = next(ran for ran in self.ran.values() if arrival in ran)
        earlier = there[: there.index(arrival)]
        return [each for each in earlier if self.began[each] + each.seconds > arrival.at]


NUMBERS = st.one_of(
    st.just(()),
    st.just((("front", True),)),
    st.sampled_from([0, -1, 5, 1e300, 9.3e18, 1e15, -1e308, 2**70]).map(lambda number: (("number", number),)),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda number: (("number", number),)),
)


def arrivals(tenant: str, maximum: int) -> st.SearchStrategy[list[Arrival]]:
    """What one tenant sends, in bursts and one by one; some of it is cancelled."""
    one = st.builds(
        lambda at, seconds, body, wait: Arrival(at, tenant, seconds, body, None if wait is None else at + wait),
        st.integers(0, 12),
        st.integers(1, 3),
        NUMBERS,
        st.one_of(st.none(), st.integers(0, 6)),
    )
    return st.lists(one, max_size=maximum, unique=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), arrivals("ben", 30), st.integers(0, 15))
def test_whatever_one_tenant_sends_anothers_single_job_waits_for_one_of_its_jobs_at_most(
    backends: int, max_queue: int, bens: list[Arrival], at: int
) -> None:
    """Be it the first, or one of several that come one after the other."""
    world = World(backends, max_queue, [*bens, Arrival(at, "anna", more=4)]).run()
    annas = [each for each in world.began if each.tenant == "anna"]
    assert len(annas) == 5
    for anna in annas:
        assert len(world.before(anna)) <= 1
        assert world.began[anna] - anna.at <= max((each.seconds for each in bens), default=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), arrivals("ben", 20), st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_so_it_is_where_others_have_single_jobs_too(
    backends: int, max_queue: int, bens: list[Arrival], times: list[int]
) -> None:
    singles = [Arrival(at, f"t{n}") for n, at in enumerate(times)]
    world = World(backends, max_queue, [*bens, *singles]).run()
    for single in singles:
        assert sum(each.tenant == "ben" for each in world.before(single)) <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), arrivals("ben", 30), st.integers(2, 8))
def test_tenants_with_much_to_do_take_turns(max_queue: int, bens: list[Arrival], count: int) -> None:
    """With another's jobs waiting all the time, nobody runs more than two in a row, but for what was placed before."""
    annas = [Arrival(0, "anna", body=(("client_id", str(n)),)) for n in range(count)]
    world = World(1, max_queue, [*annas, *bens]).run()
    order = [each.tenant for each in world.ran["b0"]]
    last = len(order) - order[::-1].index("anna")
    assert order[:last].count("ben") <= count + max_queue


def test_ben_does_not_starve_anna_with_jobs_at_the_front() -> None:
    """The attack as it was seen: always 25 such jobs waiting."""
    bens = [
        Arrival(at, "ben", body=(("front", True), ("client_id", f"{at}-{n}"))) for at in range(20) for n in range(25)
    ]
    anna = Arrival(5, "anna")
    world = World(1, 16, [*bens, anna]).run()
    assert world.began[anna] <= 6


@given(st.lists(NUMBERS, min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_a_lone_tenants_jobs_run_in_the_order_of_its_numbers(bodies: list[Any]) -> None:
    """As in ComfyUI, for what a backend has."""
    world = World(
        1, 100, [Arrival(0, "anna", 1, (*body, ("client_id", str(n)))) for n, body in enumerate(bodies)]
    ).run()
    numbers = {arrival: job.number for job, arrival in world.jobs.items()}
    rest = [numbers[each] for each in world.ran["b0"][1:]]
    assert rest == sorted(rest)


def test_those_who_wait_go_in_turn_and_each_tenants_own_by_number() -> None:
    ledger = World(1, 1, []).ledger

    def admit(tenant: str, **more: Any) -> Job:
        held = ledger.admit(tenant, read(json.dumps({"prompt": {}, **more}).encode()), [])
        ledger.hold(held)
        return held

    ben = [admit("ben"), admit("ben"), admit("ben", front=True), admit("ben", number=1e300)]
    anna, again = admit("anna"), admit("anna", number=-1e308)
    assert ledger.waiting.jobs() == [ben[2], again, ben[0], anna, ben[1], ben[3]]
    ledger.share.charge("ben", 10.0)
    assert ledger.waiting.jobs() == [again, ben[2], anna, ben[0], ben[1], ben[3]]


def test_a_front_job_takes_its_tenants_turn_and_nobody_elses() -> None:
    share, queue = FairShare(), list[Queued]()

    def join(tenant: str, number: float) -> int:
        queue_key = share.key_among(queue, "b", Queued(tenant, number))
        queue.append(Queued(tenant, number, queue_key))
        queue.sort(key=lambda each: each.queue_key)
        return next(position for position, each in enumerate(queue) if each.queue_key == queue_key)

    share.started(job("ben"), "b")
    assert [join("ben", number) for number in (1, 2, 3)] == [0, 1, 2]
    assert join("anna", 4) == 0
    # Ben's first is behind anna's, and so is what he puts before it.
    assert join("ben", -5) == 1
    assert join("carol", 6) == 1
    assert join("anna", 7) == 3
    assert [each.tenant for each in queue] == ["anna", "carol", "ben", "anna", "ben", "ben", "ben"]


def job(tenant: str) -> Job:
    """An accepted job."""
    return Job(tenant, "id", 0, 0.0, read(b'{"prompt": {}}'), 0, 0.0)


def order_of(queue: Iterable[Queued]) -> list[tuple[str, float]]:
    """A queue without its tags."""
    return [(each.tenant, each.number) for each in queue]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-50, 50), st.booleans()), max_size=300))
@example([("a", number, False) for number in range(300)])
@example([("a", -number, True) for number in range(300)])
@settings(max_examples=40, deadline=None)
def test_tags_keep_the_order_that_was_decided(steps: list[tuple[str, int, bool]]) -> None:
    """The first one runs now and then, so that a queue of up to 16 is never empty and its tags go on for long."""
    share, queue, clocks = FairShare(), list[Queued](), Shares()
    for tenant, number, runs in steps:
        if len(queue) == 16 or (runs and queue):
            served = queue.pop(0).tenant
            share.started(job(served), "b")
            clocks.charge(served, 10.0)
        wanted = order_of(queue)
        wanted.insert(position_in(queue, clocks, Queued(tenant, number)), (tenant, number))
        queue.append(Queued(tenant, number, share.key_among(queue, "b", Queued(tenant, number))))
        queue.sort(key=lambda each: each.queue_key)
        assert order_of(queue) == wanted
        assert len({each.queue_key for each in queue}) == len(queue)
