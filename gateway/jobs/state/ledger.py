"""The ledger: the gateway's own record of every job, and the only writer of a job's state.

Each transition goes through `Ledger._move`, which refuses one that is not in the table (`transitions.py`). What clients
read (/queue, /prompt, `status`) is made from here, from bytes encoded once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable

from gateway.bus import Bus, status_topic
from gateway.comfy.errors import is_prompt_id
from gateway.comfy.ids import new_prompt_id
from gateway.jobs.state.backend_index import BackendIndex
from gateway.jobs.state.fair_queue import SPACING, FairShare, Queued
from gateway.jobs.state.history import History
from gateway.jobs.state.input_index import InputIndex
from gateway.jobs.state.job import (
    ENDED,
    QUEUED_THERE,
    SHOWN_RUNNING,
    Assignment,
    Delivery,
    Job,
    Live,
    State,
    queue_json,
)
from gateway.jobs.state.orphans import Orphans
from gateway.jobs.state.records import history_record, job_record, job_update
from gateway.jobs.state.shown_running import Listeners, all_running, one_running
from gateway.jobs.state.submission import Submission
from gateway.jobs.state.transitions import Move, after
from gateway.jobs.state.waiting_list import WaitingList
from gateway.store.protocol import HistoryRecord, HistoryRemoval, JobRemoval, Store

# Of the assignments of a job that were given up so many are remembered, the newest.
MAX_GIVEN_UP = 8

# No count comes as far in a thousand years. An earlier version took clients' numbers for its own, so its journal may
# hold some that are larger.
MAX_COUNT = 10**12

_EMPTY_QUEUE = queue_json((), ())
_OUTCOME_MOVES = {"success": Move.SUCCEED, "error": Move.FAIL, "cancelled": Move.CANCEL}


class Ledger:
    """All open jobs, and the history of those that ended."""

    def __init__(self, store: Store, bus: Bus, history: History, gateway_id: str) -> None:
        self._store = store
        self._bus = bus
        self._gateway_id = gateway_id
        self._jobs: dict[tuple[str, str], Job] = {}
        self._tenants: dict[str, dict[str, Job]] = {}
        self._upstream: dict[str, Job] = {}
        self._places = BackendIndex()
        self._queue_bytes: dict[str, bytes] = {}
        self._turns = 0
        self._sizes: dict[Job, int] = {}
        self._open_bytes: Counter[str] = Counter()
        self._count = 0
        self.share = FairShare()
        self.waiting = WaitingList(self.share.waiting)
        self.named = InputIndex()
        self.orphans = Orphans()
        self.history = history
        self.listeners = Listeners(self._view_changed)

    # -- reading -------------------------------------------------------------------------------------------------

    def find(self, tenant: str, prompt_id: str) -> Job | None:
        """A tenant's open job."""
        return self._jobs.get((tenant, prompt_id))

    def find_any(self, prompt_id: str) -> Job | None:
        """An open job of whichever tenant, for an admin."""
        return next((job for job in self._jobs.values() if job.prompt_id == prompt_id), None)

    def find_upstream(self, backend: str, upstream_id: str) -> Job | None:
        """The open job that this backend has, or may have, under this id."""
        job = self._upstream.get(upstream_id)
        return job if job is not None and job.backend == backend else None

    def may_be_called(self, job: Job, upstream_id: object) -> bool:
        """Return True if a backend may give a job's prompt this id of its own: it is an id, and no other prompt's."""
        if not isinstance(upstream_id, str) or not is_prompt_id(upstream_id):
            return False
        is_known = self.orphans.has_id(upstream_id) or self.orphans.has_ended(upstream_id)
        return self._upstream.get(upstream_id, job) is job and not is_known

    def jobs(self, tenant: str | None = None) -> list[Job]:
        """The open jobs of a tenant, or of all (None), in the order of acceptance."""
        return list(self._jobs.values() if tenant is None else self._tenants.get(tenant, {}).values())

    def jobs_on(self, backend: str) -> list[Job]:
        """The open jobs that a backend has or may have, oldest first."""
        return self._places.jobs(backend)

    def remaining(self, tenant: str) -> int:
        """A tenant's queue_remaining: its open jobs, as ComfyUI counts pending and running alike."""
        return len(self._tenants.get(tenant, ()))

    def open_bytes(self, tenant: str) -> int:
        """Return the bytes that a tenant's open jobs take."""
        return self._open_bytes[tenant]

    def load(self, backend: str) -> tuple[int, int]:
        """How many of ours are queued and running on a backend, reservations included."""
        return self._places.load(backend)

    def has_on(self, backend: str, tenant: str) -> bool:
        """Return True if a tenant has a job queued or running on a backend."""
        return self._places.has(backend, tenant)

    def placed_count(self, tenant: str) -> int:
        """How many of a tenant's jobs a backend has, or may have."""
        return self._places.of(tenant)

    def unstarted_count(self, tenant: str) -> int:
        """How many of a tenant's jobs have not started, wherever they are."""
        return self.remaining(tenant) - self._places.started(tenant)

    def __len__(self) -> int:
        return len(self._jobs)

    def shown_running(self, tenant: str | None) -> list[Job]:
        """Return the jobs that a tenant sees as running; None for an admin, who sees all (`story.py`)."""
        if tenant is None:
            return all_running(self._jobs.values())
        own = self._tenants.get(tenant, {}).values()
        return all_running(own) if self.listeners.all_interleave(tenant) else one_running(own, self.listeners.is_told)

    def _view_changed(self, tenant: str) -> None:
        self._queue_bytes.pop(tenant, None)

    def queue_json(self, tenant: str) -> bytes:
        """A tenant's /queue, encoded once a change."""
        encoded = self._queue_bytes.get(tenant)
        if encoded is None:
            if tenant not in self._tenants:
                return _EMPTY_QUEUE
            encoded = self._queue_bytes[tenant] = queue_json(self.jobs(tenant), self.shown_running(tenant))
        return encoded

    # -- a job's life --------------------------------------------------------------------------------------------

    def admit(self, tenant: str, submission: Submission, outputs: list[str], node_errors: bytes = b"{}") -> Job:
        """Accept a prompt: from here on it is in /queue."""
        job = Job(
            tenant,
            submission.prompt_id or new_prompt_id(),
            self._number_of(submission),
            0.0,
            submission,
            int(time.time() * 1000),
            time.monotonic(),
            outputs=outputs,
            node_errors=node_errors,
        )
        self._insert(job)
        self._announce(job)
        return job

    def _number_of(self, submission: Submission) -> float:
        """Return the client's own number, else the next of the gateway's count (server.py, post_prompt)."""
        if submission.number is not None:
            return submission.number
        count, self._count = self._count, self._count + 1
        return -count if submission.front else count

    def restore(self, job: Job) -> None:
        """Put back an open job of an earlier run."""
        if job.assignment is not None:
            self._upstream[job.upstream_id] = job
            if job.state in SHOWN_RUNNING:
                job.live.turn = 0
                self.share.started(job.tenant, job.assignment.backend)
        if job.submission.number is None:
            self.restore_count(job.number)
        for former in job.given_up:
            self.orphans.add(former.backend, former.upstream_id)
        self._insert(job)

    def counts(self, number: float) -> bool:
        """Return True if the count would go on after this number, if it is the gateway's and no client's."""
        return self._count <= abs(number) < MAX_COUNT

    def restore_count(self, number: float) -> None:
        """A job of an earlier run had this number, which the gateway gave it."""
        if self.counts(number):
            self._count = int(abs(number)) + 1

    def _insert(self, job: Job) -> None:
        self._jobs[job.key] = job
        # What a backend says of a job that it took comes later, and is not counted.
        self._sizes[job] = size = job.submission.size + len(job.node_errors)
        self._open_bytes[job.tenant] += size
        self._tenants.setdefault(job.tenant, {})[job.prompt_id] = job
        self.named.enter(job)
        self._enter(job)
        self._queue_bytes.pop(job.tenant, None)

    def send(self, job: Job, backend: str) -> None:
        """Reserve a place on a backend: counted there at once, so that a burst spreads. Each sending has a new id."""
        upstream_id = new_prompt_id()
        last = self._places.end_for(backend, job.tenant, job.number)
        if last is None:
            job.queue_key = self.share.queue_key(job.tenant, job.number, backend, self._queue_on(backend, job))
        else:
            job.queue_key = last + SPACING
        self._assign(job, Assignment(backend, upstream_id, upstream_id))
        self.share.sent(job.tenant)

    def _queue_on(self, backend: str, job: Job) -> list[Queued]:
        """Return what is queued on a backend beside a job, in the order in which it will run."""
        queue = [
            Queued(each.tenant, each.number, each.queue_key)
            for each in self._places.jobs(backend)
            if each.state in QUEUED_THERE and each is not job
        ]
        return sorted(queue, key=lambda each: each.queue_key)

    def adopt(self, job: Job, former: Assignment) -> None:
        """Take back an assignment that was given up, because its backend has the prompt still."""
        self.orphans.take_back(former.backend, former.upstream_id)
        job.given_up = tuple(each for each in job.given_up if each is not former)
        former.delivery = Delivery.ARRIVED
        self._assign(job, former)

    def _assign(self, job: Job, assignment: Assignment) -> None:
        self._move(job, Move.SEND, assignment)

    def offering(self, assignment: Assignment) -> None:
        """Note that its backend may hear of it from now on."""
        assignment.delivery = Delivery.UNDER_WAY

    def offered(self, assignment: Assignment, *, is_there: bool) -> None:
        """Note the outcome of its POST /prompt, be it of one that was given up meanwhile."""
        assignment.delivery = Delivery.ARRIVED if is_there else Delivery.NONE
        if is_there:
            self.orphans.arrived(assignment.backend, assignment.upstream_id)
        else:
            self.orphans.remove(assignment.backend, assignment.upstream_id)

    def hold(self, job: Job) -> None:
        """No backend can take it now: it waits in the gateway."""
        self._move(job, Move.HOLD, None)

    def taken(self, job: Job, upstream_id: str, node_errors: bytes) -> None:
        """The backend accepted it, maybe under an id of its own (one too old to honour ours)."""
        job.node_errors = node_errors
        assignment = job.assignment
        if assignment is None or self._jobs.get(job.key) is not job:
            return
        job.placed_at, known_as = time.monotonic(), job.upstream_id
        assignment.delivery = Delivery.ARRIVED
        if upstream_id != known_as:
            self._leave(job)
            del self._upstream[known_as]
            self.orphans.ended(known_as)
            assignment.upstream_id = upstream_id
            self._upstream[upstream_id] = job
            self._enter(job)
        is_news = upstream_id != known_as or node_errors != b"{}"
        if job.state is State.SENDING:
            self._move(job, Move.TAKE, assignment)
        if is_news:
            # Else the journal has all that matters: "sending" there is looked for there, like "pending".
            self._journal(job)

    def start(self, job: Job, start_time: int) -> None:
        """It runs."""
        job.start_time, job.started_at = start_time, time.monotonic()
        self._move(job, Move.START, job.assignment)
        self._journal(job)
        self._announce(job)

    def begin(self, job: Job) -> None:
        """Let it be shown as running, because its client may know of it."""
        if job.live.turn is None and self._jobs.get(job.key) is job:
            self._turns += 1
            job.live.turn = self._turns
            self._queue_bytes.pop(job.tenant, None)

    def overtake(self, job: Job) -> None:
        """Let others that ran on its backend be shown before it, because its end may be long in coming."""
        job.live.is_overtaken = True
        self._queue_bytes.pop(job.tenant, None)

    def collect(self, job: Job) -> None:
        """It ran to its end; its history entry is being fetched."""
        self._move(job, Move.COLLECT, job.assignment)

    def lose(self, job: Job, *, for_good: bool = False) -> None:
        """Let a job wait to be sent again: its backend lost it or, `for_good`, must not go on with it."""
        former = job.assignment
        self._move(job, Move.LOSE, None)
        if for_good:
            job.given_up = tuple(each for each in job.given_up if each is not former)
        job.attempts += 1
        job.has_entry, job.start_time, job.started_at = False, None, None
        live = job.live
        if live.told is not None:
            live.told.run_again()
        job.live = Live(
            executing=live.executing,
            progress_state=live.progress_state,
            start_told=live.start_told,
            cached_told=live.cached_told,
            held=live.held,
            turn=live.turn,
            told=live.told,
        )
        self._journal(job)

    def recall(self, job: Job) -> None:
        """It was taken back from a backend on which it had not started; it goes to another, and is not moved again."""
        job.moved, job.placed_at = True, 0.0
        self._move(job, Move.RECALL, None)
        self._journal(job)

    def withdraw(self, job: Job, *, journalled: bool = True) -> None:
        """It was refused, by its backend or by the journal, before it was answered: it leaves nothing behind."""
        if self._jobs.get(job.key) is not job:
            return
        # It is over for whoever waits to send it, too.
        self._move(job, Move.CANCEL, None)
        self._remove(job)
        if journalled:
            self._store.write([JobRemoval(*job.key)])
        self._announce(job)

    def cancel(self, job: Job) -> tuple[Assignment | None, asyncio.Future[None]]:
        """Cancel it before it runs: no history entry, as in ComfyUI. Returns its assignment, and the writing."""
        former = job.assignment
        self._move(job, Move.CANCEL, None)
        self._remove(job)
        removed = self._store.write([JobRemoval(*job.key)])
        self._announce(job)
        return former, removed

    async def finish(self, job: Job, outcome: str, entry: bytes, summary: bytes, packed: bytes = b"") -> bool:
        """Write its history entry, then let it be seen: it leaves /queue and enters /history in one step.

        A large entry is given as `packed`, as the journal keeps it.

        Returns whether it was still this job's turn to end; a copy's late end is not. Waits while the disk is full.

        Raises:
            StoreError: the entry can't be written; the job is as it was.
        """
        if self._jobs.get(job.key) is not job:
            return False
        after(job, _OUTCOME_MOVES[outcome])
        before = job.assignment, job.state, job.attempts
        record = history_record(job, outcome, entry, summary, packed)
        await self._store.write([record])
        open_now = self._jobs.get(job.key)
        if open_now is not job or before != (job.assignment, job.state, job.attempts):
            if self.history.find(*job.key) is None:
                # Cancelled meanwhile, so it has no entry; or lost, and then the journal must have it again.
                again = [job_record(open_now, self._gateway_id)] if open_now is not None else []
                self._store.write([HistoryRemoval(*job.key), *again])
            return False
        self._move(job, _OUTCOME_MOVES[outcome], job.assignment)
        self._remove(job)
        if dropped := self.history.add(record):
            self._store.write(dropped)
        return True

    def forget(self, tenant: str, prompt_ids: Iterable[str] | None = None) -> list[HistoryRecord]:
        """Delete history entries, all of a tenant's if no ids are given. Returns what was deleted."""
        if prompt_ids is None:
            prompt_ids = [ended.prompt_id for ended in self.history.of([tenant])]
        removed = [ended for prompt_id in prompt_ids if (ended := self.history.remove(tenant, prompt_id))]
        self._store.write([HistoryRemoval(ended.tenant, ended.prompt_id) for ended in removed])
        return removed

    # -- journal -------------------------------------------------------------------------------------------------

    def journal(self, job: Job) -> asyncio.Future[None]:
        """Write an accepted job, or refuse it. Until the future is done nobody outside may hear of it."""
        return self._store.try_write([job_record(job, self._gateway_id)])

    def _journal(self, job: Job) -> asyncio.Future[None]:
        return self._store.write([job_update(job)])

    def placed(self, job: Job) -> asyncio.Future[None]:
        """Write where a job that had waited is being sent, before the backend hears of it; or refuse that."""
        return self._store.try_write([job_update(job)])

    def confirmed(self) -> asyncio.Future[None]:
        """Done once all is journalled that happened so far; fails with `StoreError` while that can't be written."""
        return self._store.try_write([])

    @property
    def trouble(self) -> str:
        """Why the journal can't be written now; empty while it can."""
        return self._store.trouble

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _move(self, job: Job, move: Move, assignment: Assignment | None) -> None:
        state, former = after(job, move), job.assignment
        self._leave(job)
        if former is not None and (former is not assignment or state in ENDED):
            self._give_up(job, former, has_ended=job.has_entry or (job.state is State.COLLECTING and state in ENDED))
        shown = job.state in SHOWN_RUNNING
        job.state, job.assignment = state, assignment
        if state not in ENDED:
            if assignment is not None:
                self._upstream[assignment.upstream_id] = job
            self._enter(job)
        if shown != (state in SHOWN_RUNNING):
            self._queue_bytes.pop(job.tenant, None)
            if not shown and assignment is not None:
                self.share.started(job.tenant, assignment.backend)

    def _give_up(self, job: Job, former: Assignment, *, has_ended: bool) -> None:
        """Note that an assignment is a job's no more: what its backend may have of it is a copy that must not run."""
        self._upstream.pop(former.upstream_id, None)
        if has_ended:
            self.orphans.ended(former.upstream_id)
        elif former.delivery is not Delivery.NONE:
            is_on_its_way = job.state is State.SENDING and former.delivery is Delivery.UNDER_WAY
            self.orphans.add(former.backend, former.upstream_id, on_its_way=is_on_its_way)
            job.given_up = (*job.given_up, former)[-MAX_GIVEN_UP:]

    def _enter(self, job: Job) -> None:
        if job.state is State.WAITING:
            self.waiting.add(job)
        self._places.enter(job)

    def _leave(self, job: Job) -> None:
        if job.state is State.WAITING:
            self.waiting.remove(job)
        self._places.leave(job)

    def _remove(self, job: Job) -> None:
        if job.state not in ENDED:
            self._leave(job)
        self._jobs.pop(job.key, None)
        self._open_bytes[job.tenant] -= self._sizes.pop(job, 0)
        if self._open_bytes[job.tenant] <= 0:
            del self._open_bytes[job.tenant]
        self.named.leave(job)
        own = self._tenants.get(job.tenant, {})
        own.pop(job.prompt_id, None)
        if not own:
            self._tenants.pop(job.tenant, None)
        self._queue_bytes.pop(job.tenant, None)

    def _announce(self, job: Job) -> None:
        """Let the tenant's sessions know that its counts may have changed."""
        self._bus.publish(status_topic(job.tenant), None)
