"""Dispatch of a prompt, from its acceptance until a backend has it. Read this file from top to bottom.

submit    check → accept → journal → send (or wait) → answer
wake      send waiting jobs to free backends; an idle backend then steals work (work_stealing.py)
_send     offer to the shortest queue, to the next best where that fails
_offer    its files, then one POST /prompt, and what its outcome means
_ask      an offer without an answer: does the backend have it?
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from gateway.comfy import json_codec
from gateway.comfy.client import MAX_REPLY, Answer, BadAnswer, Refused, Unanswered, Unreachable
from gateway.comfy.errors import error_body, told_as_text
from gateway.comfy.responses import read_taken
from gateway.files.transfer import SourceDown
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.admission.admission import Admission
from gateway.jobs.admission.backend_refusals import failure_for, node_errors_for, refusal_for
from gateway.jobs.admission.idempotency import IdempotentReplies
from gateway.jobs.admission.replies import Reply, broken_here, input_missing, unread
from gateway.jobs.events.client_events import ClientEvents
from gateway.jobs.files.inputs import InputMissing, Inputs
from gateway.jobs.scheduling.backend_prompts import Offer, drop_copies, look_for, upstream_body
from gateway.jobs.scheduling.lost_inputs import LostInputs
from gateway.jobs.scheduling.retries import backoff
from gateway.jobs.scheduling.selection import BackendSelection
from gateway.jobs.scheduling.work_stealing import WorkStealing
from gateway.jobs.state.job import Assignment, Job, State
from gateway.jobs.state.job_log import log_phase
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import Submission
from gateway.settings import DispatchSettings
from gateway.store.protocol import StoreError
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Failures, Tasks
from gateway.tenants.limits import Limits
from gateway.tenants.policy import NO_BACKEND, NO_BACKEND_HINT

_log = logs.get("dispatcher")

RETRY_AFTER_SECONDS = 5
# A full disk must not hold up a refusal.
WRITTEN_WITHIN_SECONDS = 1.0
# A timer may fire a moment before its time, and nothing else wake its job.
EARLY_SECONDS = 0.02
# Microseconds for which waiting jobs are looked at anew in one turn of the loop, after the catalogue has changed.
MAX_LOOK = 20_000


class Dispatcher:
    """Sends prompts to backends. Decisions are made between two awaits, so that none rests on stale counts.

    Args:
        patience: seconds to wait for a backend's answer to a prompt, until it is asked whether it has it.
        fail: ends a job that no backend can run, with a reason.
        is_alone: tells whether no other tenant than this one may come.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        inputs: Inputs,
        admission: Admission,
        settings: DispatchSettings,
        metrics: Metrics,
        client_id: str,
        patience: float,
        fail: Callable[[Job, str, str], None],
        client_events: ClientEvents,
        limits: Limits,
        is_alone: Callable[[str], bool],
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._inputs = inputs
        self._admission = admission
        self._lost_inputs = LostInputs(inputs)
        self._selection = BackendSelection(ledger, fleet, inputs, limits, is_alone)
        self._settings = settings
        self._metrics = metrics
        self._client_id = client_id
        self._patience = patience
        self._fail = fail
        self._client_events = client_events
        self._tasks = Tasks("dispatcher")
        self._failures = Failures()
        self._replies = IdempotentReplies(ledger)
        self._turns: dict[Job, object] = {}
        self.work_stealing = WorkStealing(ledger, fleet, admission, metrics, self._resend)

    async def close(self) -> None:
        """Stop sending. What was not sent waits in the journal."""
        await self.work_stealing.close()
        await self._tasks.close()

    # -- accept, journal, send, answer ---------------------------------------------------------------------------

    async def submit(
        self,
        tenant: str,
        submission: Submission,
        answer_early: Callable[[Reply], None],
    ) -> Reply:
        """Accept a prompt.

        Args:
            answer_early: called if the backend lets the client wait too long: the answer that it may have now.

        Raises:
            Overloaded: nothing can take it, and enough are waiting.
            LimitReached: enough of the tenant's wait.
            Rejection: it can't run, or its id is in use for another prompt.
            StoreError: the journal can't be written; nothing was accepted.
        """
        earlier = self._replies.earlier(tenant, submission)
        if earlier is not None:
            return await earlier
        if self._admission.lacks_backends(tenant):
            raise Rejection(403, error_body("no_backend_allowed", NO_BACKEND, NO_BACKEND_HINT))
        self._selection.one_more_waits(tenant, submission.size)
        able, checked = self._admission.refuse(tenant, submission), None
        backend = self._selection.find_now(tenant, submission, able, self._settings)
        must_check = backend is None or self._admission.is_restricted(tenant)
        if must_check:
            checked = await self._admission.check(tenant, submission)
            earlier = self._replies.earlier(tenant, submission)
            if earlier is not None:
                return await earlier
            self._selection.one_more_waits(tenant, submission.size)
        outputs = checked.outputs if checked is not None else self._admission.outputs_of(submission)
        node_errors = json_codec.dumps(checked.node_errors) if checked is not None and checked.node_errors else b"{}"
        job = self._ledger.admit(tenant, submission, outputs, node_errors)
        if must_check:
            # Others were sent while this one was checked.
            backend = self._choose(job)
        else:
            self._admission.remember(job, able)
        return await self._take(job, backend, answer_early)

    async def _take(self, job: Job, backend: Backend | None, answer_early: Callable[[Reply], None]) -> Reply:
        """Journal and send a job; whoever sends the same prompt again meanwhile gets the same answer."""
        with self._replies.to(job) as reply:
            self._client_events.hold_until_answered(job)
            try:
                self._place(job, backend)
                answer = await self._reply_to(job, answer_early)
                reply.set_result(answer)
            finally:
                # The answer is written when this turn of the loop ends; a client listens once it has read it.
                self._client_events.answered_soon(job)
        return answer

    async def _reply_to(self, job: Job, answer_early: Callable[[Reply], None]) -> Reply:
        before = job.state, job.assignment
        try:
            await self._ledger.journal(job)
        except StoreError:
            self._ledger.withdraw(job, journalled=False)
            raise
        log_phase(job, "queued", 0, backend=job.backend)
        if job.state is not State.SENDING or before != (job.state, job.assignment):
            # It waits, or was sent meanwhile: its backend went, or what it waited for came.
            return Reply.accepted(job)
        answered = False

        def answer() -> None:
            nonlocal answered
            answered = True
            answer_early(Reply.accepted(job))
            self._client_events.answered_soon(job)

        # It is journalled, so a backend whose loop is blocked need not hold up the client for ever.
        timer = asyncio.get_running_loop().call_later(self._settings.send_timeout, answer)
        try:
            refusal = await self._send(job)
        finally:
            timer.cancel()
        if refusal is None:
            return Reply.accepted(job)
        if answered:
            self._refused(job, refusal)
        else:
            self._ledger.withdraw(job)
            self.wake()
            # A restart must not bring back what its client was told is refused.
            await asyncio.wait([self._ledger.confirmed()], timeout=WRITTEN_WITHIN_SECONDS)
        return refusal.of(job)

    # -- what waits ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Send waiting jobs to free backends, because a job ended or a backend came. An idle one then steals work."""
        self._send_waiting()
        if self._settings.work_stealing:
            self.work_stealing.look()

    def _send_waiting(self) -> None:
        if not self._ledger.waiting or not self._selection.has_room():
            return
        # A tenant's jobs that may go to the same backends find the same room: none, once one of them found none.
        full: set[tuple[str, frozenset[str] | None, frozenset[str] | None, frozenset[str]]] = set()
        now, tenants, looked = time.monotonic(), self._selection.tenants_to_go(), 0
        for job in self._ledger.waiting.in_turn(tenants):
            if job.not_before > now + EARLY_SECONDS or job.is_ending:
                continue
            cost = self._admission.look_cost(job)
            if looked and looked + cost > MAX_LOOK:
                # The rest has its turn when others have had theirs: to judge a prompt means to parse it.
                self._tasks.start(self._wake_after(0), "judging")
                return
            looked += cost
            if (end := self._admission.end_of(job)) is not None:
                self._fail(job, *end)
                continue
            if job.pinned and any(self._fleet.backends[name].pulse.alive for name in job.pinned):
                # The owner of its files is back, so they can be fetched.
                job.pinned = None
            places = (job.tenant, self._admission.able_for(job), job.pinned, job.avoid)
            if job.unfit is not None:
                self._fail(job, job.unfit, "PromptRefused")
                continue
            if places in full:
                continue
            backend = self._choose(job)
            if backend is not None:
                self._place(job, backend)
                self._tasks.start(self._deliver(job), job.prompt_id)
                if not self._selection.may_run_more(job.tenant):
                    tenants.discard(job.tenant)
            elif not self._selection.has_room():
                return
            elif places == (job.tenant, None, None, frozenset()):
                tenants.discard(job.tenant)
            else:
                full.add(places)

    def _resend(self, job: Job, *sources: str) -> None:
        """Send a job that was taken back from a backend, but not to `sources`; if there is no other now, it waits."""
        backend = self._choose(job, *sources)
        if backend is None:
            self.wake()
            return
        self._place(job, backend)
        self._tasks.start(self._deliver(job), job.prompt_id)

    async def _deliver(self, job: Job) -> None:
        """Send a job whose client has its answer long since."""
        if not await self._is_placed(job):
            return
        refusal = await self._send(job)
        if refusal is not None:
            self._refused(job, refusal)

    async def _is_placed(self, job: Job) -> bool:
        """Journal where it is being sent. Whether it still is: given up meanwhile, it is somebody else's to send."""
        before = State.SENDING, job.assignment
        try:
            await self._ledger.placed(job)
        except StoreError as error:
            # A restart must know which backend to ask for it, so it waits.
            _log.error("journal_write_failed", **job.log_ids, error=str(error))
            if before == (job.state, job.assignment):
                self._ledger.hold(job)
            return False
        return before == (job.state, job.assignment)

    def _refused(self, job: Job, refusal: Reply) -> None:
        """No backend takes a job that its client knows as accepted. A 5xx is not the job's fault: it is tried again."""
        if refusal.status >= 500 and job.attempts + 1 < self._settings.attempts and job.state is State.SENDING:
            self._ledger.lose(job)
            pause = backoff(job.attempts, random.random(), self._settings.backoff, self._settings.max_backoff)
            job.not_before = time.monotonic() + pause
            self._tasks.start(self._wake_after(pause), job.prompt_id)
            return
        reason = told_as_text(refusal.body) or f"the backend answered {refusal.status}"
        self._fail(job, reason, "PromptValidationError")

    async def _wake_after(self, pause: float) -> None:
        await asyncio.sleep(pause)
        self.wake()

    # -- where to ------------------------------------------------------------------------------------------------

    def _place(self, job: Job, backend: Backend | None) -> None:
        if backend is None:
            self._ledger.hold(job)
            return
        self._selection.used(job, backend)
        self._ledger.send(job, backend.name)

    def _choose(self, job: Job, *tried: str) -> Backend | None:
        if job.backend is None and not self._selection.may_run_more(job.tenant):
            return None
        return self._selection.find(
            job.tenant, job.submission, self._admission.able_for(job), job.pinned, tried, job.avoid
        )

    # -- offering ------------------------------------------------------------------------------------------------

    def is_sending(self, job: Job) -> bool:
        """Whether an offer is under way, so that its outcome is not known yet."""
        return job in self._turns

    async def _send(self, job: Job) -> Reply | None:
        """Offer the job until a backend has it. Returns a refusal, if its answer is that.

        A job that is given up and sent again gets a new turn; an offer of an older turn then counts no more.
        """
        tried: set[str] = set()
        turn = self._turns[job] = object()
        try:
            while job.state is State.SENDING and (assignment := job.assignment) is not None:
                backend = self._fleet.backends[assignment.backend]
                tried.add(backend.name)
                try:
                    outcome = await self._offer(job, backend, assignment, turn)
                except Exception as error:  # noqa: BLE001
                    # If an answer breaks the gateway's own code, this job alone fails, because else it would never end.
                    self._failures.report("dispatcher", error, f"dispatcher:{job.prompt_id}", **job.log_ids)
                    return broken_here(error)
                if self._turns.get(job) is not turn or outcome in (Offer.TAKEN, Offer.UNKNOWN):
                    return None
                if isinstance(outcome, Reply):
                    return outcome
                is_here = job.is_sent_by(assignment)
                if is_here:
                    self._place(job, backend if outcome is Offer.AGAIN else self._choose(job, *tried))
                if outcome is Offer.REFUSED:
                    # Told only now: the fleet gives up all that the backend has, and this job it does not have.
                    self._fleet.refused(backend)
                if not is_here or not await self._is_placed(job):
                    return None
        finally:
            if self._turns.get(job) is turn:
                del self._turns[job]
        return None

    async def _offer(self, job: Job, backend: Backend, assignment: Assignment, turn: object) -> Offer | Reply:
        outcome = "taken"
        try:
            changed = await self._inputs.prepare(job, backend)
            if self._turns.get(job) is not turn or not job.is_sent_by(assignment):
                outcome = "withdrawn"
                return Offer.UNKNOWN
            steering = self._admission.steering(job, backend.name)
            if steering is None:
                outcome = "not judged"
                return Offer.NOT_SENT
            job.live.added, job.live.folders = steering.savers, frozenset(steering.folders)
            body = upstream_body(job, assignment, self._client_id, changed, steering)
            self._ledger.offering(assignment)
            answer = await backend.client.call("POST", "/prompt", body, timeout=self._patience, maximum=MAX_REPLY)
        except InputMissing as error:
            outcome = "input missing"
            return input_missing(error)
        except SourceDown as error:
            outcome = "input unreachable"
            _log.warning("input_unreachable", backend=error.backend, **job.log_ids)
            job.pinned = frozenset({error.backend})
            return Offer.NOT_SENT
        except StoreError as error:
            outcome = "no room for its files"
            _log.error("journal_write_failed", **job.log_ids, error=str(error))
            return Offer.NOT_SENT
        except Refused:
            outcome = "refused"
            return Offer.REFUSED
        except Unreachable:
            outcome = "unreachable"
            return Offer.NOT_SENT
        except Unanswered:
            outcome = "unanswered"
            return await self._ask(job, backend, assignment)
        except BadAnswer as error:
            outcome = "5xx"
            _log.warning("prompt_answer_unclear", backend=backend.name, **job.log_ids, error=str(error))
            return await self._ask(job, backend, assignment, unread(error))
        else:
            if answer.status == 200:
                return await self._taken(job, backend, assignment, answer)
            outcome = f"{answer.status // 100}xx" if answer.status >= 400 else "5xx"
            if 400 <= answer.status < 500:
                return await self._refused_there(job, backend, assignment, answer)
            _log.warning("prompt_offer_failed", backend=backend.name, **job.log_ids, status=answer.status)
            return await self._ask(job, backend, assignment, answer)
        finally:
            if outcome not in ("unanswered", "taken", "5xx"):
                self._ledger.offered(assignment, is_there=False)
            self._metrics.dispatches.labels(backend.name, outcome).inc()

    async def _refused_there(self, job: Job, backend: Backend, assignment: Assignment, answer: Answer) -> Offer | Reply:
        again = await self._lost_inputs.after_refusal(job, backend, answer.body)
        if again is Offer.AGAIN or (again is not None and self._choose(job, backend.name) is not None):
            return again
        return refusal_for(job, assignment, answer, self._inputs.outputs, self._admission)

    async def _taken(self, job: Job, backend: Backend, assignment: Assignment, answer: Answer) -> Offer | Reply:
        own_id, (known_as, node_errors) = assignment.upstream_id, read_taken(answer.body)
        if known_as is None or (known_as != own_id and not self._ledger.may_be_called(job, known_as)):
            # If the answer ties the prompt to no id, or to another prompt's, ask after the id that was given to it.
            _log.warning("prompt_answer_unclear", backend=backend.name, **job.log_ids)
            return await self._ask(job, backend, assignment, answer)
        self._ledger.offered(assignment, is_there=known_as == own_id or job.assignment is assignment)
        lacks = known_as == own_id and await self._lost_inputs.after_errors(job, backend, node_errors) is Offer.AGAIN
        if job.assignment is assignment and lacks and not job.is_ending:
            # It was taken without an output whose file is gone: what the backend has becomes a copy.
            self._ledger.lose(job)
            self._tasks.start(drop_copies(self._ledger, backend, [own_id]), f"drop:{own_id}")
            self._resend(job)
        elif job.assignment is assignment:
            said = node_errors_for(job, assignment, known_as, node_errors, self._inputs.outputs, self._admission)
            self._ledger.taken(job, known_as, said)
        else:
            # Cancelled or given up while it was on its way.
            self._ledger.orphans.add(backend.name, known_as)
            self._tasks.start(drop_copies(self._ledger, backend, [known_as]), f"drop:{known_as}")
        return Offer.TAKEN

    async def _ask(
        self, job: Job, backend: Backend, assignment: Assignment, answer: Answer | None = None
    ) -> Offer | Reply:
        """The body was sent and no clear answer came. While the backend does not say, the job stays with it."""
        if answer is not None:
            self._ledger.offered(assignment, is_there=True)
        times = 2 if answer is None else 1
        outcome, known_as = await look_for(backend, job, assignment, times)
        if outcome is Offer.TAKEN and job.assignment is assignment:
            if known_as != assignment.upstream_id and not self._ledger.may_be_called(job, known_as):
                outcome = Offer.NOT_SENT
            else:
                self._ledger.taken(job, known_as, b"{}")
        if outcome is Offer.NOT_SENT and answer is not None:
            self._ledger.offered(assignment, is_there=False)
            return self._give_up(job, backend, assignment, answer)
        return outcome

    def _give_up(self, job: Job, backend: Backend, assignment: Assignment, answer: Answer) -> Offer | Reply:
        """A backend answered 5xx or oddly, and does not have it: the next best, or the failure if there is none."""
        if self._choose(job, backend.name) is not None and job.attempts == 0:
            job.attempts += 1
            return Offer.NOT_SENT
        return failure_for(job, assignment, answer, self._inputs.outputs)
