"""Events of jobs: in one write with what caused them, and taken back with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.jobs.state.job_end import End
from gateway.jobs.state.ledger import Ledger
from gateway.store.protocol import HistoryRecord, JobRemoval, StoreError
from gateway.store.webhook_records import DeliveryRecord, EventRecord, EventRemoval
from gateway.telemetry.metrics import Metrics
from gateway.webhooks.delivery import Deliveries
from gateway.webhooks.job_events import JobEvents
from gateway.webhooks.lookups import Lookups
from gateway.webhooks.model import OF_BACKENDS, OF_JOBS, TERMINAL, Endpoint, EventType, Secret, Source, Target
from gateway.webhooks.outbox import Outbox
from gateway.webhooks.queues import Limits, Queues
from gateway.webhooks.receivers import Receivers
from gateway.webhooks.sender import Sender
from gateway.webhooks.urls import Rules
from tests.support.ledgers import _LOOP, Paper, admit, new_ledger

OWN = {"extra_data": {"webhook": {"url": "https://own.example/", "events": ["job.succeeded"]}}}


class World:
    """A ledger on paper whose jobs' events go to an outbox. Nothing is sent."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.ledger: Ledger = new_ledger()
        paper = self.ledger._store
        assert isinstance(paper, Paper)
        self.paper: Any = paper
        self.outbox = Outbox(Queues(Limits(4, 2, 64)), 100, 3_600.0)
        for each in endpoints:
            self.outbox.put_endpoint(each)
        sender = Sender(Receivers(Rules(), Lookups(64, 4), list, lambda: set()))
        self.metrics = Metrics()
        deliveries = Deliveries(self.outbox, self.paper, sender, 1.0, self.metrics)
        self.events = JobEvents(self.paper, self.outbox, deliveries, self.metrics, "")
        self.ledger.steps.at_end = (self.events,)
        self.ledger.steps.news = self.events

    def run(self, job: Any, outcome: str = "success") -> bool:
        """Let a job run to its end."""
        self.ledger.send(job, "b1")
        self.ledger.start(job, 1)
        self.ledger.collect(job)
        return bool(_LOOP.run_until_complete(self.ledger.finish(job, outcome, b"{}", b"{}")))

    def told(self) -> list[str]:
        """The types of the events in the outbox."""
        _LOOP.run_until_complete(asyncio.sleep(0))
        return [str(each.type) for each in self.outbox.events_of("t")]


def endpoint(tenant: str = "t", events: frozenset[EventType] = TERMINAL) -> Endpoint:
    """An endpoint."""
    return Endpoint("we_1", tenant, "https://hooks.example/", events, (Secret("whsec_x"),), 1.0)


@pytest.fixture(autouse=True)
def loop() -> Any:
    """The loop of the paper's futures."""
    asyncio.set_event_loop(_LOOP)
    yield
    asyncio.set_event_loop(None)


@pytest.mark.parametrize(("outcome", "type_"), [("success", "job.succeeded"), ("error", "job.failed")])
def test_the_end_and_its_event_are_one_write(outcome: str, type_: str) -> None:
    world = World(endpoint())
    job = admit(world.ledger)
    writes = []
    write = world.paper.write
    world.paper.write = lambda changes: [writes.append(list(changes)), write(changes)][1]
    assert world.run(job, outcome)
    (end,) = [changes for changes in writes if isinstance(changes[0], HistoryRecord)]
    assert [type(change) for change in end] == [HistoryRecord, EventRecord, DeliveryRecord]
    assert json.loads(end[1].payload)["data"]["prompt_id"] == job.prompt_id
    assert world.told() == [type_]
    assert len(world.outbox.queues) == 1


def test_a_result_that_breaks_the_payload_ends_its_job_and_tells_the_end() -> None:
    world = World(endpoint())
    job = admit(world.ledger)

    def broken(_: bytes) -> bytes:
        raise RecursionError("too deep")

    world.ledger.send(job, "b1")
    world.ledger.start(job, 1)
    world.ledger.collect(job)
    end = End("error", {}, broken)
    assert _LOOP.run_until_complete(world.ledger.finish(job, "error", b"{}", b"{}", end=end))
    (event,) = [change for change in world.paper.changes if isinstance(change, EventRecord)]
    data = json.loads(event.payload)["data"]
    assert (data["prompt_id"], data["status"], data["error"]) == (job.prompt_id, "failed", None)
    assert world.told() == ["job.failed"]


def test_a_job_that_is_cancelled_before_it_ran_tells_it() -> None:
    world = World(endpoint())
    world.ledger.cancel(admit(world.ledger))
    assert [type(change) for change in world.paper.changes] == [JobRemoval, EventRecord, DeliveryRecord]
    assert world.told() == ["job.cancelled"]


def test_a_cancellation_that_the_journal_does_not_have_is_told_to_nobody() -> None:
    world = World(endpoint())
    job, full = admit(world.ledger), asyncio.Future[None](loop=_LOOP)
    world.paper.write = lambda _: full
    world.ledger.cancel(job)
    assert world.told() == []
    full.set_result(None)
    assert world.told() == ["job.cancelled"]


def test_a_refused_prompt_tells_nothing() -> None:
    world = World(endpoint(events=OF_JOBS))
    world.ledger.withdraw(admit(world.ledger))
    assert (world.told(), [type(change) for change in world.paper.changes]) == ([], [JobRemoval])


def test_an_end_that_came_to_nothing_is_told_to_nobody_and_the_true_one_has_its_id() -> None:
    world = World(endpoint())
    job = admit(world.ledger)
    write = world.paper.write

    def slowly(changes: Sequence[Any]) -> Any:
        done = write(changes)
        if not isinstance(changes[0], HistoryRecord):
            return done
        world.paper.write = write
        late: asyncio.Future[None] = _LOOP.create_future()
        _LOOP.call_soon(world.ledger.lose, job)
        _LOOP.call_later(0.01, late.set_result, None)
        return late

    world.paper.write = slowly
    assert world.run(job) is False
    (event,) = [each for each in world.paper.changes if isinstance(each, EventRecord)]
    assert world.paper.changes[-1] == EventRemoval(event.id)
    assert world.told() == []
    assert world.run(job) is True
    assert [each.id for each in world.outbox.events_of("t")] == [event.id]


@pytest.mark.parametrize("events", [OF_JOBS, frozenset({EventType.JOB_SUCCEEDED})])
def test_a_job_that_is_cancelled_while_its_end_is_written_is_told_cancelled_alone(events: frozenset[EventType]) -> None:
    world = World(endpoint(events=events))
    job = admit(world.ledger)
    ended = world.events.changes(job, End("success", {}))
    assert [type(each) for each in ended] == [EventRecord, DeliveryRecord]
    cancelled = world.events.changes(job, End("cancelled"))
    world.events.ended(job)
    assert cancelled[0] == EventRemoval(ended[0].id)  # type: ignore[union-attr]
    assert world.told() == (["job.cancelled"] if events == OF_JOBS else [])
    assert world.events.undone(job) == ()


def test_nobody_else_hears_of_a_job() -> None:
    world = World(endpoint("u", OF_JOBS))
    assert world.run(admit(world.ledger))
    assert not any(isinstance(each, EventRecord) for each in world.paper.changes)
    world = World()
    assert world.run(admit(world.ledger))
    assert len(world.outbox) == 0


def test_a_prompts_own_webhook_gets_what_it_asked_for() -> None:
    world = World()
    for outcome in ("error", "success"):
        assert world.run(admit(world.ledger, **OWN), outcome)
    (event,) = world.outbox.events_of("t")
    (delivery,) = world.outbox.deliveries_of(event.id)
    assert (event.type, delivery.endpoint_id) == (EventType.JOB_SUCCEEDED, "")
    assert delivery.target == Target("https://own.example/", None)


def test_earlier_steps_are_told_once_and_in_order() -> None:
    world = World(endpoint(events=OF_JOBS))
    job = admit(world.ledger)
    world.ledger.send(job, "b1")
    world.ledger.start(job, 1)
    _LOOP.run_until_complete(asyncio.sleep(0))
    world.ledger.lose(job)
    assert world.run(job)
    world.ledger.steps.queued(job)
    _LOOP.run_until_complete(asyncio.sleep(0))
    assert world.told() == ["job.queued", "job.started", "job.succeeded"]
    waiting = admit(world.ledger)
    world.ledger.steps.queued(waiting)
    world.ledger.steps.queued(waiting)
    _LOOP.run_until_complete(asyncio.sleep(0))
    assert world.told()[3:] == ["job.queued"]
    # Each was written once: a second time would send it again.
    assert sum(isinstance(each, EventRecord) for each in world.paper.changes) == 4


def test_who_is_an_admin_no_more_hears_of_no_backend() -> None:
    own = replace(endpoint(events=OF_BACKENDS | TERMINAL), is_admin=True)
    of_file = replace(own, id="we_2", tenant="ops", source=Source.CONFIG)
    world = World(own, of_file)
    admins = {"t"}
    world.events.has_admin = admins.__contains__
    world.events.backend_down("b1")
    admins.clear()
    world.events.backend_up("b1")
    world.events.backend_poisoned("b1")
    _LOOP.run_until_complete(asyncio.sleep(0))
    assert world.told() == ["backend.down"]
    assert len(world.outbox.events_of("ops")) == 3
    # Its own jobs it hears of all the same.
    assert world.run(admit(world.ledger))
    assert world.told() == ["backend.down", "job.succeeded"]


def test_an_event_that_the_journal_refuses_is_logged_and_counted() -> None:
    world = World(endpoint(events=OF_JOBS))
    job = admit(world.ledger)

    def refused(_: Sequence[Any]) -> asyncio.Future[None]:
        done: asyncio.Future[None] = _LOOP.create_future()
        done.set_exception(StoreError("the disk is too slow"))
        return done

    world.paper.write = refused
    with capture_logs() as lines:
        world.ledger.steps.queued(job)
        # What became of a delivery may be refused, too.
        world.events._deliveries.write([EventRemoval("evt_1")])
        _LOOP.run_until_complete(asyncio.sleep(0))
    assert sorted(line["event"] for line in lines) == ["webhook_change_lost", "webhook_event_lost"]
    (lost,) = [line for line in lines if line["event"] == "webhook_event_lost"]
    assert (lost["type"], lost["prompt_id"], lost["log_level"]) == ("job.queued", job.prompt_id, "error")
    assert world.metrics.webhook_deliveries.labels("lost")._value.get() == 1
    assert world.told() == []
