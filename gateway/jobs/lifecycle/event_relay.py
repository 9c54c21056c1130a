"""Relay of backends' events: find the job, change its state, rename its files, pass the frame on.

The prompt_id of an event leads to the job's session. Ids and file names become the ones that the client knows.
Terminal events are held until completion. ``status`` is never relayed, because the gateway makes it from the ledger.
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
from gateway.jobs.scheduling.backend_prompts import drop_orphans
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.state.job import ENDED, Assignment, Job, LastPreview
from gateway.jobs.state.job_log import log_phase
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.progress import Progress
from gateway.jobs.state.transitions import State
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks, in_turns

MAX_BEFORE_END = 8
# Bytes of a preview that is kept for those who look at a job later.
MAX_PREVIEW = 1_400_000
_BEFORE_START = (State.SENDING, State.PENDING)


@dataclass(frozen=True, slots=True)
class Caught:
    """Frame for a job's client, with the assignment that the job had when the event came."""

    job: Job
    assignment: Assignment | None
    type: str
    frame: Frame


class EventRelay:
    """Relay that turns a backend's messages into moves of the ledger and frames for `ClientEvents`.

    Args:
        is_kept_apart: returns True for a job whose errors must reveal no path of the host.
        note_ids: called with each event that may name an id of a custom node's.
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
        note_ids: Callable[[Job, Event], None],
        model_of: Callable[[Job], str],
        learning: Learning,
    ) -> None:
        self._learning = learning
        self._model_of = model_of
        self._note_ids = note_ids
        self._ledger = ledger
        self._completion = completion
        self._outputs = outputs
        self._client_events = client_events
        self._metrics = metrics
        self._results = results
        self._is_kept_apart = is_kept_apart
        self._tasks = Tasks("event_relay")
        self._current: dict[str, Job] = {}
        self._strays: dict[str, list[Event]] = {}

    def tenant_at(self, backend: Backend) -> str:
        """Return the tenant whose job began last on a backend; empty if none has."""
        job = self._current.get(backend.name)
        return job.tenant if job is not None else ""

    async def close(self) -> None:
        """Stop the cancellations of orphans that are under way."""
        await self._tasks.close()

    def heard_event(self, backend: Backend, event: Event) -> None:
        """Handle a text message of a backend."""
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
        """Handle a long text message in short steps. The backend's next message waits until this returns."""
        caught = await self.catch_event(backend, event)
        if caught is not None:
            frame = caught.frame
            self.tell_caught(caught, frame if len(frame.said) < LARGE else self._results.relieve(caught.job, frame))

    async def catch_event(self, backend: Backend, event: Event) -> Caught | None:
        """Handle a long text message, and return the frame for its client, which `tell_caught` sends; None if none."""
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
            # If the job was cancelled or sent elsewhere meanwhile, drop the event.
            return None
        return Caught(job, assignment, told.type, self._frame_of(job, told, payload))

    def tell_caught(self, caught: Caught, frame: Frame) -> None:
        """Send a caught frame, if the job still has the assignment that it had when the event came."""
        if _is_at(caught.job, caught.assignment):
            self._tell(caught.job, caught.type, frame)

    def _find(self, backend: Backend, event: Event) -> Job | None:
        """Find the job of an event. First handle its earlier events, kept until its id on the backend was known."""
        job = self._job_of(backend, event.prompt_id)
        if job is None:
            self._heard_stray(backend, event)
            return None
        if self._strays and (strays := self._strays.pop(backend.name, None)) and strays[0].prompt_id == event.prompt_id:
            for earlier in strays:
                self._heard_now(backend, job, earlier)
        return job

    def _heard(self, backend: Backend, job: Job, event: Event) -> Event | None:
        """Update the job by an event. Return the event as its client may see it; None if the client does not get it."""
        job.live.heard_at = backend.message_at or time.monotonic()
        if event.prompt_id is not None and job.state in _BEFORE_START:
            self._start(backend, job, event)
        if event.type == "executed" or event.type not in events.KNOWN:
            self._note_ids(job, event)
        if job.live.added is None or job.live.added:
            told = self._outputs.without_added(job, event.data)
            if told is None:
                return None
            if told is not event.data:
                event = replace(event, data=told, raw=events.encode(event.type, told))
        if event.type == "execution_cached":
            _note_cached(job, event)
            self._learning.cached(job)
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
        """Handle a binary message. Metadata may name its prompt; without it, the message belongs to the running job."""
        found = self._sender_of(backend, data)
        if found is None:
            return
        job, head = found
        if job.submission.needs_secrets and job.submission.censor().is_in(data):
            return
        self._keep_preview(backend, job, data, head)
        if job.submission.session_id is None:
            return
        if not head.end:
            # If the message is no picture, replace ids and names in it: it is a text, or a custom node's own form.
            data = previews.replace(data, job.upstream_id.encode(), job.prompt_id.encode())
            data = self._outputs.reveal_bytes(job, data)
        self._tell_binary(backend, job, data, head)

    async def heard_large_binary(self, backend: Backend, data: bytes) -> None:
        """Handle a large binary message in short steps. Return when the spool has room for more."""
        found = self._sender_of(backend, data)
        if found is None:
            return
        job, head = found
        if job.submission.session_id is None and len(data) > MAX_PREVIEW:
            return
        assignment = job.assignment
        if not await may_be_told(job, data, head):
            dropped(job, "it holds a key, or a name that must not be told", len(data))
        elif job.assignment is assignment:
            self._keep_preview(backend, job, data, head)
            if job.submission.session_id is None:
                return
            if not head.end:
                data = previews.replace(data, job.upstream_id.encode(), job.prompt_id.encode())
                await asyncio.sleep(0)
            self._tell_binary(backend, job, data, head)
        await self._results.spool.room()

    def _sender_of(self, backend: Backend, data: bytes) -> tuple[Job, Head] | None:
        """Return a binary message's job, and the message's head before the picture."""
        head = previews.head_of(data)
        if head is None:
            return None
        prompt_id = head.metadata.get("prompt_id")
        job = self._job_of(backend, prompt_id if isinstance(prompt_id, str) else None)
        if job is None:
            return None
        job.live.heard_at, job.live.cached_told = backend.message_at or time.monotonic(), True
        return job, head

    def _keep_preview(self, backend: Backend, job: Job, data: bytes, head: Head) -> None:
        """Keep a picture for those who look at the job later, if it is a preview and not too large."""
        is_picture = head.end > 0 and head.image_type is not None and len(data) - head.end <= MAX_PREVIEW
        if is_picture and self._results.kind_of(job, backend.name, head) is Kind.PREVIEW:
            node_id = head.metadata.get("node_id")
            node = node_id if isinstance(node_id, str) else job.live.node
            job.live.preview = LastPreview(node or "", head.image_type or previews.JPEG, data, head.end)

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
        """Return the job of a message; without an id, the job that runs on the backend."""
        if prompt_id is not None:
            return self._ledger.find_upstream(backend.name, prompt_id)
        job = self._current.get(backend.name)
        return job if job is not None and job.backend == backend.name and job.state is State.RUNNING else None

    def _heard_stray(self, backend: Backend, event: Event) -> None:
        """Handle an event whose id belongs to no job on the backend.

        ComfyUI sends an event of a prompt's start only to its sender, so the gateway sent this prompt. If the gateway
        awaits no answer to a POST /prompt, the prompt is an orphan: cancel it. It may have an id of the backend's own.
        Else the awaited answer may bear this id: keep the event until the id is known.
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
            self._tasks.start(drop_orphans(self._ledger, backend, [upstream_id]), f"drop:{upstream_id}")

    def _awaits_answer(self, backend: Backend) -> bool:
        """Return True if a job is being sent to a backend, so that its id there is not known yet."""
        return any(job.state is State.SENDING for job in self._ledger.jobs_on(backend.name))

    def _start(self, backend: Backend, job: Job, event: Event) -> None:
        start_time = events.timestamp_of(event.data)
        self.start(backend, job, int(time.time() * 1000) if start_time is None else start_time)

    def start(self, backend: Backend, job: Job, start_time: int) -> None:
        """Note that a job runs on a backend."""
        before = self._current.get(backend.name)
        if before is not None and before.state is State.COLLECTING and before.backend == backend.name:
            # Hold this job's events until the end of the job before it is told. If the gateway has not heard that end,
            # the next probe finds it.
            self._client_events.follow(job, before)
        self._current[backend.name] = job
        self._ledger.start(job, start_time)
        self._learning.started(job)
        self._client_events.begin(job)
        waited = (job.started_at or job.accepted_at) - job.accepted_at
        self._metrics.expect_jobs(backend.name)
        self._metrics.job_times.started(self._model_of(job), job.prompt_id, waited)
        log_phase(job, "running", waited, backend=backend.name)

    def _told_before(self, job: Job, type_: str) -> bool:
        """Return True if a client of a rerun job has this kind of start event already, or would get it too late."""
        live = job.live
        if type_ == "execution_start":
            before, live.start_told = live.start_told, True
            return before
        if type_ == "execution_cached":
            before, live.cached_told = live.cached_told, True
            return before
        # After any other event drop ``execution_cached``, because it must come before all progress. The backend's own
        # may have been missed.
        live.cached_told = True
        return False

    def _clearing(self, job: Job, event: Event) -> Generator[None, None, Event]:
        """Remove partner keys and paths of the host from an event, in short steps."""
        if job.submission.needs_secrets:
            event = _censored(job, event)
            yield
        if event.type == "execution_error" and self._is_kept_apart(job):
            # Rename files before paths are cut, because the last name of a path is kept.
            data = yield from self._outputs.revealing_value(job, event.data)
            event = replace(event, data=(yield from redacting_error(data)))
        return event

    def _wording(self, backend: Backend, job: Job, event: Event) -> Generator[None, None, bytes]:
        """Return an event's payload with the file names that its client knows, in short steps."""
        payload = event.raw
        if event.type == "executed":
            output, node = event.data.get("output"), event.data.get("node")
            ran = job.live.cached is not None and node not in job.live.cached
            renamed = yield from self._outputs.of_node(job, backend.name, output, str(node), ran=ran)
            if renamed is not output:
                payload = events.encode(event.type, {**event.data, "output": renamed})
                yield
        if event.type not in events.PROGRESS:
            payload = yield from self._outputs.revealing(job, payload)
        return job.without_added(payload) if job.live.added else payload

    def _frame_of(self, job: Job, event: Event, payload: bytes) -> Frame:
        """Return an event's frame. Keep the last ``executing`` and ``progress_state`` for sockets that connect late."""
        translate = job.assignment.translate if job.assignment is not None else None
        frame = events.frame_of(event, job.prompt_id, payload, translate)
        frame.repeats = job.live.told is not None and job.live.told.repeats(event)
        if frame.repeats:
            pass
        elif event.type == "executing":
            job.live.executing = frame
        elif event.type == "progress_state":
            job.live.progress_state = frame
        elif event.type == "executed":
            job.live.hear_result(payload)
        if event.type == "executing":
            node_id = event.data.get("node")
            job.live.node = node_id if isinstance(node_id, str) else None
        return frame

    def _tell(self, job: Job, type_: str, frame: Frame) -> None:
        """Send a frame, but hold an ``executed``: clients fetch the history entry as soon as they get the last one.

        After the last ``executed`` ComfyUI sends only ``progress_state`` and the terminal event. If anything else
        comes, the held frames are sent, because that ``executed`` was not the last.
        """
        waiting = job.live.before_end
        if type_ == "executed" or (waiting and type_ == "progress_state" and len(waiting) < MAX_BEFORE_END):
            if type_ == "executed":
                self._tell_waiting(job)
            job.live.before_end.append(frame)
            return
        self._tell_waiting(job)
        frame.heard_at = job.live.heard_at
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
    """Note the nodes whose results the backend has already."""
    job.live.cached = frozenset(node for node in event.data.get("nodes", ()) if isinstance(node, str))
    if job.live.told is not None:
        job.live.told.cached_again(job.live.cached)


def _censored(job: Job, event: Event) -> Event:
    """Return an event without the job's partner keys."""
    raw = job.submission.censor().encoded(event.raw)
    return event if raw is event.raw else events.parse(raw) or replace(event, data={}, raw=b"{}")
