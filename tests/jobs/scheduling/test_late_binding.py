"""Jobs that are bound late, over a real ledger: what the board and the heads say after any events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health, Pulse
from gateway.jobs.scheduling.fleet_board import FleetBoard
from gateway.jobs.scheduling.late_binding import LateBinding
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.state.job import Job
from gateway.jobs.state.submission import read
from gateway.jobs.state.transitions import State
from gateway.settings import RoutingSettings, Settings
from gateway.telemetry.metrics import Metrics
from tests.support.ledgers import Paper, new_ledger
from tests.support.workflows import text_to_image

NAMES = ("b1", "b2", "b3")
STEP = st.one_of(
    st.tuples(
        st.just("come"),
        st.sampled_from(["anna", "ben"]),
        st.sampled_from(["x", "y"]),
        st.integers(1, 3),
        st.sampled_from([{}, {"front": True}, {"number": -5}, {"extra_data": {"gateway_priority": 2}}]),
        st.sampled_from([None, frozenset({"b1"}), frozenset({"b2", "b3"})]),
    ),
    st.tuples(st.sampled_from(["start", "end", "lose", "cancel"]), st.integers(0, 5)),
    st.tuples(st.sampled_from(["drain", "resume", "judge"]), st.sampled_from(NAMES)),
)


class Room:
    """A ledger, three backends, and the jobs that wait for them."""

    def __init__(self, ahead: int) -> None:
        self.ledger = new_ledger()
        known = Settings(backends=[{"url": f"http://127.0.0.1:{n}", "name": name} for n, name in enumerate(NAMES, 1)])
        paper: Any = Paper()
        self.fleet = Fleet(known, Metrics(), "id", paper)
        for name in NAMES:
            pulse = Pulse(30.0, time.monotonic(), Health.UP)
            client: Any = None
            self.fleet.backends[name] = Backend(name, "", 16, False, client, pulse, connected=True)
        self.learning = Learning()
        self.board = self._board(ahead)
        self.version = 1
        self.late = LateBinding(
            *(self.ledger, self.fleet, self.learning, self.board, RoutingSettings(ahead=ahead), self.ledger.share),
            *(lambda job: True, lambda job: job.able, lambda tenant: tenant != "eve"),
        )
        self.ahead = ahead

    def _board(self, ahead: int) -> FleetBoard:
        return FleetBoard(self.ledger, self.fleet, self.learning, ahead, lambda job: True)

    def come(self, tenant: str, model: str, steps: int, more: dict[str, Any], able: frozenset[str] | None) -> Job:
        """A prompt comes, and waits."""
        job = self.ledger.admit(
            tenant, read(json.dumps({"prompt": text_to_image(1, steps, model), **more}).encode()), []
        )
        job.able = able
        self.ledger.hold(job)
        return job

    def send(self) -> Iterator[tuple[Job, Backend]]:
        """Send all that the plan sends now."""
        for job in self.late.to_judge(self.version):
            self.late.ready(job)
        while (choice := self.late.choose()) is not None:
            job, backend = choice
            self.ledger.send(job, backend.name)
            self.ledger.taken(job, job.upstream_id, b"{}")
            yield choice

    def on_backends(self, *states: State) -> list[Job]:
        """The jobs on backends in some states."""
        return [job for name in NAMES for job in self.ledger.jobs_on(name) if job.state in states]

    def do(self, what: str, which: Any) -> None:
        """One event."""
        if what in ("drain", "resume"):
            self.fleet.backends[which].drained = what == "drain"
            self.board.all_changed()
        elif what == "judge":
            self.version += 1
        elif what == "start":
            for job in self.on_backends(State.PENDING)[which : which + 1]:
                if not self.ledger.load(job.backend or "")[1]:
                    self.ledger.start(job, 0)
                    self.learning.started(job)
        elif what == "cancel":
            for job in self.ledger.jobs()[which : which + 1]:
                self.ledger.cancel(job)
        else:
            for job in self.on_backends(State.RUNNING)[which : which + 1]:
                if what == "lose":
                    self.ledger.lose(job)
                else:
                    self.learning.succeeded(job, cast(str, job.backend), 5.0)
                    self.ledger.cancel(job)

    def check(self) -> None:
        """The board is as one that is made anew, and each waiting job is in one place."""
        waiting = {job.prompt_id for job in self.ledger.waiting.jobs()}
        assert len(self.late) == len(waiting)
        self.board.refresh()
        kept = self.ledger.steps.on_backend
        anew = self._board(self.ahead)
        anew.refresh()
        self.ledger.steps.on_backend = kept
        assert anew.late.views.keys() == self.board.late.views.keys()
        for name, view in anew.late.views.items():
            mine = self.board.late.views[name]
            assert (view.slots, view.pending, view.running) == (mine.slots, mine.pending, mine.running)
            assert mine.ends_at == pytest.approx(view.ends_at, abs=2.5)
        for name, view in anew.at_once.views.items():
            assert self.board.at_once.views[name].slots == view.slots


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1), st.lists(STEP, max_size=25))
def test_no_ineligible_backend_gets_a_job_and_none_is_forgotten(ahead: int, steps: list[tuple[Any, ...]]) -> None:
    room = Room(ahead)
    for step in steps:
        if step[0] == "come":
            room.come(*step[1:])
        else:
            room.do(*step)
        for job, backend in room.send():
            assert backend.eligible
            assert job.able is None or backend.name in job.able
            assert sum(room.ledger.load(backend.name)) <= 1 + ahead
        room.check()


def test_a_tenant_at_its_limit_waits_and_others_go() -> None:
    room = Room(0)
    room.come("eve", "x", 1, {}, None)
    anna = room.come("anna", "x", 1, {}, None)
    assert [job for job, _ in room.send()] == [anna]
    assert len(room.late) == 1


def test_jobs_that_are_bound_at_once_are_counted_apart() -> None:
    room = Room(0)
    room.late._is_late = lambda job: job.tenant != "ben"  # type: ignore[method-assign]
    job = room.come("ben", "x", 1, {}, None)
    room.come("anna", "x", 1, {}, None)
    assert (room.late.has_at_once("ben"), room.late.has_at_once("anna")) == (True, False)
    room.ledger.cancel(job)
    assert not room.late.has_at_once("ben")


def test_a_job_that_is_to_avoid_a_backend_goes_elsewhere_if_it_can() -> None:
    room = Room(0)
    job = room.come("anna", "x", 1, {}, None)
    job.avoid, job.lacking = frozenset({"b1"}), frozenset({"b2"})
    assert [backend.name for _, backend in room.send()] == ["b3"]
    alone = room.come("anna", "x", 1, {}, None)
    alone.avoid = frozenset(NAMES)
    assert len(list(room.send())) == 1


def test_a_job_goes_to_a_backend_that_it_is_to_avoid_while_no_other_is_up() -> None:
    """Also if the others went down after it had its place among those that wait, and it waits again for them later."""
    room = Room(0)
    room.do("drain", "b3")
    for name in ("b1", "b2"):
        room.fleet.backends[name].max_queue = 0
    room.board.all_changed()
    job = room.come("anna", "x", 1, {}, None)
    job.avoid = frozenset({"b1"})
    assert not list(room.send())
    for name in ("b1", "b2"):
        room.fleet.backends[name].max_queue = 16
    room.do("drain", "b2")
    assert [backend.name for _, backend in room.send()] == ["b1"]
    room.ledger.lose(job)
    room.do("resume", "b2")
    assert [backend.name for _, backend in room.send()] == ["b2"]


def test_slow_and_ejected_backends_get_only_what_no_other_can_run() -> None:
    room = Room(0)
    room.fleet.backends["b1"].pulse.health = Health.SLOW
    assert room.fleet.ejections.eject("b2", time.monotonic(), NAMES)
    jobs = [room.come("anna", "x", 1, {}, None) for _ in range(40)]
    assert [backend.name for _, backend in room.send()] == ["b3"]
    slow = room.come("anna", "x", 1, {}, frozenset({"b1"}))
    ejected = room.come("anna", "x", 1, {}, frozenset({"b2"}))
    assert {job.prompt_id: backend.name for job, backend in room.send()} == {
        slow.prompt_id: "b1",
        ejected.prompt_id: "b2",
    }
    assert all(job.state is State.WAITING for job in jobs[1:])


def test_a_higher_priority_goes_first_whatever_its_tenant_got_until_others_have_waited() -> None:
    """Two steps make up for ten minutes; jobs of one priority gain nothing against each other."""
    for waited, goes_first in ((590.0, "anna"), (610.0, "ben")):
        room = Room(0)
        room.do("drain", "b2")
        room.do("drain", "b3")
        room.ledger.share.charge("anna", 500.0)
        jobs = {}
        for n in range(20):
            jobs["ben"] = room.come("ben", f"model-{n}", 1, {}, None)
            jobs["ben"].accepted_at -= waited
        jobs["anna"] = room.come("anna", "x", 50, {"extra_data": {"gateway_priority": 2}}, None)
        assert [job.tenant for job, _ in room.send()] == [goes_first]


def test_a_lower_priority_goes_where_a_higher_one_does_not() -> None:
    room = Room(0)
    room.do("drain", "b3")
    room.come("anna", "x", 1, {"extra_data": {"gateway_priority": 2}}, frozenset({"b3"}))
    room.come("ben", "x", 1, {"extra_data": {"gateway_priority": 1}}, frozenset({"b1"}))
    room.come("ben", "x", 1, {}, None)
    assert sorted((job.tenant, backend.name) for job, backend in room.send()) == [("ben", "b1"), ("ben", "b2")]
