"""The ledger: the gateway's own record of every job, and the only writer of a job's state.

Each transition goes through `Ledger._move`, which refuses one that is not in the table (`transitions.py`). The gateway
answers /queue, /prompt and `status` from the ledger, and encodes a tenant's /queue once a change.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable

from gateway.bus import Bus, status_topic
from gateway.comfy.errors import is_prompt_id
from gateway.comfy.ids import new_prompt_id
from gateway.jobs.state.backend_index import BackendIndex
from gateway.jobs.state.fair_queue import SPACING, FairShare
from gateway.jobs.state.history import History
from gateway.jobs.state.input_index import InputIndex
from gateway.jobs.state.job import ENDED, Assignment, Delivery, Job, Live, queue_json
from gateway.jobs.state.job_end import End, JobSteps
from gateway.jobs.state.orphans import Orphans
from gateway.jobs.state.records import history_record, job_record, job_update
from gateway.jobs.state.shown_running import Listeners, all_running, one_running
from gateway.jobs.state.submission import Submission
from gateway.jobs.state.transitions import QUEUED_THERE, SHOWN_RUNNING, Move, State, after
from gateway.jobs.state.waiting_list import WaitingList
from gateway.store.protocol import HistoryRecord, HistoryRemoval, JobRemoval, Store
from gateway.telemetry.busy_time import BusyTime

# Maximum number of given-up assignments that a job remembers, the newest.
MAX_GIVEN_UP = 8

# A journalled number from here on never continues the count: an earlier version journalled clients' numbers as its own.
# No count comes this far in a thousand years.
MAX_COUNT = 10**12

_EMPTY_QUEUE = queue_json((), ())
_OUTCOME_MOVES = {"success": Move.SUCCEED, "error": Move.FAIL, "cancelled": Move.CANCEL}


class Ledger:
    """Record of all open jobs, and the history of ended jobs.

    Attributes:
        steps: the parts that have work at the steps of each job.
        seconds_of: returns the expected seconds of a prompt's run at usual speed.
    """

    def __init__(self, store: Store, bus: Bus, history: History, gateway_id: str) -> None:
        self._store = store
        self._bus = bus
        self._gateway_id = gateway_id
        self._jobs: dict[tuple[str, str], Job] = {}
        self._tenants: dict[str, dict[str, Job]] = {}
        self._upstream: dict[str, Job] = {}
        self._index = BackendIndex(lambda backend: self.steps.on_backend(backend))
        self._queue_bytes: dict[str, bytes] = {}
        self._turns = 0
        self._sizes: dict[Job, int] = {}
        self._open_bytes: Counter[str] = Counter()
        self._count = 0
        self.share = FairShare()
        self.seconds_of: Callable[[Submission], float] = lambda _: self.share.usual_seconds
        self.waiting = WaitingList(self.share)
        self.named = InputIndex()
        self.orphans = Orphans()
        self.history = history
        self.listeners = Listeners(self._view_changed)
        self.steps = JobSteps()

    # -- reading -------------------------------------------------------------------------------------------------

    def find(self, tenant: str, prompt_id: str) -> Job | None:
        """Return a tenant's open job."""
        return self._jobs.get((tenant, prompt_id))

    def find_any(self, prompt_id: str) -> Job | None:
        """Return an open job of any tenant, for an admin."""
        return next((job for job in self._jobs.values() if job.prompt_id == prompt_id), None)

    def find_upstream(self, backend: str, upstream_id: str) -> Job | None:
        """Return the open job that a backend has, or may have, under an upstream id."""
        job = self._upstream.get(upstream_id)
        return job if job is not None and job.backend == backend else None

    def may_be_called(self, job: Job, upstream_id: object) -> bool:
        """Return True if a backend may give a job's prompt an id of its own: a UUID, and no other prompt's."""
        if not isinstance(upstream_id, str) or not is_prompt_id(upstream_id):
            return False
        is_known = self.orphans.has_id(upstream_id) or self.orphans.has_ended(upstream_id)
        return self._upstream.get(upstream_id, job) is job and not is_known

    def jobs(self, tenant: str | None = None) -> list[Job]:
        """Return the open jobs of a tenant, or of all tenants (None), in the order of acceptance."""
        return list(self._jobs.values() if tenant is None else self._tenants.get(tenant, {}).values())

    def jobs_on(self, backend: str) -> list[Job]:
        """Return the open jobs that a backend has or may have, in the order in which they came there."""
        return self._index.jobs(backend)

    def remaining(self, tenant: str) -> int:
        """Return a tenant's queue_remaining: all its open jobs, because ComfyUI counts pending and running alike."""
        return len(self._tenants.get(tenant, ()))

    def open_bytes(self, tenant: str) -> int:
        """Return the bytes that a tenant's open jobs take."""
        return self._open_bytes[tenant]

    def load(self, backend: str) -> tuple[int, int]:
        """Return how many of the gateway's jobs are queued and how many run on a backend, reservations included."""
        return self._index.load(backend)

    @property
    def busy(self) -> BusyTime:
        """Return the count of the time for which each backend runs jobs."""
        return self._index.busy

    def has_on(self, backend: str, tenant: str) -> bool:
        """Return True if a tenant has a job queued or running on a backend."""
        return self._index.has(backend, tenant)

    def placed_count(self, tenant: str) -> int:
        """Return how many of a tenant's jobs are on backends, or may be."""
        return self._index.of(tenant)

    def unstarted_count(self, tenant: str) -> int:
        """Return how many of a tenant's jobs have not started, in the gateway and on backends."""
        return self.remaining(tenant) - self._index.started(tenant)

    def __len__(self) -> int:
        return len(self._jobs)

    def shown_running(self, tenant: str | None) -> list[Job]:
        """Return the jobs that a tenant sees as running; for None, those that an admin sees (`shown_running.py`)."""
        if tenant is None:
            return all_running(self._jobs.values())
        own = self._tenants.get(tenant, {}).values()
        return all_running(own) if self.listeners.all_interleave(tenant) else one_running(own, self.listeners.is_told)

    def _view_changed(self, tenant: str) -> None:
        self._queue_bytes.pop(tenant, None)

    def queue_json(self, tenant: str) -> bytes:
        """Return the body of a tenant's /queue, encoded once a change."""
        encoded = self._queue_bytes.get(tenant)
        if encoded is None:
            if tenant not in self._tenants:
                return _EMPTY_QUEUE
            encoded = self._queue_bytes[tenant] = queue_json(self.jobs(tenant), self.shown_running(tenant))
        return encoded

    # -- transitions ---------------------------------------------------------------------------------------------

    def admit(self, tenant: str, submission: Submission, outputs: list[str], node_errors: bytes = b"{}") -> Job:
        """Accept a prompt as a job, which is in /queue from now on."""
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
            expected_seconds=self.seconds_of(submission),
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
        job.expected_seconds = self.seconds_of(job.submission)
        if job.assignment is not None:
            self._upstream[job.upstream_id] = job
            self.share.sent(job)
            if job.state in SHOWN_RUNNING:
                job.live.turn = 0
                self.share.started(job, job.assignment.backend)
        if job.submission.number is None:
            self.restore_count(job.number)
        for former in job.given_up:
            self.orphans.add(former.backend, former.upstream_id)
        self._insert(job)

    def counts(self, number: float) -> bool:
        """Return True if a number that the gateway gave would move the count forward."""
        return self._count <= abs(number) < MAX_COUNT

    def restore_count(self, number: float) -> None:
        """Continue the count after a number that the gateway gave to a job of an earlier run."""
        if self.counts(number):
            self._count = int(abs(number)) + 1

    def _insert(self, job: Job) -> None:
        self._jobs[job.key] = job
        # Count the size once, on entry. If a backend adds node_errors later, they are not counted.
        self._sizes[job] = size = job.submission.size + len(job.node_errors)
        self._open_bytes[job.tenant] += size
        self._tenants.setdefault(job.tenant, {})[job.prompt_id] = job
        self.named.enter(job)
        self._enter(job)
        self._queue_bytes.pop(job.tenant, None)

    def send(self, job: Job, backend: str) -> None:
        """Assign a job to a backend, with a new upstream id. The job counts there at once, so that a burst spreads."""
        upstream_id = new_prompt_id()
        # Expect its seconds anew, because more may be known than when it came.
        job.expected_seconds = self.seconds_of(job.submission)
        last = self._index.end_for(job, backend)
        if last is None:
            queued = [each for each in self._index.jobs(backend) if each.state in QUEUED_THERE and each is not job]
            job.queue_key = self.share.queue_key(job, backend, queued, time.monotonic())
        else:
            job.queue_key = last + SPACING
        self._move(job, Move.SEND, Assignment(backend, upstream_id, upstream_id))
        self.share.sent(job)

    def adopt(self, job: Job, former: Assignment) -> None:
        """Give a job a former assignment back, because the backend still has its prompt."""
        self.orphans.take_back(former.backend, former.upstream_id)
        job.given_up = tuple(each for each in job.given_up if each is not former)
        former.delivery = Delivery.ARRIVED
        self._move(job, Move.SEND, former)
        self.share.sent(job)

    def offering(self, assignment: Assignment) -> None:
        """Note that POST /prompt is under way, so that the backend may have the prompt from now on."""
        assignment.delivery = Delivery.UNDER_WAY

    def offered(self, assignment: Assignment, *, is_there: bool) -> None:
        """Note the outcome of an assignment's POST /prompt, even if the assignment was given up meanwhile."""
        assignment.delivery = Delivery.ARRIVED if is_there else Delivery.NONE
        if is_there:
            self.orphans.arrived(assignment.backend, assignment.upstream_id)
        else:
            self.orphans.remove(assignment.backend, assignment.upstream_id)

    def hold(self, job: Job) -> None:
        """Let a job wait in the gateway, because no backend can take it now."""
        self._move(job, Move.HOLD, None)

    def taken(self, job: Job, upstream_id: str, node_errors: bytes) -> None:
        """Note that the backend accepted a job. A backend too old to honour the gateway's id gives one of its own."""
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
            # Without news skip the write, because a restart looks for a "sending" job as for a "pending" one.
            self._journal(job)

    def start(self, job: Job, start_time: int) -> None:
        """Note that a job runs."""
        job.start_time, job.started_at = start_time, time.monotonic()
        self._move(job, Move.START, job.assignment)
        self._journal(job)
        self.steps.started(job)
        self._announce(job)

    def begin(self, job: Job) -> None:
        """Show a job as running from now on, because its client may know that the job began."""
        if job.live.turn is None and self._jobs.get(job.key) is job:
            self._turns += 1
            job.live.turn = self._turns
            self._queue_bytes.pop(job.tenant, None)

    def overtake(self, job: Job) -> None:
        """Let other jobs of its backend be shown as running before a job, because its end may take long."""
        job.live.is_overtaken = True
        self._queue_bytes.pop(job.tenant, None)

    def collect(self, job: Job) -> None:
        """Note that a job ran to its end, and that its history entry is being fetched."""
        self._move(job, Move.COLLECT, job.assignment)

    def lose(self, job: Job, *, for_good: bool = False) -> None:
        """Take a job's assignment away and requeue the job. If `for_good`, the job never gets that assignment back."""
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
        """Requeue a job that a backend gave back before it started. The job is not moved again."""
        job.moved, job.placed_at = True, 0.0
        self._move(job, Move.RECALL, None)
        self._journal(job)

    def withdraw(self, job: Job, *, journalled: bool = True) -> None:
        """Remove a job without a trace, because its backend or the journal refused it before the client's answer."""
        if self._jobs.get(job.key) is not job:
            return
        # Mark the job cancelled, so that a pending send stops.
        self._move(job, Move.CANCEL, None)
        self._remove(job)
        if journalled:
            self._store.write([JobRemoval(*job.key)])
        self._announce(job)

    def cancel(self, job: Job) -> tuple[Assignment | None, asyncio.Future[None]]:
        """Cancel a job without a history entry, as in ComfyUI. Return its assignment, and the write to the journal."""
        former = job.assignment
        self._move(job, Move.CANCEL, None)
        self._remove(job)
        removed = self._store.write([JobRemoval(*job.key), *self.steps.changes(job, End("cancelled"))])
        self.steps.ended(job)
        self._announce(job)
        return former, removed

    async def finish(
        self, job: Job, outcome: str, entry: bytes, summary: bytes, packed: bytes = b"", end: End | None = None
    ) -> bool:
        """Write a job's history entry, then move the job from /queue to /history in one step.

        A large entry is given as `packed`, as the journal keeps it. While the disk is full, the write waits.
        Return True if the job ended so; False if it was cancelled, or lost its assignment, before the write was done.
        `end` is the end for the parts that have work then.

        Raises:
            StoreError: the entry can't be written; the job is as it was.
        """
        if self._jobs.get(job.key) is not job:
            return False
        after(job.state, _OUTCOME_MOVES[outcome])
        before = job.assignment, job.state, job.attempts
        record = history_record(job, outcome, entry, summary, packed)
        await self._store.write([record, *self.steps.changes(job, end or End(outcome))])
        open_now = self._jobs.get(job.key)
        if open_now is not job or before != (job.assignment, job.state, job.attempts):
            if self.history.find(*job.key) is None:
                # If the job was cancelled meanwhile, delete its entry. If it was lost, put the open job back, too.
                again = [job_record(open_now, self._gateway_id)] if open_now is not None else []
                self._store.write([HistoryRemoval(*job.key), *again, *self.steps.undone(job)])
            return False
        self._move(job, _OUTCOME_MOVES[outcome], job.assignment)
        self._remove(job)
        if dropped := self.history.add(record):
            self._store.write(dropped)
        self.steps.ended(job)
        return True

    def forget(self, tenant: str, prompt_ids: Iterable[str] | None = None) -> list[HistoryRecord]:
        """Delete a tenant's history entries, all of them if no ids are given. Return the deleted entries."""
        named = None if prompt_ids is None else list(prompt_ids)
        ids = [ended.prompt_id for ended in self.history.of([tenant])] if named is None else named
        removed = [ended for prompt_id in ids if (ended := self.history.remove(tenant, prompt_id))]
        removals = [HistoryRemoval(ended.tenant, ended.prompt_id) for ended in removed]
        self._store.write([*removals, *self.steps.forgotten(tenant, [each.prompt_id for each in removed], named)])
        return removed

    # -- journal -------------------------------------------------------------------------------------------------

    def journal(self, job: Job) -> asyncio.Future[None]:
        """Write an accepted job, or refuse it. Until the future is done, no client or backend may hear of the job."""
        return self._store.try_write([job_record(job, self._gateway_id)])

    def _journal(self, job: Job) -> asyncio.Future[None]:
        return self._store.write([job_update(job)])

    def placed(self, job: Job) -> asyncio.Future[None]:
        """Write a job's new assignment before the backend gets the job, or refuse to."""
        return self._store.try_write([job_update(job)])

    def confirmed(self) -> asyncio.Future[None]:
        """Return a future of the writes so far. It fails with `StoreError` while the journal can't be written."""
        return self._store.try_write([])

    @property
    def trouble(self) -> str:
        """Return the reason why the journal can't be written now; empty while it can."""
        return self._store.trouble

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _move(self, job: Job, move: Move, assignment: Assignment | None) -> None:
        state, former = after(job.state, move), job.assignment
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
                self.share.started(job, assignment.backend)
        if job.charged and (assignment is None or state in ENDED):
            self.share.left(job, time.monotonic(), ran=shown)

    def _give_up(self, job: Job, former: Assignment, *, has_ended: bool) -> None:
        """Take an assignment from a job. If the backend may still have its prompt, note the prompt as an orphan."""
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
            self.steps.on_wait(job)
        self._index.enter(job)

    def _leave(self, job: Job) -> None:
        if job.state is State.WAITING:
            self.waiting.remove(job)
            self.steps.on_leave(job)
        self._index.leave(job)

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
        if not self._jobs:
            self.share.rest()

    def _announce(self, job: Job) -> None:
        """Tell the tenant's sessions that its counts may have changed."""
        self._bus.publish(status_topic(job.tenant), None)
