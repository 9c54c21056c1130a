"""Completion of a job: fetch its history entry, name its files, write the journal, then tell its client.

Terminal events are held until the entry is written, so that a client that gets ``execution_success`` finds it. ComfyUI
sends ``execution_success`` before the entry is there, and ``executing`` with node null after it (main.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gateway.bus import Bus, status_topic
from gateway.comfy import events, history, json_codec
from gateway.comfy.client import BackendError, BadAnswer, TimedOut, UnreadableEntry
from gateway.comfy.error_causes import Cause
from gateway.comfy.events import Frame, Kind
from gateway.comfy.file_refs import FileRef
from gateway.comfy.jobs_api import job_of_history, shortened
from gateway.comfy.redaction import redacting_entry
from gateway.comfy.responses import LEFT_OUT, HistoryEntry
from gateway.files.identity import Found
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.events.client_events import ClientEvents
from gateway.jobs.files.outputs import Outputs
from gateway.jobs.files.stored_outputs import StoredOutputs
from gateway.jobs.lifecycle.faults import fault_of
from gateway.jobs.lifecycle.large_entries import LargeEntries, LargeEntry
from gateway.jobs.scheduling.backend_prompts import locate_prompt
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.state.job import Assignment, Job
from gateway.jobs.state.job_end import End
from gateway.jobs.state.job_log import CANCELLED, log_phase
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import State
from gateway.store.protocol import StoreError
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Failures, Tasks, in_turns, pause

_log = logs.get("jobs")

FETCH_TIMEOUT = 30.0
FETCH_PAUSE = 0.25
MAX_FETCH_PAUSE = 5.0
# The job is missing after this many answers without the entry, or with the prompt still in the queue.
MAX_ABSENT = 3
MAX_UNENDED = 12
# Maximum tries for an entry that can't be read, is refused, or does not come in time. Several, because a proxy may
# answer oddly for some seconds. An entry that is too large is tried once.
MAX_UNREADABLE = 6
MAX_REFUSED = 12
MAX_TIMED_OUT = 5
_PASSING = (502, 503, 504)
# Maximum looks at an entry's files. If the entry came each time, but a file's ETag did not, the file is at fault.
MAX_LOOKS = 3
# Seconds to wait for "executing: null" after a terminal event before asking for the entry anyway.
END_GRACE = 1.0
# Maximum bytes of a job in a list of jobs, because lists are kept in memory. GET /api/jobs/{id} returns all of it.
MAX_SUMMARY = 16 * 1024
# If an entry has more bytes, each step of writing it takes its own turn of the event loop.
LARGE_ENTRY = 256 * 1024
_LOGGED = {"success": "done", "error": "failed", "cancelled": "failed"}


@dataclass(slots=True)
class Tries:
    """Count of failed tries to fetch an entry, by the reason."""

    unreadable: int = 0
    refused: int = 0
    timed_out: int = 0

    def are_enough(self, error: BackendError) -> bool:
        """Count one more error, and return True if the job is to fail with it."""
        match error:
            case UnreadableEntry():
                self.unreadable += MAX_UNREADABLE if error.is_final else 1
            case BadAnswer(status=status) if status not in _PASSING:
                self.refused += 1
            case TimedOut():
                # If the connection stands, count the timeout, but allow the backend the time to load a model.
                self.timed_out += 1
            case _:
                # If the backend is gone or restarts, start over, because the fleet handles that.
                self.timed_out = 0
        return self.unreadable >= MAX_UNREADABLE or self.refused >= MAX_REFUSED or self.timed_out >= MAX_TIMED_OUT

    @property
    def are_odd(self) -> bool:
        """Return True if the errors may go on for long, and may concern this entry alone."""
        return self.unreadable + self.refused > 0 or self.timed_out > 1


class Completion:
    """Completion of jobs.

    Args:
        missing: called with a job whose backend has no entry for it.
        runs_again: called with each job that ran, and its entry. Returns True if the job runs again.
        freed: called when a backend has room again.
        is_kept_apart: returns True for a job whose errors must reveal no path of the host.
        stored: the part that copies a job's files into object storage; None if they are not copied.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        outputs: Outputs,
        bus: Bus,
        client_events: ClientEvents,
        metrics: Metrics,
        large: LargeEntries,
        missing: Callable[[Job], None],
        runs_again: Callable[[Job, Backend, dict[str, Any]], Awaitable[bool]],
        freed: Callable[[], None],
        is_kept_apart: Callable[[Job], bool],
        model_of: Callable[[Job], str],
        learning: Learning,
        stored: StoredOutputs | None = None,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._outputs = outputs
        self._bus = bus
        self._client_events = client_events
        self._metrics = metrics
        self._large = large
        self._missing = missing
        self._goes_again = runs_again
        self._freed = freed
        self._is_kept_apart = is_kept_apart
        self._model_of = model_of
        self._learning = learning
        self._stored = stored
        self._tasks = Tasks("completion")
        self._failures = Failures()
        self._ends: dict[Assignment, asyncio.Event] = {}
        self._last: dict[str, asyncio.Event] = {}

    async def close(self) -> None:
        """Stop. In the journal, jobs that were not completed still run, so that the next start completes them."""
        await self._tasks.close()

    def collect(self, job: Job, *, at_once: bool) -> None:
        """Complete a job that ran to its end. With `at_once` don't wait, because its entry is known to be there."""
        if job.state is not State.COLLECTING:
            self._ledger.collect(job)
        # Key the task by assignment, because the task of a lost one may still wait for its backend's answer.
        assignment = job.assignment
        assert assignment is not None
        end = self._ends.get(assignment)
        if end is None:
            end = self._ends[assignment] = asyncio.Event()
            backend_name, over = assignment.backend, asyncio.Event()
            before, self._last[backend_name] = self._last.get(backend_name), over
            self._tasks.start(self._collect(job, assignment, end, before, over), job.prompt_id)
        if at_once:
            end.set()

    async def _collect(
        self,
        job: Job,
        assignment: Assignment,
        end: asyncio.Event,
        before: asyncio.Event | None,
        over: asyncio.Event,
    ) -> None:
        backend = self._fleet.backends[assignment.backend]
        try:
            await pause(END_GRACE, end)
            found = await self._fetch(job, backend, assignment, over)
            if isinstance(found, tuple):
                # End the job with this entry, even if its backend is lost while the job waits for its turn or the disk.
                job.has_entry = True
            if before is not None:
                # Wait for the job before it, because /history has jobs in the order in which the backend ran them.
                await before.wait()
            if not _is_collected(job, assignment):
                # If the job was lost while it waited, drop the entry.
                return
            if isinstance(found, UnreadableEntry) and found.is_final and job.live.terminal is not None:
                await self._end_without_result(job, *job.live.terminal, str(found))
            elif isinstance(found, BackendError):
                self._fail_unread(job, assignment, str(found))
            elif found is not None:
                await self._finish(job, backend, over, *found)
            else:
                self._missing(job)
        except Exception as error:  # noqa: BLE001
            # If a result breaks the gateway's own code, fail that job alone, because else it would never end.
            self._failures.report("completion", error, f"completion:{job.prompt_id}", **job.log_ids)
            if _is_collected(job, assignment):
                # Drop the entry, because the job can't end with it.
                job.has_entry = False
            reason = f"the gateway could not read it: {type(error).__name__}"
            self._fail_unread(job, assignment, reason, "GatewayError")
        finally:
            if self._stored is not None:
                self._stored.release(job)
            self._ends.pop(assignment, None)
            over.set()
            self._client_events.release_followers(job)

    async def _end_without_result(self, job: Job, type_: str, data: dict[str, Any], reason: str) -> None:
        """End a job whose result is too large, with its backend's terminal event and without outputs."""
        _log.warning("outputs_left_out", **job.log_ids, backend=job.backend, reason=reason)
        entry = history.entry_without_outputs(self._prompt_item(job, job.outputs), type_, data)
        await self._end(job, {**entry, LEFT_OUT: reason}, history.outcome_of(entry))

    def _fail_unread(self, job: Job, assignment: Assignment, reason: str, type_: str = "ResultUnreadable") -> None:
        """Fail a job that ran, because its result can't be read.

        The job is not sent to another backend, because the prompt may be the cause.
        """
        if _is_collected(job, assignment) and not job.is_ending:
            _log.error("result_unreadable", **job.log_ids, backend=assignment.backend, reason=reason)
            self._metrics.results_unreadable.labels(assignment.backend).inc()
            self.fail(job, f"the result on backend '{assignment.backend}' can't be read: {reason}", type_)

    async def _fetch(
        self, job: Job, backend: Backend, assignment: Assignment, over: asyncio.Event
    ) -> tuple[HistoryEntry, LargeEntry | None, Mapping[FileRef, Found]] | BackendError | None:
        """Return the entry and the identity of its files; the error if the entry can't be read.

        Return None if the backend has no entry, or if the job lost this assignment.
        """
        pause, absent, unended, looks, tries = FETCH_PAUSE, 0, 0, 0, Tries()
        while _is_collected(job, assignment):
            try:
                at = await locate_prompt(backend, assignment, entry_first=True, timeout=FETCH_TIMEOUT)
                if at.entry is not None:
                    looks += 1
                    entry, large = await self._large.cut(job, at.entry)
                    known = await self._outputs.learn(job, backend, entry.entry, must=looks < MAX_LOOKS)
                    return (entry, large, known) if _is_collected(job, assignment) else None
                if at.unreadable is not None:
                    raise at.unreadable
                absent, unended = (absent, unended + 1) if at.is_queued else (absent + 1, unended)
                if absent == MAX_ABSENT or unended == MAX_UNENDED:
                    return None
            except BackendError as error:
                _log.info("history_entry_not_fetched", **job.log_ids, backend=backend.name, error=str(error))
                if tries.are_enough(error):
                    return error
                if tries.are_odd:
                    # If the error may concern this entry alone, let the other jobs of its backend end before it.
                    self._ledger.overtake(job)
                    over.set()
                    self._client_events.release_followers(job)
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_FETCH_PAUSE)
        return None

    async def _finish(
        self,
        job: Job,
        backend: Backend,
        over: asyncio.Event,
        found: HistoryEntry,
        large: LargeEntry | None,
        known: Mapping[FileRef, Found],
    ) -> None:
        if await self._goes_again(job, backend, found.entry):
            return
        await self._make_ours(job, backend, found.entry, known)
        # Yield to the event loop, because a large entry takes long to read, to rename and to write.
        await asyncio.sleep(0)
        if left_out := found.entry.get(LEFT_OUT):
            _log.warning("outputs_left_out", **job.log_ids, backend=backend.name, bytes=left_out)
        if self._stored is not None and not await self._store(self._stored, job, backend, found.entry, over):
            return
        await self._end(job, found.entry, history.outcome_of(found.entry), found.encode, large)

    async def _store(
        self, stored: StoredOutputs, job: Job, backend: Backend, entry: dict[str, Any], over: asyncio.Event
    ) -> bool:
        """Plan the copies of a job's files, and wait for them if the end is to. Return False if the job was lost."""
        assignment = job.assignment
        if copies := await stored.plan(job, backend.name, entry):
            # Let the other jobs of its backend end before it, because the copies may take long.
            self._ledger.overtake(job)
            over.set()
            self._client_events.release_followers(job)
            await stored.wait(copies)
        await stored.write_most(job)
        return assignment is not None and _is_collected(job, assignment)

    async def _end(
        self,
        job: Job,
        entry: dict[str, Any],
        outcome: history.Outcome,
        encode: Callable[[Any], bytes] = json_codec.dumps,
        large: LargeEntry | None = None,
    ) -> None:
        ran, rest = entry["prompt"][4], {key: value for key, value in entry.items() if key != "prompt"}
        listed = job_of_history(job.prompt_id, entry, include_outputs=False)
        summary = job.translate(json_codec.dumps(listed))
        if len(summary) > MAX_SUMMARY:
            summary = job.translate(json_codec.dumps(shortened(listed, MAX_SUMMARY)))
        if large is not None:
            summary = large.without_marks(summary)
        backend_name, packed = job.backend, b""
        pause, attempt = FETCH_PAUSE, job.attempts
        await asyncio.sleep(0)
        said = encode(rest)
        if len(said) > LARGE_ENTRY:
            await asyncio.sleep(0)
        said = json_codec.packed(b'{"prompt":%b,%b' % (job.prompt_item(ran), job.translate(said)[1:]))
        if len(said) > LARGE_ENTRY:
            await asyncio.sleep(0)
        if large is not None:
            said, packed = await self._large.packed(job, large, said)
        end = End(outcome, rest, partial(_clean, job, large), partial(self._outputs.size_of, job.tenant))
        while job.attempts == attempt:
            try:
                if not await self._ledger.finish(job, outcome, said, json_codec.packed(summary), packed, end):
                    return
                break
            except StoreError as error:
                _log.error("journal_write_failed", **job.log_ids, error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_FETCH_PAUSE)
        else:
            # If the job was lost while the journal could not be written, stop here: the job runs again.
            return
        self._tell(job, entry)
        self._count(job, backend_name, outcome, entry)
        self._freed()

    async def _make_ours(
        self, job: Job, backend: Backend, entry: dict[str, Any], known: Mapping[FileRef, Found]
    ) -> None:
        """Put the client's prompt back into an entry, and give the files the names that the tenant knows."""
        if job.submission.needs_secrets:
            entry.update(job.submission.censor().value(entry))
        entry.update(self._outputs.without_added(job, entry) or {})
        prompt = entry.get("prompt")
        ran = prompt[4] if isinstance(prompt, list) and len(prompt) > 4 else job.outputs
        entry["prompt"] = self._prompt_item(job, ran)
        entry["outputs"] = await self._outputs.of_entry(job, backend.name, entry, known)
        if self._is_kept_apart(job):
            await asyncio.sleep(0)
            told = {key: value for key, value in entry.items() if key != "prompt"}
            told = await in_turns(self._outputs.revealing_value(job, told))
            entry.update(await in_turns(redacting_entry(told)))

    def _prompt_item(self, job: Job, outputs: Any) -> list[Any]:
        """Return an entry's prompt without its graph, which may be long and is never parsed: see `Job.prompt_item`."""
        number = job.number if job.submission.number is not None else int(job.number)
        extra: dict[str, Any] = {"create_time": job.create_time}
        if job.submission.workflow_id is not None:
            extra["extra_pnginfo"] = {"workflow": {"id": json_codec.loads(job.submission.workflow_id)}}
        return [number, job.prompt_id, {}, extra, outputs]

    def fail(self, job: Job, reason: str, type_: str) -> None:
        """Fail a job that no backend can run: ``execution_error``, and a history entry with the reason."""
        event = history.failure_event(job.prompt_id, reason, type_)
        self._end_without_run(job, "execution_error", event, history.Outcome.ERROR)

    def interrupt(self, job: Job) -> None:
        """End an interrupted job that has no backend any more, instead of a retry."""
        event = history.interruption_event(job.prompt_id)
        self._end_without_run(job, "execution_interrupted", event, history.Outcome.CANCELLED)

    def expire(self, job: Job, reason: str) -> None:
        """End a job whose deadline passed: ``execution_interrupted``, with the reason in the fields of an error."""
        event = history.interruption_event(job.prompt_id)
        event |= {"exception_message": reason, "exception_type": "DeadlinePassed"}
        self._end_without_run(job, "execution_interrupted", event, history.Outcome.CANCELLED)

    def _end_without_run(self, job: Job, type_: str, event: dict[str, Any], outcome: history.Outcome) -> None:
        # Pin the job to no backend, so that none gets it until its end is journalled.
        job.pinned = frozenset()
        job.live.terminal = (type_, event)
        self._tasks.start(self._end_by_itself(job, type_, event, outcome), job.prompt_id)

    async def _end_by_itself(self, job: Job, type_: str, event: dict[str, Any], outcome: history.Outcome) -> None:
        try:
            entry = history.entry_without_run(self._prompt_item(job, job.outputs), type_, event)
            await self._end(job, entry, outcome)
        except Exception as error:  # noqa: BLE001
            # If that breaks the gateway's own code, write a minimal entry, because else the job would never end.
            self._failures.report("completion", error, f"completion:{job.prompt_id}")
            reason = f"the gateway could not end it: {type(error).__name__}"
            event = history.failure_event(job.prompt_id, reason, "GatewayError")
            job.live.terminal = ("execution_error", event)
            prompt = [job.number, job.prompt_id, {}, {}, []]
            entry = history.entry_without_run(prompt, "execution_error", event)
            await self._end(job, entry, history.Outcome.ERROR)

    def _tell(self, job: Job, entry: dict[str, Any]) -> None:
        """Tell the client of a job's end in ComfyUI's order: terminal event, status, ``executing`` with node null."""
        self._client_events.start(job, int(time.time() * 1000))
        waiting, job.live.before_end = job.live.before_end, []
        for frame in waiting:
            self._client_events.tell(job, frame)
        self._client_events.tell(job, self._terminal_frame(job, entry))
        self._bus.publish(status_topic(job.tenant), None)
        self._client_events.tell(job, events.end_frame(job.prompt_id))

    def tell_cancelled(self, job: Job) -> None:
        """Tell a client that knows that a job began that it ended, because it was cancelled as a pending one."""
        if not job.live.start_told:
            return
        payload = events.encode("execution_interrupted", history.interruption_event(job.prompt_id))
        self._client_events.tell(job, Frame(Kind.LIFECYCLE, payload, job.prompt_id, if_told=True))
        self._client_events.tell(job, replace(events.end_frame(job.prompt_id), if_told=True))

    def _terminal_frame(self, job: Job, entry: dict[str, Any]) -> Frame:
        type_, data = job.live.terminal or _last_message(entry)
        data = {**data, "prompt_id": job.prompt_id}
        payload = job.translate(events.encode(type_, data))
        return Frame(Kind.LIFECYCLE, payload, job.prompt_id, events.TERMINAL_SLOT)

    def _count(self, job: Job, backend_name: str | None, outcome: history.Outcome, entry: dict[str, Any]) -> None:
        now = time.monotonic()
        backend = backend_name or ""
        self._metrics.jobs.labels(str(outcome), backend).inc()
        known, fault = self._fleet.backends.get(backend), None
        if job.started_at is not None:
            self._ledger.share.correct(job, self._learning.at_usual_speed(backend, now - job.started_at))
        if outcome is history.Outcome.SUCCESS and job.started_at is not None:
            ran, total = now - job.started_at, now - job.accepted_at
            self._metrics.job_times.succeeded(self._model_of(job), job.prompt_id, ran, total)
            if known is not None:
                known.ran(ran)
            self._learning.learn_entry(job, backend, entry.get("status"))
        elif outcome is history.Outcome.ERROR:
            is_poisoned = known is not None and known.poisoned is not None
            lost_file = Cause.FILE in job.retried_for
            fault = str(fault_of(entry.get("status"), is_poisoned=is_poisoned, lost_file=lost_file))
            self._metrics.job_failures.labels(fault, backend).inc()
        self._learning.ended(job)
        seconds = now - (job.started_at or job.accepted_at)
        log_phase(
            job,
            _LOGGED[outcome],
            seconds,
            backend=backend_name,
            outcome=str(outcome),
            fault=fault,
            failure=_failure_of(entry, outcome),
        )


def _clean(job: Job, large: LargeEntry | None, said: bytes) -> bytes:
    """Return bytes made of a job's entry in the client's terms, without marks of long parts."""
    said = job.translate(said)
    return large.without_marks(said) if large is not None else said


def _is_collected(job: Job, assignment: Assignment) -> bool:
    return job.state is State.COLLECTING and job.assignment is assignment


def _last_message(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    for name, data in reversed(history.messages_of(entry.get("status"))):
        if name in events.TERMINAL:
            return name, data
    return "execution_success", {"timestamp": int(time.time() * 1000)}


def _failure_of(entry: dict[str, Any], outcome: history.Outcome) -> Mapping[str, str]:
    """Return the fields of a failure's log line: the error and the node."""
    if outcome is history.Outcome.SUCCESS:
        return {}
    for name, data in history.messages_of(entry.get("status")):
        if name in ("execution_error", "execution_interrupted") and data.get("exception_type") is not None:
            error = f"{data['exception_type']}: {str(data.get('exception_message')).strip()}"[:500]
            node = {key: str(data[key])[:200] for key in ("node_id", "node_type") if data.get(key) is not None}
            return {"error": error, **node}
    return CANCELLED if outcome is history.Outcome.CANCELLED else {"error": "the history entry tells no error"}
