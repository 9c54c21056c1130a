"""Jobs as the Comfy API v2 shows them: views of the ledger, of the history, and of cancelled jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from weakref import WeakValueDictionary

from gateway.comfy import json_codec
from gateway.comfy.json_members import members
from gateway.comfy.json_stream import Unreadable
from gateway.jobs.engine import Engine
from gateway.jobs.parsing.json_reader import MAX_LIGHT_BYTES, NotRead
from gateway.jobs.state.job import Job
from gateway.jobs.state.transitions import SHOWN_RUNNING, State
from gateway.store.protocol import HistoryRecord
from gateway.store.v2_records import V2CanceledRecord
from gateway.telemetry.tasks import in_turns
from gateway.tenants.keys import Identity
from gateway.web.v2.kept_jobs import KeptJobs, Unconfirmed
from gateway.web.v2.labels import Note
from gateway.web.v2.listing import Key, ListQuery, newest
from gateway.web.v2.model import (
    BY_OUTCOME,
    CANCELED,
    CANCELING,
    FAILED,
    QUEUED,
    RUNNING,
    UNKNOWN_ERROR,
    JobView,
    error_of,
    position_in,
)
from gateway.web.v2.outputs import Output, finding_outputs, outputs_of, results_of
from gateway.web.v2.progress import progress_of
from gateway.web.v2.sizes import ALL_SECONDS, Sizes

# Bytes and values of a job's results that are parsed at once.
MAX_RESULTS_BYTES, MAX_RESULTS_VALUES = 8 * 1024**2, 40_000
# Values of a history entry that is split.
MAX_ENTRY_VALUES = 400_000
# Seconds for which the order of a tenant's queue, and a job's view, are kept for event streams; how many of the latter.
ORDER_SECONDS, VIEW_SECONDS, MAX_VIEWS = 0.4, 0.2, 200
# Seconds for which event streams share the view of an ended job, and how many such views there are at a time.
ENDED_SECONDS, MAX_ENDED_VIEWS = 2.0, 10
Found = Job | HistoryRecord | V2CanceledRecord


@dataclass(slots=True)
class _Order:
    """Positions of a tenant's queued jobs, and the time at which they were counted."""

    at: float
    places: Mapping[str, int]


class Jobs:
    """Views of jobs.

    Args:
        keep_ms: time for which ended jobs are kept, in milliseconds.
        threads: bounds the long entries that are split at a time.
    """

    def __init__(self, engine: Engine, kept: KeptJobs, sizes: Sizes, keep_ms: int, threads: asyncio.Semaphore) -> None:
        self._engine = engine
        self._kept = kept
        self._sizes = sizes
        self._keep_ms = keep_ms
        self._threads = threads
        self._orders: dict[str, _Order] = {}
        self._views: dict[tuple[str, str], tuple[float, JobView]] = {}
        self._ended_views: dict[tuple[str, str], tuple[HistoryRecord, JobView]] = {}
        # Held while a view is made, because many streams of a job hear of its end at once.
        self._viewing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def find(self, identity: Identity, prompt_id: str) -> Found | None:
        """Return a job of the caller's; None if there is none. An admin may see any tenant's."""
        own = self.find_own(identity.tenant, prompt_id)
        if own is not None or not identity.is_admin:
            return own
        ledger, history = self._engine.ledger, self._engine.history
        return ledger.find_any(prompt_id) or history.find_any(prompt_id) or self._kept.canceled_any(prompt_id)

    def find_own(self, tenant: str, prompt_id: str) -> Found | None:
        """Return a job of a tenant; None if there is none.

        There is no await in it, and a job leaves the ledger in the step in which it enters the history. So no job is
        missing while it lives.
        """
        ledger, history = self._engine.ledger, self._engine.history
        return (
            ledger.find(tenant, prompt_id) or history.find(tenant, prompt_id) or self._kept.canceled(tenant, prompt_id)
        )

    def is_known(self, tenant: str, prompt_id: str) -> bool:
        """Return True if a job is open, or in the history."""
        ledger, history = self._engine.ledger, self._engine.history
        return ledger.find(tenant, prompt_id) is not None or history.find(tenant, prompt_id) is not None

    # -- views ---------------------------------------------------------------------------------------------------

    async def view(self, found: Found, seconds: float = ALL_SECONDS, *, is_linked: bool = True) -> JobView:
        """Return a job's view. A job that ends meanwhile is shown as it was.

        Args:
            seconds: maximum wait for the sizes of its outputs.
            is_linked: True for signed links to stored outputs, if readers get such links.

        Raises:
            NotRead, StoreError: its history entry can't be read now.
        """
        if isinstance(found, Job):
            return self.open_view(found)
        if isinstance(found, V2CanceledRecord):
            return self._canceled_view(found)
        return await self._ended_view(found, seconds, is_linked)

    def late_view(self, job: Job, *, is_first: bool) -> JobView:
        """Return the view of an open job for event streams, which share it: it may be late by `VIEW_SECONDS`.

        Args:
            is_first: True for a stream's first look. Its progress is not late, because the caller may have asked for
                the job just before, and must not see it go back.
        """
        now, known = time.monotonic(), self._views.get(job.key)
        if known is not None and now - known[0] <= VIEW_SECONDS and known[1].status == status_of(job):
            view = known[1]
            return replace(view, progress=self._progress(job)) if is_first and view.progress is not None else view
        # The oldest first: those of jobs that have ended go, too.
        for key in [key for key, (at, _) in islice(self._views.items(), 10) if now - at > VIEW_SECONDS]:
            del self._views[key]
        view = self.open_view(job, may_be_late=True)
        if len(self._views) < MAX_VIEWS:
            self._views.pop(job.key, None)
            self._views[job.key] = now, view
        return view

    async def late_ended_view(self, found: HistoryRecord | V2CanceledRecord) -> JobView:
        """Return the view of an ended job for event streams, which share it for `ENDED_SECONDS`.

        Raises:
            NotRead, StoreError: its history entry can't be read now.
        """
        if isinstance(found, V2CanceledRecord):
            return self._canceled_view(found)
        key = found.tenant, found.prompt_id
        async with self._viewing.setdefault(key, asyncio.Lock()):
            known = self._ended_views.get(key)
            # A job that was deleted may have a namesake.
            if known is not None and known[0] == found:
                return known[1]
            view = await self.view(found)
            if len(self._ended_views) < MAX_ENDED_VIEWS:
                self._ended_views[key] = found, view
                asyncio.get_running_loop().call_later(ENDED_SECONDS, self._ended_views.pop, key, None)
            return view

    def open_view(self, job: Job, *, may_be_late: bool = False) -> JobView:
        """Return the view of an open job. Its position may be late by `ORDER_SECONDS`, for event streams."""
        status = status_of(job)
        runs = status != QUEUED
        outputs = self._outputs_so_far(job) if runs else []
        return JobView(
            job.prompt_id,
            status,
            job.create_time,
            job.create_time + self._keep_ms,
            job.start_time,
            position=None if runs else self._late_position(job) if may_be_late else self._position(job),
            progress=self._progress(job) if runs else None,
            outputs=self._sizes.so_far(job.tenant, job.prompt_id, outputs),
            note=self._note(job.tenant, job.prompt_id),
        )

    def accepted_view(self, job: Job | None, prompt_id: str, note: Note) -> JobView:
        """Return the view of a job that was accepted just now: queued, whatever became of it since."""
        created = job.create_time if job is not None else int(time.time() * 1000)
        return JobView(prompt_id, QUEUED, created, created + self._keep_ms, note=note)

    def _note(self, tenant: str, prompt_id: str) -> Note:
        return self._kept.note(tenant, prompt_id)

    def _position(self, job: Job) -> int:
        queued = (each for each in self._engine.ledger.jobs(job.tenant) if status_of(each) == QUEUED)
        return position_in(job.number, [each.number for each in queued if each is not job])

    def _late_position(self, job: Job) -> int:
        now, order = time.monotonic(), self._orders.get(job.tenant)
        if order is None or now - order.at > ORDER_SECONDS or job.prompt_id not in order.places:
            queued = [each for each in self._engine.ledger.jobs(job.tenant) if status_of(each) == QUEUED]
            queued.sort(key=lambda each: each.number)
            places = {each.prompt_id: place for place, each in enumerate(queued, start=1)}
            if len(self._orders) > 1_000:
                self._orders.clear()
            order = self._orders[job.tenant] = _Order(now, places)
        return order.places.get(job.prompt_id, 1)

    def _progress(self, job: Job) -> Mapping[str, Any]:
        return progress_of(job.live.told, job.submission.nodes, job.live.cached, job.live.node)

    def _outputs_so_far(self, job: Job) -> list[Output]:
        events = [json_codec.loads(payload).get("data") for payload in job.live.results]
        return outputs_of(job.prompt_id, results_of([each for each in events if isinstance(each, dict)]))

    def _canceled_view(self, record: V2CanceledRecord) -> JobView:
        status = status_of(record)
        return JobView(
            record.prompt_id,
            status,
            record.created_at,
            record.ended_at + self._keep_ms,
            record.started_at,
            record.ended_at if status == CANCELED else None,
            note=self._note(record.tenant, record.prompt_id),
        )

    async def _ended_view(self, record: HistoryRecord, seconds: float, is_linked: bool) -> JobView:
        outputs = await in_turns(finding_outputs(record.prompt_id, await self.results(record)))
        sized = await self._sizes.of(record.tenant, record.prompt_id, outputs, seconds)
        return self._view_of(record, await self._sizes.linked(record.tenant, sized) if is_linked else sized)

    def _view_of(self, record: HistoryRecord, outputs: Any) -> JobView:
        summary = json_codec.loads(record.summary)
        status = BY_OUTCOME.get(record.outcome, FAILED)
        created, started, ended = (
            _time(summary.get(name)) for name in ("create_time", "execution_start_time", "execution_end_time")
        )
        made = created or started or ended or 0
        error = error_of(summary.get("execution_error"))
        return JobView(
            record.prompt_id,
            status,
            made,
            (ended or made) + self._keep_ms,
            started,
            ended or started or made,
            outputs=outputs,
            error=error or UNKNOWN_ERROR if status == FAILED else error,
            note=self._note(record.tenant, record.prompt_id),
        )

    # -- parts of history entries ----------------------------------------------------------------------------------

    async def results(self, record: HistoryRecord) -> Any:
        """Return the results of an ended job's nodes.

        Raises:
            NotRead: they are too long to be read.
            StoreError: the entry can't be read now.
        """
        async with self._engine.history.reading(record):
            entry = await self._engine.history.entry(record)
            if entry is None:
                return {}
            if len(entry) <= MAX_LIGHT_BYTES:
                return json_codec.loads(entry).get("outputs")
            raw = await self._part(_member, entry, "outputs")
        if len(raw) > MAX_RESULTS_BYTES or json_codec.count_values(raw) > MAX_RESULTS_VALUES:
            raise NotRead("the results of this job are too long for this API; ask for them as /history")
        return json_codec.loads(raw) if raw else {}

    async def outputs(self, found: Found) -> list[Output]:
        """Return the outputs of a job, as far as there are any.

        Raises:
            NotRead, StoreError: as `results`.
        """
        if isinstance(found, Job):
            return self._outputs_so_far(found)
        if isinstance(found, V2CanceledRecord):
            return []
        return await in_turns(finding_outputs(found.prompt_id, await self.results(found)))

    async def workflow(self, found: Found) -> bytes | None:
        """Return the encoded graph of a job; None if nobody has kept it.

        Raises:
            NotRead, StoreError: as `results`.
        """
        if isinstance(found, Job):
            return found.submission.prompt
        if isinstance(found, V2CanceledRecord):
            return None
        async with self._engine.history.reading(found):
            entry = await self._engine.history.entry(found)
            if entry is None:
                return None
            if len(entry) <= MAX_LIGHT_BYTES:
                value, is_plain = json_codec.loads_told(entry)
                return (json_codec.dumps if is_plain else json_codec.dumps_exact)(value["prompt"][2])
            return await self._part(_graph, entry) or None

    async def _part(self, work: Callable[..., bytes], entry: bytes, *more: str) -> bytes:
        """Split a long entry in a thread, which goes in short steps, few at a time.

        Raises:
            NotRead: it has too many values, or is no entry.
        """
        if json_codec.count_values(entry) > MAX_ENTRY_VALUES:
            raise NotRead("its history entry is too long for this API; ask for it as /history")
        async with self._threads:
            return await asyncio.to_thread(work, entry, *more)

    # -- lists ---------------------------------------------------------------------------------------------------

    async def page(self, identity: Identity, query: ListQuery) -> tuple[list[Found], Found | None]:
        """Return the jobs of a page, the newest first, and the last of them if there are more."""
        tenants = None if identity.is_admin else [identity.tenant]
        await self._engine.history.read_summaries(tenants)
        wanted = (each if self._is_wanted(each, query) else None for each in self._all(identity, tenants))
        page = await in_turns(newest(wanted, query.limit + 1))
        found = [job for _, job in page[: query.limit]]
        return found, found[-1] if len(page) > query.limit else None

    def _all(self, identity: Identity, tenants: list[str] | None) -> Iterator[tuple[Key, Found]]:
        """Return all jobs as they are now, however long the caller takes to read them."""
        open_jobs = {job.key: job for job in self._engine.ledger.jobs(identity.sees)}
        ended = self._engine.history.listed(tenants)
        kept = self._kept.canceled_of(identity.sees)
        canceled = [each for each in kept if not self.is_known(each.tenant, each.prompt_id)]

        def read() -> Iterator[tuple[Key, Found]]:
            for job in open_jobs.values():
                yield (job.create_time, job.prompt_id, job.tenant), job
            for listed, record in ended:
                # A job that is in both has not ended for its caller.
                if (record.tenant, record.prompt_id) not in open_jobs:
                    yield (listed.created, record.prompt_id, record.tenant), record
            for each in canceled:
                yield (each.created_at, each.prompt_id, each.tenant), each

        return read()

    def _is_wanted(self, each: tuple[Key, Found], query: ListQuery) -> bool:
        (created, prompt_id, tenant), found = each
        if query.after is not None and (created, prompt_id) >= query.after:
            return False
        if query.statuses and status_of(found) not in query.statuses:
            return False
        if not query.labels:
            return True
        labels = self._note(tenant, prompt_id).labels
        return all(labels.get(name) == value for name, value in query.labels.items())


def status_of(found: Found) -> str:
    """Return the status of a job."""
    if isinstance(found, V2CanceledRecord):
        return CANCELING if isinstance(found, Unconfirmed) else CANCELED
    if isinstance(found, HistoryRecord):
        return BY_OUTCOME.get(found.outcome, FAILED)
    # A job whose backend was lost has begun, and its client knows that.
    if found.state in SHOWN_RUNNING or found.live.turn is not None or found.live.start_told:
        is_stopping = found.interrupted and found.state in (State.RUNNING, State.COLLECTING)
        return CANCELING if is_stopping else RUNNING
    return QUEUED


def is_open(found: Found | None) -> bool:
    """Return True if a job has not ended, or if the journal does not have its cancellation yet."""
    return isinstance(found, (Job, Unconfirmed))


def created_of(found: Found) -> int:
    """Return the time at which a job was made, in milliseconds since 1970."""
    if isinstance(found, Job):
        return found.create_time
    if isinstance(found, V2CanceledRecord):
        return found.created_at
    summary = json_codec.loads(found.summary)
    return _time(summary.get("create_time")) or 0


def _time(value: Any) -> int | None:
    is_time = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 2**52
    return int(value) if is_time else None


def _member(document: bytes, name: str) -> bytes:
    """Return the encoded member of an object; empty if it has none of this name."""
    try:
        found = [each for each in members(document, lambda: None) if each.name == name]
    except Unreadable as error:
        raise NotRead(f"the history entry can't be read: {error}") from error
    return document[found[-1].start : found[-1].end] if found else b""


def _graph(entry: bytes) -> bytes:
    """Return the encoded graph of a history entry: the third item of ``prompt``, behind a number and an id."""
    items = _member(entry, "prompt")
    number, _, rest = items[1:].partition(b",")
    id_, _, rest = rest.partition(b",")
    if not number.strip() or not id_.strip():
        return b""
    # As the first member of an object, because an object is split without parsing it.
    document = b'{"graph":%b' % rest
    for each in members(document, lambda: None):
        return document[each.start : each.end]
    return b""
