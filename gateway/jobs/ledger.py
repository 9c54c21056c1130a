"""The ledger: the gateway's own record of every job, and the only writer of a job's state.

`LIFE` is the whole life of a job. Each transition goes through `Ledger._move`, which refuses one that is not in the
table. What clients read (/queue, /prompt, `status`) is made from here, from bytes encoded once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from enum import StrEnum

from gateway.comfy.ids import new_prompt_id
from gateway.jobs.admission import Submission
from gateway.jobs.copies import Copies
from gateway.jobs.fair_share import FairShare
from gateway.jobs.history import History
from gateway.jobs.job import ENDED, PLACED, SHOWN_RUNNING, Job, Live, State, queue_json
from gateway.jobs.named_files import NamedFiles
from gateway.jobs.places import Places
from gateway.jobs.records import history_record, job_record, job_update
from gateway.jobs.topics import status_topic
from gateway.jobs.waiting import WaitingList
from gateway.store.protocol import Bus, HistoryRecord, HistoryRemoval, JobRemoval, Store


class Move(StrEnum):
    """What can happen to a job."""

    HOLD = "hold"
    SEND = "send"
    TAKE = "take"
    START = "start"
    COLLECT = "collect"
    LOSE = "lose"
    RECALL = "recall"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"


LIFE: Mapping[tuple[State, Move], State] = {
    (State.ACCEPTED, Move.HOLD): State.WAITING,
    (State.ACCEPTED, Move.SEND): State.SENDING,
    (State.WAITING, Move.SEND): State.SENDING,
    (State.SENDING, Move.SEND): State.SENDING,
    (State.SENDING, Move.HOLD): State.WAITING,
    (State.SENDING, Move.TAKE): State.PENDING,
    (State.SENDING, Move.START): State.RUNNING,
    (State.PENDING, Move.START): State.RUNNING,
    (State.SENDING, Move.COLLECT): State.COLLECTING,
    (State.PENDING, Move.COLLECT): State.COLLECTING,
    (State.RUNNING, Move.COLLECT): State.COLLECTING,
    (State.SENDING, Move.LOSE): State.WAITING,
    (State.PENDING, Move.LOSE): State.WAITING,
    (State.RUNNING, Move.LOSE): State.WAITING,
    (State.COLLECTING, Move.LOSE): State.WAITING,
    (State.PENDING, Move.RECALL): State.WAITING,
    (State.COLLECTING, Move.SUCCEED): State.SUCCEEDED,
    (State.COLLECTING, Move.FAIL): State.FAILED,
    (State.COLLECTING, Move.CANCEL): State.CANCELLED,
    (State.ACCEPTED, Move.FAIL): State.FAILED,
    (State.WAITING, Move.FAIL): State.FAILED,
    (State.SENDING, Move.FAIL): State.FAILED,
    (State.ACCEPTED, Move.CANCEL): State.CANCELLED,
    (State.WAITING, Move.CANCEL): State.CANCELLED,
    (State.SENDING, Move.CANCEL): State.CANCELLED,
    (State.PENDING, Move.CANCEL): State.CANCELLED,
    (State.RUNNING, Move.CANCEL): State.CANCELLED,
}

_OUTCOME_MOVES = {"success": Move.SUCCEED, "error": Move.FAIL, "cancelled": Move.CANCEL}


class IllegalMove(Exception):
    """A transition that is not in `LIFE`: an error of ours."""


class Ledger:
    """All open jobs, and the history of those that ended."""

    def __init__(self, store: Store, bus: Bus, history: History, gateway_id: str) -> None:
        self._store = store
        self._bus = bus
        self._gateway_id = gateway_id
        self._jobs: dict[tuple[str, str], Job] = {}
        self._tenants: dict[str, dict[str, Job]] = {}
        self._upstream: dict[str, Job] = {}
        self._places = Places()
        self._queue_bytes: dict[str, bytes] = {}
        self._number = 0
        self.waiting = WaitingList()
        self.named = NamedFiles()
        self.copies = Copies()
        self.share = FairShare()
        self.history = history

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

    def is_copy(self, backend: str, upstream_id: str) -> bool:
        """Whether a prompt on this backend is one of ours that must not run there."""
        if self.copies.has(backend, upstream_id):
            return True
        job = self._upstream.get(upstream_id)
        return job is not None and job.backend != backend

    def jobs(self, tenant: str | None = None) -> list[Job]:
        """The open jobs of a tenant, or of all (None), in the order of acceptance."""
        return list(self._jobs.values() if tenant is None else self._tenants.get(tenant, {}).values())

    def jobs_on(self, backend: str) -> list[Job]:
        """The open jobs that a backend has or may have, oldest first."""
        return self._places.jobs(backend)

    def remaining(self, tenant: str) -> int:
        """A tenant's queue_remaining: its open jobs, as ComfyUI counts pending and running alike."""
        return len(self._tenants.get(tenant, ()))

    def load(self, backend: str) -> tuple[int, int]:
        """How many of ours are queued and running on a backend, reservations included."""
        return self._places.load(backend)

    def placed_count(self, tenant: str) -> int:
        """How many of a tenant's jobs a backend has, or may have."""
        return self._places.of(tenant)

    def unstarted_count(self, tenant: str) -> int:
        """How many of a tenant's jobs have not started, wherever they are."""
        return self.remaining(tenant) - self._places.started(tenant)

    def __len__(self) -> int:
        return len(self._jobs)

    def queue_json(self, tenant: str) -> bytes:
        """A tenant's /queue, encoded once a change."""
        encoded = self._queue_bytes.get(tenant)
        if encoded is None:
            encoded = queue_json(self._tenants.get(tenant, {}).values())
            if tenant in self._tenants:
                self._queue_bytes[tenant] = encoded
        return encoded

    # -- a job's life --------------------------------------------------------------------------------------------

    def admit(self, tenant: str, submission: Submission, outputs: list[str]) -> Job:
        """Accept a prompt: from here on it is in /queue."""
        prompt_id = submission.prompt_id or new_prompt_id()
        upstream_id = new_prompt_id() if self._is_taken_upstream(prompt_id) else prompt_id
        job = Job(
            tenant,
            prompt_id,
            upstream_id,
            self._next_number(submission),
            self._tag(tenant, submission),
            submission,
            int(time.time() * 1000),
            time.monotonic(),
            outputs=outputs,
        )
        self._insert(job)
        self._announce(job)
        return job

    def _is_taken_upstream(self, prompt_id: str) -> bool:
        """Whether an id means another job to a backend: another tenant's, or a cancelled one not yet removed there.

        It then goes upstream under another name, so that neither tenant learns of the other's.
        """
        return prompt_id in self._upstream or self.copies.has_id(prompt_id)

    def _next_number(self, submission: Submission) -> float:
        if submission.number is not None:
            return submission.number
        number, self._number = self._number, self._number + 1
        return -number if submission.front else number

    def _tag(self, tenant: str, submission: Submission) -> float:
        if not submission.front and (submission.number is None or submission.number >= 0):
            return self.share.tag(tenant)
        own = self._tenants.get(tenant, {}).values()
        return self.share.front_tag(tenant, min((job.tag for job in own if job.state != State.RUNNING), default=None))

    def restore(self, job: Job) -> None:
        """Put back an open job of an earlier run."""
        self.share.restore(job.tenant, job.tag)
        self._insert(job)

    def restore_number(self, number: float) -> None:
        """A job of an earlier run had this number."""
        self._number = max(self._number, int(abs(number)) + 1)

    def _insert(self, job: Job) -> None:
        self._jobs[job.key] = job
        self._tenants.setdefault(job.tenant, {})[job.prompt_id] = job
        self._upstream[job.upstream_id] = job
        self.named.enter(job)
        self._enter(job)
        self._queue_bytes.pop(job.tenant, None)

    def send(self, job: Job, backend: str) -> None:
        """Reserve a place on a backend: counted there at once, so that a burst spreads."""
        if self.copies.has(backend, job.upstream_id):
            # What is said there of the copy that is being stopped must not be taken for what is said of this job.
            self._rename_upstream(job, new_prompt_id())
        self._move(job, Move.SEND, backend)
        self.share.left(job.tag)

    def hold(self, job: Job) -> None:
        """No backend can take it now: it waits in the gateway."""
        self._move(job, Move.HOLD, None)

    def taken(self, job: Job, upstream_id: str, node_errors: bytes) -> None:
        """The backend accepted it, maybe under an id of its own (one too old to honour ours)."""
        job.node_errors = node_errors
        if self._jobs.get(job.key) is not job:
            return
        job.placed_at, known_as = time.monotonic(), job.upstream_id
        if upstream_id != job.upstream_id:
            self._rename_upstream(job, upstream_id)
        is_news = upstream_id != known_as or node_errors != b"{}"
        if job.state is State.SENDING:
            self._move(job, Move.TAKE, job.backend)
        if is_news:
            # Else the journal has all that matters: "sending" there is looked for there, like "pending".
            self._journal(job)

    def _rename_upstream(self, job: Job, upstream_id: str) -> None:
        self._leave(job)
        self._upstream.pop(job.upstream_id, None)
        job.upstream_id = upstream_id
        self._upstream[upstream_id] = job
        self._enter(job)

    def start(self, job: Job, start_time: int) -> None:
        """It runs."""
        job.start_time, job.started_at = start_time, time.monotonic()
        self._move(job, Move.START, job.backend)
        self._journal(job)
        self._announce(job)

    def collect(self, job: Job) -> None:
        """It ran to its end; its history entry is being fetched."""
        self._move(job, Move.COLLECT, job.backend)

    def lose(self, job: Job, *, renamed: bool = False) -> None:
        """Its backend does not have it any more, or must not: it waits to be sent again, under the same id or a new."""
        if renamed:
            self._rename_upstream(job, new_prompt_id())
        job.attempts += 1
        job.has_entry, job.start_time, job.started_at = False, None, None
        live = job.live
        job.live = Live(start_told=live.start_told, cached_told=live.cached_told, held=live.held)
        self._move(job, Move.LOSE, None)
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

    def cancel(self, job: Job) -> tuple[str | None, asyncio.Future[None]]:
        """Cancelled before it ran: no history entry, as in ComfyUI. The backend that may hold a copy; the writing."""
        place, on_its_way = job.backend if job.state in PLACED else None, job.state is State.SENDING
        self._move(job, Move.CANCEL, None)
        self._remove(job)
        if place is not None:
            self.copies.add(place, job.upstream_id, on_its_way=on_its_way)
        removed = self._store.write([JobRemoval(*job.key)])
        self._announce(job)
        return place, removed

    async def finish(self, job: Job, outcome: str, entry: bytes, summary: bytes) -> bool:
        """Write its history entry, then let it be seen: it leaves /queue and enters /history in one step.

        Returns whether it was still this job's turn to end; a copy's late end is not. Waits while the disk is full.

        Raises:
            StoreError: the entry can't be written; the job is as it was.
        """
        if self._jobs.get(job.key) is not job:
            return False
        _after(job, _OUTCOME_MOVES[outcome])
        place = job.backend, job.state, job.attempts
        record = history_record(job, outcome, entry, summary)
        await self._store.write([record])
        open_now = self._jobs.get(job.key)
        if open_now is not job or place != (job.backend, job.state, job.attempts):
            if self.history.find(*job.key) is None:
                # Cancelled meanwhile, so it has no entry; or lost, and then the journal must have it again.
                again = [job_record(open_now, self._gateway_id)] if open_now is not None else []
                self._store.write([HistoryRemoval(*job.key), *again])
            return False
        self._move(job, _OUTCOME_MOVES[outcome], job.backend)
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

    def _move(self, job: Job, move: Move, backend: str | None) -> None:
        state = _after(job, move)
        self._leave(job)
        shown = job.state in SHOWN_RUNNING
        job.state, job.backend = state, backend
        if state not in ENDED:
            self._enter(job)
        if shown != (state in SHOWN_RUNNING):
            self._queue_bytes.pop(job.tenant, None)

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
        self.named.leave(job)
        own = self._tenants.get(job.tenant, {})
        own.pop(job.prompt_id, None)
        if not own:
            self._tenants.pop(job.tenant, None)
        if self._upstream.get(job.upstream_id) is job:
            del self._upstream[job.upstream_id]
        self._queue_bytes.pop(job.tenant, None)

    def _announce(self, job: Job) -> None:
        """Let the tenant's sessions know that its counts may have changed."""
        self._bus.publish(status_topic(job.tenant), None)


def _after(job: Job, move: Move) -> State:
    state = LIFE.get((job.state, move))
    if state is None:
        raise IllegalMove(f"job {job.prompt_id}: {move} while {job.state}")
    return state
