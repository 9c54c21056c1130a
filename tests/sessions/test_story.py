"""/queue, /history, `status` and events tell one story, whatever happens to a tenant's jobs on several backends."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.bus import LocalBus, session_topic
from gateway.comfy import events
from gateway.comfy.events import TERMINAL_SLOT, Frame, Kind
from gateway.jobs.events.client_events import ClientEvents
from gateway.jobs.state.job import Job
from gateway.jobs.state.shown_running import Listener
from gateway.jobs.state.transitions import State
from gateway.sessions.sequencer import Sequencer
from tests.support.ledgers import admit, new_ledger

BACKENDS = ("b1", "b2")
TENANTS = ("anna", "ben")
SESSIONS = ("s1", "s1", "s2", None)
RUNS = int(os.environ.get("MODEL_RUNS", "0"))


class Client:
    """A socket: it hears frames through a sequencer of its own, and keeps the state that they tell of."""

    def __init__(self, story: Story, tenant: str, session: str, *, interleaves: bool) -> None:
        self.tenant, self.session, self.interleaves = tenant, session, interleaves
        self.sequencer = Sequencer(interleave=interleaves)
        self.listener: Listener = story.ledger.listeners.join(tenant, session, interleaves=interleaves)
        self.started: list[str] = []
        self.ended: list[str] = []
        self._story = story
        story.bus.subscribe(session_topic(tenant, session), self.hear)

    def hear(self, frame: Frame) -> None:
        """Take a frame; look at /history where ComfyUI's clients do."""
        for told in self.sequencer.feed(frame):
            prompt_id = told.prompt_id or ""
            if told.kind is Kind.END or told.slot == TERMINAL_SLOT:
                assert self._story.ledger.find(self.tenant, prompt_id) is None
                assert self._story.ledger.history.find(self.tenant, prompt_id) is not None
            if told.kind is Kind.END:
                self.ended.append(prompt_id)
            elif prompt_id not in self.started:
                assert b"execution_start" in told.payload
                self.started.append(prompt_id)
            else:
                assert b"execution_start" not in told.payload
            assert prompt_id not in self.ended or told.kind is Kind.END

    @property
    def running(self) -> list[str]:
        """The prompts that it was told of, and not to their end."""
        return [prompt_id for prompt_id in self.started if prompt_id not in self.ended]


class Story(RuleBasedStateMachine):
    """Jobs start, end, are lost and run again; each backend runs one at a time, as a ComfyUI does."""

    def __init__(self) -> None:
        super().__init__()
        self.bus = LocalBus()
        self.ledger = new_ledger(self.bus)
        self.client_events = ClientEvents(self.bus, self.ledger.begin)
        self.loop = asyncio.new_event_loop()
        self.all: list[Job] = []
        self.clients: list[Client] = []
        self.unanswered: list[Job] = []
        # What each backend has started and not yet been collected of, in its order.
        self.line: dict[str, list[Job]] = {backend: [] for backend in BACKENDS}

    def teardown(self) -> None:
        """Close the loop of this run."""
        self.loop.close()

    # -- what happens --------------------------------------------------------------------------------------------

    @initialize(serial=st.sampled_from([["s1"], ["s1", "s2"], []]), interleaves=st.booleans())
    def connect(self, serial: list[str], interleaves: bool) -> None:
        """Clients connect before their jobs begin: anna's in the sessions drawn, ben's in one."""
        self.clients += [Client(self, "anna", session, interleaves=False) for session in serial]
        if interleaves:
            self.clients.append(Client(self, "anna", "s2", interleaves=True))
        self.clients.append(Client(self, "ben", "s1", interleaves=interleaves))

    @rule(
        tenant=st.sampled_from(TENANTS), sessions=st.lists(st.sampled_from(SESSIONS), min_size=1), at_once=st.booleans()
    )
    def submit(self, tenant: str, sessions: list[str | None], at_once: bool) -> None:
        """Prompts are accepted; their answers may be written later."""
        for session in sessions:
            self._submit(tenant, session, at_once)

    def _submit(self, tenant: str, session: str | None, at_once: bool) -> None:
        more = {"client_id": session} if session else {}
        job = admit(self.ledger, tenant, **more)
        self.ledger.hold(job)
        self.all.append(job)
        self.client_events.hold_until_answered(job)
        if at_once:
            self.client_events.answered(job)
        else:
            self.unanswered.append(job)

    @precondition(lambda self: self.unanswered)
    @rule()
    def answer(self) -> None:
        """The oldest answer that is due is written."""
        self.client_events.answered(self.unanswered.pop(0))

    @rule(steps=st.lists(st.tuples(st.sampled_from(BACKENDS), st.integers(0, 9)), min_size=8, max_size=20))
    def go_on(self, steps: list[tuple[str, int]]) -> None:
        """Backends go on, each with what comes next there or, now and then, with what may come later."""
        for backend, n in steps:
            line = self.line[backend]
            runs = [job for job in line if job.state is State.RUNNING]
            if line and line[0].state is State.COLLECTING and n < 5:
                self._end(line.pop(0), "success" if n else "error")
            elif not runs:
                self._start(backend, n)
            elif n < 4:
                self._say(runs[0], "executing" if n % 2 else "progress")
            else:
                self.ledger.collect(runs[0])

    def _start(self, backend: str, n: int) -> None:
        """A waiting job runs, while the end of the one before may be collected still."""
        waiting = self.ledger.waiting.jobs()
        if not waiting:
            return
        job = waiting[n % len(waiting)]
        self.ledger.send(job, backend)
        if self.line[backend]:
            self.client_events.follow(job, self.line[backend][-1])
        self.ledger.start(job, 1)
        self.client_events.begin(job)
        self.client_events.start(job, 1)
        self.line[backend].append(job)

    def _say(self, job: Job, type_: str) -> None:
        event = events.Event(type_, {"node": "1"}, job.prompt_id, b"")
        self.client_events.tell(job, events.frame_of(event, job.prompt_id, type_.encode()))

    def _end(self, job: Job, outcome: str) -> None:
        assert self.loop.run_until_complete(self.ledger.finish(job, outcome, b"{}", b"{}"))
        self.client_events.start(job, 1)
        self.client_events.tell(job, Frame(Kind.LIFECYCLE, b"execution_success", job.prompt_id, TERMINAL_SLOT))
        self.client_events.tell(job, events.end_frame(job.prompt_id))
        self.client_events.release_followers(job)

    @rule(backend=st.sampled_from(BACKENDS))
    def die(self, backend: str) -> None:
        """A backend is gone: what it had waits to run again."""
        lost, self.line[backend] = self.line[backend], []
        for job in lost:
            self.ledger.lose(job)
            self.client_events.release_followers(job)

    # -- what everybody sees -------------------------------------------------------------------------------------

    def _queue(self, tenant: str) -> tuple[list[str], list[str]]:
        shown: dict[str, Any] = json.loads(self.ledger.queue_json(tenant))
        running, pending = ([item[1] for item in shown[key]] for key in ("queue_running", "queue_pending"))
        return running, pending

    @invariant()
    def each_job_is_in_one_place(self) -> None:
        """A job is in /queue or in /history, and `status` counts those in /queue."""
        for tenant in TENANTS:
            running, pending = self._queue(tenant)
            shown = running + pending
            assert len(shown) == len(set(shown)) == self.ledger.remaining(tenant)
            for job in self.all:
                if job.tenant == tenant:
                    ended = self.ledger.history.find(tenant, job.prompt_id) is not None
                    assert (job.prompt_id in shown) != ended

    @invariant()
    def one_job_runs_on_a_backend(self) -> None:
        """Nobody sees two running jobs on one backend, and a tenant told of one prompt at a time sees one in all."""
        everything = self.ledger.shown_running(None)
        assert len({job.backend for job in everything}) == len(everything)
        assert all(job.state in (State.RUNNING, State.COLLECTING) for job in everything)
        for tenant in TENANTS:
            running, _ = self._queue(tenant)
            own = [client for client in self.clients if client.tenant == tenant]
            if own and all(client.interleaves for client in own):
                places = [job.backend for job in self.ledger.shown_running(tenant)]
                assert len(set(places)) == len(places)
            else:
                assert len(running) <= 1

    @invariant()
    def events_agree_with_the_queue(self) -> None:
        """The prompt that a client was told of last is the one that it sees running."""
        for tenant in TENANTS:
            running, pending = self._queue(tenant)
            own = [client for client in self.clients if client.tenant == tenant]
            for client in own:
                if client.interleaves:
                    # All that runs is told, and nothing as running that waits for its turn on a backend.
                    assert set(client.running) <= set(running + pending)
                else:
                    assert len(client.running) <= 1
                    if len({other.session for other in own if not other.interleaves}) == 1:
                        assert set(client.running) <= set(running)
                        mine = [job for job in self.ledger.jobs(tenant) if job.prompt_id in running]
                        if mine and mine[0].submission.session_id == client.session:
                            assert client.running == running


# Without shrinking: what fails is a schedule of hundreds of steps, and a shorter one takes minutes to find.
Story.TestCase.settings = settings(
    max_examples=RUNS or 50, stateful_step_count=30, deadline=None, phases=[Phase.explicit, Phase.generate]
)
TestStory = Story.TestCase
