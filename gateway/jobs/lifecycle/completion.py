"""Completion of a job: fetch its history entry, name its files, write the journal, then tell its client.

Terminal events are held until then, so that a client that hears ``execution_success`` finds the entry. ComfyUI itself
sends ``execution_success`` before the entry is there and ``executing`` with node null after it (main.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gateway.bus import Bus, status_topic
from gateway.comfy import events, history, json_codec
from gateway.comfy.client import BackendError, BadAnswer, TimedOut, UnreadableEntry
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
from gateway.jobs.lifecycle.large_entries import LargeEntries, LargeEntry
from gateway.jobs.scheduling.backend_prompts import locate_prompt
from gateway.jobs.state.job import Assignment, Job, State
from gateway.jobs.state.job_log import log_phase
from gateway.jobs.state.ledger import Ledger
from gateway.store.protocol import StoreError
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Failures, Tasks, in_turns, pause

_log = logs.get("jobs")

FETCH_TIMEOUT = 30.0
FETCH_PAUSE = 0.25
MAX_FETCH_PAUSE = 5.0
# An entry that so many answers in a row say is not there; and one of a prompt that they say still runs.
MAX_ABSENT = 3
MAX_UNENDED = 12
# Tries after which a job fails whose entry can't be read, is refused, or does not come in time. A proxy may answer
# oddly for some seconds; what is too large stays so, and is tried once.
MAX_UNREADABLE = 6
MAX_REFUSED = 12
MAX_TIMED_OUT = 5
_PASSING = (502, 503, 504)
# A backend that tells of its history, but so often in a row not of a file: that is about the file.
MAX_LOOKS = 3
# Seconds to wait for "executing: null" after a terminal event before asking for the entry anyway.
END_GRACE = 1.0
# Bytes of what a list of jobs shows of one: the lists are kept in memory. GET /api/jobs/{id} tells all.
MAX_SUMMARY = 16 * 1024
# Of an entry with more bytes each step of writing it is a turn of its own.
LARGE_ENTRY = 256 * 1024
_LOGGED = {"success": "done", "error": "failed", "cancelled": "failed"}


@dataclass(slots=True)
class Tries:
    """Counts how often an entry could not be had, by the reason."""

    unreadable: int = 0
    refused: int = 0
    timed_out: int = 0

    def are_enough(self, error: BackendError) -> bool:
        """Count one more, and return True if the job is to fail with that."""
        match error:
            case UnreadableEntry():
                self.unreadable += MAX_UNREADABLE if error.is_final else 1
            case BadAnswer(status=status) if status not in _PASSING:
                self.refused += 1
            case TimedOut():
                # The backend's connection stands, and it has all the time that it needs to load a model.
                self.timed_out += 1
            case _:
                # It is gone, or restarts: its own matter, which the fleet sees to.
                self.timed_out = 0
        return self.unreadable >= MAX_UNREADABLE or self.refused >= MAX_REFUSED or self.timed_out >= MAX_TIMED_OUT

    @property
    def are_odd(self) -> bool:
        """Return True if it may take long, and be about this entry alone."""
        return self.unreadable + self.refused > 0 or self.timed_out > 1


class Completion:
    """Ends jobs.

    Args:
        missing: told of a job whose backend has no entry for it.
        goes_again: told of each job that ran, with its entry; whether it is not over, but runs again.
        freed: told when a place on a backend is free.
        is_kept_apart: returns True for a job whose errors must tell no path of the host.
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
        goes_again: Callable[[Job, Backend, dict[str, Any]], Awaitable[bool]],
        freed: Callable[[], None],
        is_kept_apart: Callable[[Job], bool],
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._outputs = outputs
        self._bus = bus
        self._client_events = client_events
        self._metrics = metrics
        self._large = large
        self._missing = missing
        self._goes_again = goes_again
        self._freed = freed
        self._is_kept_apart = is_kept_apart
        self._tasks = Tasks("completion")
        self._failures = Failures()
        self._ends: dict[Assignment, asyncio.Event] = {}
        self._last: dict[str, asyncio.Event] = {}

    async def close(self) -> None:
        """Stop collecting. What was not collected is running in the journal, and is found again."""
        await self._tasks.close()

    def collect(self, job: Job, *, at_once: bool) -> None:
        """The job ran to its end. With `at_once` its entry is known to be there."""
        if job.state is not State.COLLECTING:
            self._ledger.collect(job)
        # By assignment: the collection of one that was lost may still wait for its backend's answer.
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
                # That is its end, whatever becomes of the backend while it waits for its turn, or for the disk.
                job.has_entry = True
            if before is not None:
                # What a backend ran first is first in /history, too, however long its entry took to come.
                await before.wait()
            if not _is_collected(job, assignment):
                # Lost while it waited for what ran before it.
                return
            if isinstance(found, UnreadableEntry) and found.is_final and job.live.terminal is not None:
                await self._end_without_result(job, *job.live.terminal, str(found))
            elif isinstance(found, BackendError):
                self._fail_unread(job, assignment, str(found))
            elif found is not None:
                await self._finish(job, backend, *found)
            else:
                self._missing(job)
        except Exception as error:  # noqa: BLE001
            # If a result breaks the gateway's own code, that job alone fails, because else it would never end.
            self._failures.report("completion", error, f"completion:{job.prompt_id}", **job.log_ids)
            if _is_collected(job, assignment):
                # The entry that is here can't be its end.
                job.has_entry = False
            self._fail_unread(job, assignment, f"the gateway could not read it: {type(error).__name__}")
        finally:
            self._ends.pop(assignment, None)
            over.set()
            self._client_events.over(job)

    async def _end_without_result(self, job: Job, type_: str, data: dict[str, Any], reason: str) -> None:
        """End a job whose result is too large as its backend said that it ended."""
        _log.warning("outputs_left_out", **job.log_ids, backend=job.backend, reason=reason)
        entry = history.entry_without_outputs(self._prompt_item(job, job.outputs), type_, data)
        await self._end(job, {**entry, LEFT_OUT: reason}, history.outcome_of(entry))

    def _fail_unread(self, job: Job, assignment: Assignment, reason: str) -> None:
        """End a job that ran, and whose result can't be had.

        It does not run again elsewhere, because the prompt may be the cause.
        """
        if _is_collected(job, assignment) and not job.is_ending:
            _log.error("result_unreadable", **job.log_ids, backend=assignment.backend, reason=reason)
            self._metrics.results_unreadable.labels(assignment.backend).inc()
            self.fail(job, f"the result on backend '{assignment.backend}' can't be read: {reason}", "ResultUnreadable")

    async def _fetch(
        self, job: Job, backend: Backend, assignment: Assignment, over: asyncio.Event
    ) -> tuple[HistoryEntry, LargeEntry | None, Mapping[FileRef, Found]] | BackendError | None:
        """The entry, and what to know its files by; an error if it can't be read.

        None if the backend answers that there is none, or the job is not there any more.
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
                    # Others' jobs there have ends of their own, which need not wait for this one.
                    self._ledger.overtake(job)
                    over.set()
                    self._client_events.over(job)
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_FETCH_PAUSE)
        return None

    async def _finish(
        self,
        job: Job,
        backend: Backend,
        found: HistoryEntry,
        large: LargeEntry | None,
        known: Mapping[FileRef, Found],
    ) -> None:
        if await self._goes_again(job, backend, found.entry):
            return
        await self._make_ours(job, backend, found.entry, known)
        # A large entry takes long to read, to rename and to write: others have their turn between.
        await asyncio.sleep(0)
        if left_out := found.entry.get(LEFT_OUT):
            _log.warning("outputs_left_out", **job.log_ids, backend=backend.name, bytes=left_out)
        await self._end(job, found.entry, history.outcome_of(found.entry), found.encode, large)

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
        while job.attempts == attempt:
            try:
                if not await self._ledger.finish(job, outcome, said, json_codec.packed(summary), packed):
                    return
                break
            except StoreError as error:
                _log.error("journal_write_failed", **job.log_ids, error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_FETCH_PAUSE)
        else:
            # Lost while the journal could not be written: it runs again.
            return
        self._tell(job, entry)
        self._count(job, backend_name, outcome, entry)
        self._freed()

    async def _make_ours(
        self, job: Job, backend: Backend, entry: dict[str, Any], known: Mapping[FileRef, Found]
    ) -> None:
        """Put back what the client sent, and give the files the names that its tenant knows."""
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
        """Return an entry's prompt, without what may be long: that is never parsed, see `Job.prompt_item`."""
        number = job.number if job.submission.number is not None else int(job.number)
        extra: dict[str, Any] = {"create_time": job.create_time}
        if job.submission.workflow_id is not None:
            extra["extra_pnginfo"] = {"workflow": {"id": json_codec.loads(job.submission.workflow_id)}}
        return [number, job.prompt_id, {}, extra, outputs]

    def fail(self, job: Job, reason: str, type_: str) -> None:
        """End a job that no backend can run: ``execution_error``, and a history entry that says why."""
        event = history.failure_event(job.prompt_id, reason, type_)
        self._end_without_run(job, "execution_error", event, history.Outcome.ERROR)

    def interrupt(self, job: Job) -> None:
        """End a job that was to be interrupted, and whose backend is gone: it is not run again."""
        event = history.interruption_event(job.prompt_id)
        self._end_without_run(job, "execution_interrupted", event, history.Outcome.CANCELLED)

    def expire(self, job: Job, reason: str) -> None:
        """End a job that nobody wants any more: ``execution_interrupted``, which says why as an error would."""
        event = history.interruption_event(job.prompt_id)
        event |= {"exception_message": reason, "exception_type": "DeadlinePassed"}
        self._end_without_run(job, "execution_interrupted", event, history.Outcome.CANCELLED)

    def _end_without_run(self, job: Job, type_: str, event: dict[str, Any], outcome: history.Outcome) -> None:
        # Until that is journalled no backend is eligible for it.
        job.pinned = frozenset()
        job.live.terminal = (type_, event)
        self._tasks.start(self._end_by_itself(job, type_, event, outcome), job.prompt_id)

    async def _end_by_itself(self, job: Job, type_: str, event: dict[str, Any], outcome: history.Outcome) -> None:
        try:
            entry = history.entry_without_run(self._prompt_item(job, job.outputs), type_, event)
            await self._end(job, entry, outcome)
        except Exception as error:  # noqa: BLE001
            # If that breaks the gateway's own code, say no more than that, because else the job would never end.
            self._failures.report("completion", error, f"completion:{job.prompt_id}")
            reason = f"the gateway could not end it: {type(error).__name__}"
            event = history.failure_event(job.prompt_id, reason, "GatewayError")
            job.live.terminal = ("execution_error", event)
            prompt = [job.number, job.prompt_id, {}, {}, []]
            entry = history.entry_without_run(prompt, "execution_error", event)
            await self._end(job, entry, history.Outcome.ERROR)

    def _tell(self, job: Job, entry: dict[str, Any]) -> None:
        """The end of the story, in ComfyUI's order: terminal event, status, executing null."""
        self._client_events.start(job, int(time.time() * 1000))
        waiting, job.live.before_end = job.live.before_end, []
        for frame in waiting:
            self._client_events.tell(job, frame)
        self._client_events.tell(job, self._terminal_frame(job, entry))
        self._bus.publish(status_topic(job.tenant), None)
        self._client_events.tell(job, events.end_frame(job.prompt_id))

    def tell_cancelled(self, job: Job) -> None:
        """Tell clients that know that a job began that it is over: it was taken out of the queue all the same."""
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
        if job.started_at is not None:
            self._metrics.run_seconds.labels(backend).observe(now - job.started_at)
            if outcome is history.Outcome.SUCCESS and backend in self._fleet.backends:
                self._fleet.backends[backend].ran(now - job.started_at)
        seconds = now - (job.started_at or job.accepted_at)
        log_phase(
            job, _LOGGED[outcome], seconds, backend=backend_name, outcome=str(outcome), failure=_failure_of(entry)
        )


def _is_collected(job: Job, assignment: Assignment) -> bool:
    return job.state is State.COLLECTING and job.assignment is assignment


def _last_message(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    for name, data in reversed(history.messages_of(entry.get("status"))):
        if name in events.TERMINAL:
            return name, data
    return "execution_success", {"timestamp": int(time.time() * 1000)}


def _failure_of(entry: dict[str, Any]) -> dict[str, str]:
    """Return what the log tells of a failure: the error, and the node."""
    for name, data in history.messages_of(entry.get("status")):
        if name == "execution_error":
            error = f"{data.get('exception_type')}: {str(data.get('exception_message')).strip()}"[:500]
            node = {key: str(data[key])[:200] for key in ("node_id", "node_type") if data.get(key) is not None}
            return {"error": error, **node}
    return {}
