"""Relay of backends' events: find the job, change its state, rename its files, pass the frame on.

Events find their session by prompt_id, whoever's socket it is. Ids and file names become those the client knows.
Terminal events are held until completion; ``status`` is never relayed (it is made from the ledger).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from gateway.comfy import events, previews
from gateway.comfy.events import Event, Frame, Kind
from gateway.comfy.file_refs import finished
from gateway.comfy.previews import Head
from gateway.comfy.redaction import redacting_error
from gateway.fleet.backend import Backend
from gateway.jobs.events.client_events import ClientEvents
from gateway.jobs.events.results import LARGE, Results, dropped, may_be_told, translated_head
from gateway.jobs.files.outputs import Outputs
from gateway.jobs.lifecycle.completion import Completion
from gateway.jobs.scheduling.backend_prompts import drop_copies
from gateway.jobs.state.job import ENDED, Assignment, Job, State
from gateway.jobs.state.job_log import log_phase
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.progress import Progress
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks, in_turns

MAX_BEFORE_END = 8
_BEFORE_START = (State.SENDING, State.PENDING)


@dataclass(frozen=True, slots=True)
class Caught:
    """A frame that was to be told, of a job as it was assigned then."""

    job: Job
    assignment: Assignment | None
    type: str
    frame: Frame


class EventRelay:
    """Turns a backend's messages into ledger moves and frames on the bus.

    Args:
        is_kept_apart: returns True for a job whose errors must tell no path of the host.
    """

    def __init__(
        self,
        ledger: Ledger,
        completion: Completion,
        outputs: Outputs,
        client_events: ClientEvents,
        metrics: Metrics,
        results: Results,
        is_kept_apart: Callable[[Job], bool],
    ) -> None:
        self._ledger = ledger
        self._completion = completion
        self._outputs = outputs
        self._client_events = client_events
        self._metrics = metrics
        self._results = results
        self._is_kept_apart = is_kept_apart
        self._tasks = Tasks("relay")
        self._current: dict[str, Job] = {}
        self._strays: dict[str, list[Event]] = {}

    def tenant_at(self, backend: Backend) -> str:
        """Return the tenant whose job began last on a backend; empty if none has."""
        job = self._current.get(backend.name)
        return job.tenant if job is not None else ""

    async def close(self) -> None:
        """End what is under way."""
        await self._tasks.close()

    def heard_event(self, backend: Backend, event: Event) -> None:
        """A text message of a backend."""
        if event.type == "status":
            return
        job = self._find(backend, event)
        if job is None:
            return
        self._heard_now(backend, job, event)

    def _heard_now(self, backend: Backend, job: Job, event: Event) -> None:
        if _may_tell_too_much(job, event):
            event = finished(self._clearing(job, event))
        told = self._heard(backend, job, event)
        if told is None:
            return
        payload = told.raw
        if told.type not in events.PROGRESS or job.live.added:
            payload = finished(self._wording(backend, job, told))
        frame = self._frame_of(job, told, payload)
        self._tell(job, told.type, frame if len(payload) < LARGE else self._results.relieve(job, frame))

    async def heard_long_event(self, backend: Backend, event: Event) -> None:
        """Hear a long text message: others have their turn while it is read. The next one comes when this returns."""
        caught = await self.catch_event(backend, event)
        if caught is not None:
            frame = caught.frame
            self.tell_caught(caught, frame if len(frame.said) < LARGE else self._results.relieve(caught.job, frame))

    async def catch_event(self, backend: Backend, event: Event) -> Caught | None:
        """Hear a long text message, and return what is to be told of it, which `tell_caught` tells."""
        job = self._find(backend, event) if event.type != "status" else None
        if job is None:
            return None
        assignment = job.assignment
        if _may_tell_too_much(job, event):
            event = await in_turns(self._clearing(job, event))
        told = self._heard(backend, job, event) if _is_at(job, assignment) else None
        if told is None:
            return None
        assignment = job.assignment
        payload = await in_turns(self._wording(backend, job, told))
        if not _is_at(job, assignment):
            # It was cancelled meanwhile, or is elsewhere.
            return None
        return Caught(job, assignment, told.type, self._frame_of(job, told, payload))

    def tell_caught(self, caught: Caught, frame: Frame) -> None:
        """Tell what was caught, if the job is still where it was said."""
        if _is_at(caught.job, caught.assignment):
            self._tell(caught.job, caught.type, frame)

    def _find(self, backend: Backend, event: Event) -> Job | None:
        """Find the job that an event is about, and hear what was kept of it before its id was known."""
        job = self._job_of(backend, event.prompt_id)
        if job is None:
            self._heard_stray(backend, event)
            return None
        if self._strays and (strays := self._strays.pop(backend.name, None)) and strays[0].prompt_id == event.prompt_id:
            for earlier in strays:
                self._heard_now(backend, job, earlier)
        return job

    def _heard(self, backend: Backend, job: Job, event: Event) -> Event | None:
        """Take note of an event; return it as it is to be passed on, None if it is not."""
        job.live.heard_at = time.monotonic()
        if event.prompt_id is not None and job.state in _BEFORE_START:
            self._start(backend, job, event)
        if job.live.added is None or job.live.added:
            told = self._outputs.without_added(job, event.data)
            if told is None:
                return None
            if told is not event.data:
                event = replace(event, data=told, raw=events.encode(event.type, told))
        if event.type == "execution_cached":
            _note_cached(job, event)
        if event.type in events.TERMINAL:
            if job.state is State.RUNNING:
                job.live.terminal = (event.type, event.data)
                self._completion.collect(job, at_once=False)
        elif event.ends_prompt:
            if job.state in (State.RUNNING, State.COLLECTING):
                self._completion.collect(job, at_once=True)
        elif not self._told_before(job, event.type):
            if event.type != "execution_start":
                self._client_events.start(job, int(time.time() * 1000))
            if job.live.told is None:
                job.live.told = Progress()
            return job.live.told.completed(event) if job.live.told.is_again else event
        return None

    def heard_binary(self, backend: Backend, data: bytes) -> None:
        """A binary message of a backend: one with metadata says whose it is, others belong to what runs there."""
        found = self._sender_of(backend, data)
        if found is None:
            return
        job, head = found
        if job.submission.needs_secrets and job.submission.censor().is_in(data):
            return
        if not head.end:
            # A text, or what only a custom node knows.
            data = previews.replace(data, job.upstream_id.encode(), job.prompt_id.encode())
            data = self._outputs.reveal_bytes(job, data)
        self._tell_binary(backend, job, data, head)

    async def heard_large_binary(self, backend: Backend, data: bytes) -> None:
        """A large one: it is looked through a piece at a time, and nothing more is read until there is room for it."""
        found = self._sender_of(backend, data)
        if found is None:
            return
        job, head = found
        assignment = job.assignment
        if not await may_be_told(job, data, head):
            dropped(job, "it holds a key, or a name that must not be told", len(data))
        elif job.assignment is assignment:
            if not head.end:
                data = previews.replace(data, job.upstream_id.encode(), job.prompt_id.encode())
                await asyncio.sleep(0)
            self._tell_binary(backend, job, data, head)
        await self._results.spool.room()

    def _sender_of(self, backend: Backend, data: bytes) -> tuple[Job, Head] | None:
        """The job that a binary message is of, if it has a session, and what is before the picture."""
        head = previews.head_of(data)
        if head is None:
            return None
        prompt_id = head.metadata.get("prompt_id")
        job = self._job_of(backend, prompt_id if isinstance(prompt_id, str) else None)
        if job is None:
            return None
        job.live.heard_at, job.live.cached_told = time.monotonic(), True
        return (job, head) if job.submission.session_id is not None else None

    def _tell_binary(self, backend: Backend, job: Job, data: bytes, head: Head) -> None:
        if job.state in _BEFORE_START:
            self.start(backend, job, int(time.time() * 1000))
        self._client_events.start(job, int(time.time() * 1000))
        kind = self._results.kind_of(job, backend.name, head)
        picture = memoryview(data)[head.end :]
        frame = self._results.binary(job, kind, translated_head(job, data, head), picture)
        frame.repeats = kind is Kind.PREVIEW and job.live.told is not None and job.live.told.is_behind
        self._tell(job, str(kind), frame)

    def _job_of(self, backend: Backend, prompt_id: str | None) -> Job | None:
        """The job that a message is about; without an id, the one that runs there."""
        if prompt_id is not None:
            return self._ledger.find_upstream(backend.name, prompt_id)
        job = self._current.get(backend.name)
        return job if job is not None and job.backend == backend.name and job.state is State.RUNNING else None

    def _heard_stray(self, backend: Backend, event: Event) -> None:
        """Not a job of ours there, as far as we know.

        ComfyUI tells of a start only whoever sent the prompt, so this is a copy that must not run: it was cancelled
        or given up on its way, and may have an id of the backend's own. Unless it is the prompt whose answer, with
        that id, is still awaited: then what it says is kept until it is known.
        """
        upstream_id = event.prompt_id
        if upstream_id is None:
            return
        if event.ends_prompt:
            self._ledger.orphans.remove(backend.name, upstream_id)
        if event.type == "execution_start":
            self._strays[backend.name] = []
        strays = self._strays.get(backend.name)
        if strays is None or (strays and strays[0].prompt_id != upstream_id):
            return
        if self._awaits_answer(backend) and not self._ledger.orphans.has(backend.name, upstream_id):
            if event.type in events.LIFECYCLE:
                strays.append(event)
            return
        del self._strays[backend.name]
        if not event.ends_prompt:
            self._ledger.orphans.add(backend.name, upstream_id)
            self._tasks.start(drop_copies(self._ledger, backend, [upstream_id]), f"drop:{upstream_id}")

    def _awaits_answer(self, backend: Backend) -> bool:
        """Whether a prompt was sent there whose id there is not known yet."""
        return any(job.state is State.SENDING for job in self._ledger.jobs_on(backend.name))

    def _start(self, backend: Backend, job: Job, event: Event) -> None:
        start_time = events.timestamp_of(event.data)
        self.start(backend, job, int(time.time() * 1000) if start_time is None else start_time)

    def start(self, backend: Backend, job: Job, start_time: int) -> None:
        """The job runs there."""
        before = self._current.get(backend.name)
        if before is not None and before.state is State.COLLECTING and before.backend == backend.name:
            # If the end of the one before was not heard, the next probe finds it.
            self._client_events.follow(job, before)
        self._current[backend.name] = job
        self._ledger.start(job, start_time)
        self._client_events.begin(job)
        waited = (job.started_at or job.accepted_at) - job.accepted_at
        self._metrics.wait_seconds.labels(backend.name).observe(waited)
        log_phase(job, "running", waited, backend=backend.name)

    def _told_before(self, job: Job, type_: str) -> bool:
        """Whether a job that runs a second time would tell its client twice that it started, or tell it late."""
        live = job.live
        if type_ == "execution_start":
            before, live.start_told = live.start_told, True
            return before
        if type_ == "execution_cached":
            before, live.cached_told = live.cached_told, True
            return before
        # What is cached comes before all news, or not at all: this backend's word of it may have gone by unheard.
        live.cached_told = True
        return False

    def _clearing(self, job: Job, event: Event) -> Generator[None, None, Event]:
        """Take out of an event what its client must not be told, in steps that are short."""
        if job.submission.needs_secrets:
            event = _censored(job, event)
            yield
        if event.type == "execution_error" and self._is_kept_apart(job):
            # Before paths are cut, because the last name of a path is kept.
            data = yield from self._outputs.revealing_value(job, event.data)
            event = replace(event, data=(yield from redacting_error(data)))
        return event

    def _wording(self, backend: Backend, job: Job, event: Event) -> Generator[None, None, bytes]:
        """Put an event into the words of its job's client, in steps that are short."""
        payload = event.raw
        if event.type == "executed":
            output = event.data.get("output")
            ran = job.live.cached is not None and event.data.get("node") not in job.live.cached
            renamed = yield from self._outputs.of_node(job, backend.name, output, ran=ran)
            if renamed is not output:
                payload = events.encode(event.type, {**event.data, "output": renamed})
                yield
        if event.type not in events.PROGRESS:
            payload = yield from self._outputs.revealing(job, payload)
        return job.without_added(payload) if job.live.added else payload

    def _frame_of(self, job: Job, event: Event, payload: bytes) -> Frame:
        """Return an event's frame, and take note of what it says for those who connect late."""
        translate = job.assignment.translate if job.assignment is not None else None
        frame = events.frame_of(event, job.prompt_id, payload, translate)
        frame.repeats = job.live.told is not None and job.live.told.repeats(event)
        if frame.repeats:
            pass
        elif event.type == "executing":
            job.live.executing = frame
        elif event.type == "progress_state":
            job.live.progress_state = frame
        if event.type == "executing":
            node_id = event.data.get("node")
            job.live.node = node_id if isinstance(node_id, str) else None
        return frame

    def _tell(self, job: Job, type_: str, frame: Frame) -> None:
        """Tell it, unless it may be the last ``executed``: clients look for the history entry as soon as they hear it.

        What ComfyUI says after that one is ``progress_state`` and the terminal event; anything else shows that it was
        not the last.
        """
        waiting = job.live.before_end
        if type_ == "executed" or (waiting and type_ == "progress_state" and len(waiting) < MAX_BEFORE_END):
            if type_ == "executed":
                self._tell_waiting(job)
            job.live.before_end.append(frame)
            return
        self._tell_waiting(job)
        self._client_events.tell(job, frame)

    def _tell_waiting(self, job: Job) -> None:
        waiting, job.live.before_end = job.live.before_end, []
        for frame in waiting:
            self._client_events.tell(job, frame)


def _is_at(job: Job, assignment: Assignment | None) -> bool:
    return job.assignment is assignment and job.state not in ENDED


def _may_tell_too_much(job: Job, event: Event) -> bool:
    return job.submission.needs_secrets or event.type == "execution_error"


def _note_cached(job: Job, event: Event) -> None:
    """Keep the nodes whose results the backend has already."""
    job.live.cached = frozenset(node for node in event.data.get("nodes", ()) if isinstance(node, str))
    if job.live.told is not None:
        job.live.told.cached_again(job.live.cached)


def _censored(job: Job, event: Event) -> Event:
    """The event without the job's partner keys."""
    raw = job.submission.censor().encoded(event.raw)
    return event if raw is event.raw else events.parse(raw) or replace(event, data={}, raw=b"{}")
