"""Dispatch of a prompt, from its acceptance until a backend has it. Read this file from top to bottom.

submit    check the prompt, accept it, write the journal, send the job (or let it wait), answer the client
wake      send waiting jobs to free backends (waiting_jobs.py); an idle backend then steals work (work_stealing.py)
_send     offer the job to the shortest queue; if that fails, to the next best
_offer    put the job's files on the backend, send one POST /prompt, interpret the answer
_ask      if no clear answer came: ask the backend if it has the prompt
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

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
from gateway.jobs.scheduling.backend_prompts import Offer, drop_orphans, journal_assignment, look_for, upstream_body
from gateway.jobs.scheduling.lost_inputs import LostInputs
from gateway.jobs.scheduling.outdated_copies import OutdatedCopies
from gateway.jobs.scheduling.quarantine import Quarantine
from gateway.jobs.scheduling.retries import backoff
from gateway.jobs.scheduling.routing_parts import Routing
from gateway.jobs.scheduling.waiting_jobs import WaitingJobs
from gateway.jobs.scheduling.work_stealing import WorkStealing
from gateway.jobs.state.job import Assignment, Job
from gateway.jobs.state.job_log import log_phase
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.poisonous import PoisonousGraphs
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import Submission
from gateway.jobs.state.transitions import State
from gateway.settings import DispatchSettings
from gateway.store.protocol import StoreError
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Failures, Soon, Tasks
from gateway.tenants.policy import NO_BACKEND, NO_BACKEND_HINT

_log = logs.get("dispatcher")

RETRY_AFTER_SECONDS = 5
# A refusal waits this long for the journal, because a full disk must not hold it up.
WRITTEN_WITHIN_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _Turn:
    """One attempt to send a job, to one backend after the other. The first of its `refusals` is the client's answer."""

    refusals: list[Reply] = field(default_factory=list)


class Dispatcher:
    """Dispatcher of prompts to backends. It makes each decision between two awaits, so that no count is stale.

    Args:
        patience: maximum wait for a backend's answer to a prompt, in seconds. Then the backend is asked if it has it.
        fail: ends a job that no backend can run, with a reason and an error type.
        routing: the choice of backends.
        outdated_copies: looks again at prompts that are to be refused for what a backend lacks.
        poisonous: the graphs that left backends' GPUs unusable.
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
        routing: Routing,
        outdated_copies: OutdatedCopies,
        poisonous: PoisonousGraphs,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._inputs = inputs
        self._admission = admission
        self._outdated_copies = outdated_copies
        self._poisonous = poisonous
        self._lost_inputs = LostInputs(inputs)
        self._candidates, self._late = routing.candidates, routing.late
        self._settings = settings
        self._metrics = metrics
        self._client_id = client_id
        self._patience = patience
        self._fail = fail
        self._client_events = client_events
        self._tasks = Tasks("dispatcher")
        self._judging = Soon(self._tasks, self.wake, "judging")
        self._failures = Failures()
        self._replies = IdempotentReplies(ledger)
        self._turns: dict[Job, _Turn] = {}
        self.work_stealing = WorkStealing(
            *(ledger, fleet, admission, metrics, routing.board, routing.learning, self._resend),
            knows_times=routing.late is not None,
        )
        self._quarantine = Quarantine(ledger, fleet, poisonous, fail, self.work_stealing.take)
        self._waiting_jobs = WaitingJobs(
            *(ledger, fleet, admission, poisonous, self._quarantine, routing.candidates, routing.late),
            *(fail, self._choose, self._send_now, self._judging.ask),
        )

    async def close(self) -> None:
        """Stop sending. Jobs that were not sent wait in the journal."""
        if self._late is not None:
            self._late.close()
        await self._quarantine.close()
        await self.work_stealing.close()
        await self._tasks.close()

    # -- accept, journal, send, answer ---------------------------------------------------------------------------

    async def submit(
        self,
        tenant: str,
        submission: Submission,
        answer_early: Callable[[Reply], None],
    ) -> Reply:
        """Accept a prompt and return the response, which may be the backend's refusal.

        Args:
            answer_early: called with the response that the client may have now, if the backend takes too long.

        Raises:
            Overloaded: no backend can take the prompt, and too many prompts wait already.
            LimitReached: the tenant's limit of waiting prompts, or of their bytes, is reached.
            Rejection: the prompt can't run, or its id is in use for another prompt.
            StoreError: the journal can't be written; nothing was accepted.
        """
        try:
            return await self._submit(tenant, submission, answer_early)
        except Rejection as rejection:
            if not await self._outdated_copies.have_changed(tenant, submission, rejection):
                raise
        return await self._submit(tenant, submission, answer_early)

    async def _submit(self, tenant: str, submission: Submission, answer_early: Callable[[Reply], None]) -> Reply:
        earlier = self._replies.earlier(tenant, submission)
        if earlier is not None:
            return await earlier
        if self._admission.lacks_backends(tenant):
            raise Rejection(403, error_body("no_backend_allowed", NO_BACKEND, NO_BACKEND_HINT))
        self._candidates.one_more_waits(tenant, submission.size)
        able, checked = self._admission.find_able(tenant, submission), None
        is_suspect = self._poisonous.check(tenant, submission, time.time())
        backend = self._candidates.find_now(
            tenant, submission, able, self._settings, lambda: self._admission.checks_fully(tenant, submission)
        )
        must_check = backend is None or is_suspect or self._admission.is_restricted(tenant)
        if must_check:
            checked = await self._admission.validate_waiting(tenant, submission)
            earlier = self._replies.earlier(tenant, submission)
            if earlier is not None:
                return await earlier
            self._candidates.one_more_waits(tenant, submission.size)
        outputs = checked.outputs if checked is not None else self._admission.outputs_of(submission)
        node_errors = json_codec.dumps(checked.node_errors) if checked is not None and checked.node_errors else b"{}"
        job = self._ledger.admit(tenant, submission, outputs, node_errors)
        if must_check:
            # Choose again, because other jobs were sent while this prompt was checked.
            backend = self._choose(job)
        else:
            self._admission.remember(job, able)
        return await self._take(job, backend, answer_early)

    async def _take(self, job: Job, backend: Backend | None, answer_early: Callable[[Reply], None]) -> Reply:
        """Journal and send a job. If a client repeats the prompt meanwhile, it gets the same response."""
        with self._replies.to(job) as reply:
            self._client_events.hold_until_answered(job)
            try:
                self._place(job, backend)
                answer = await self._reply_to(job, answer_early)
                reply.set_result(answer)
                if answer.status == 200:
                    self._ledger.steps.queued(job)
            finally:
                # Release the job's events a moment later, because the response is written when this turn of the event
                # loop ends. The client listens once it has read the response.
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
            # If the job waits, or its assignment changed meanwhile, this call does not send it.
            return Reply.accepted(job)
        answered = False

        def answer() -> None:
            nonlocal answered
            answered = True
            answer_early(Reply.accepted(job))
            self._client_events.answered_soon(job)

        # If the backend's event loop is blocked, answer the client early, because the job is in the journal already.
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
            # Wait for the journal, because a restart must not bring back a job that its client knows as refused.
            await asyncio.wait([self._ledger.confirmed()], timeout=WRITTEN_WITHIN_SECONDS)
        return refusal.of(job)

    # -- waiting jobs --------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Send waiting jobs to free backends, because a job ended or a backend came. Then let idle ones steal work."""
        self._quarantine.look()
        self._waiting_jobs.send()
        if self._settings.work_stealing:
            self.work_stealing.look()

    def _send_now(self, job: Job, backend: Backend) -> None:
        self._place(job, backend)
        self._tasks.start(self._deliver(job), job.prompt_id)

    def _resend(self, job: Job, *sources: str) -> None:
        """Send a job that was taken back from a backend, but not to `sources`. If no other has room, the job waits."""
        if self._quarantine.ends(job):
            return
        backend = self._choose(job, *sources)
        if backend is None:
            self.wake()
            return
        self._send_now(job, backend)

    async def _deliver(self, job: Job) -> None:
        """Send a job whose client has its response already."""
        if not await journal_assignment(self._ledger, job):
            return
        refusal = await self._send(job)
        if refusal is not None:
            self._refused(job, refusal)

    def _refused(self, job: Job, refusal: Reply) -> None:
        """Requeue an accepted job that was answered 5xx, because the job is not at fault. Fail it on a refusal."""
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

    # -- choice of a backend -------------------------------------------------------------------------------------

    def _place(self, job: Job, backend: Backend | None) -> None:
        if backend is None:
            self._ledger.hold(job)
            if self._late is not None:
                self._judging.ask()
            return
        self._candidates.used(job, backend)
        self._poisonous.sent(job)
        self._ledger.send(job, backend.name)

    def _choose(self, job: Job, *tried: str, must_bind: bool = False) -> Backend | None:
        if job.backend is None and not self._candidates.may_run_more(job.tenant):
            return None
        if not self._quarantine.admits(job):
            return None
        able, tried = self._admission.refresh_able(job), (*tried, *job.lacking)
        return self._candidates.find(
            job.tenant, job.submission, able, job.pinned, tried, job.avoid, must_bind=must_bind
        )

    # -- offering ------------------------------------------------------------------------------------------------

    def is_sending(self, job: Job) -> bool:
        """Return True if an offer of the job is under way, so that its outcome is not known yet."""
        return job in self._turns

    async def _send(self, job: Job) -> Reply | None:
        """Offer the job until a backend has it. Return the refusal if a backend refuses it.

        If the job is given up and sent again, it gets a new turn. An offer of an older turn then has no effect.
        """
        tried: set[str] = set()
        turn = self._turns[job] = _Turn()
        job.lacking = frozenset()
        try:
            while job.state is State.SENDING and (assignment := job.assignment) is not None:
                backend = self._fleet.backends[assignment.backend]
                tried.add(backend.name)
                try:
                    outcome = await self._offer(job, backend, assignment, turn)
                except Exception as error:  # noqa: BLE001
                    # If an answer breaks the gateway's own code, fail this job alone, because else it would never end.
                    self._failures.report("dispatcher", error, f"dispatcher:{job.prompt_id}", **job.log_ids)
                    return broken_here(error)
                if self._turns.get(job) is not turn or outcome in (Offer.TAKEN, Offer.SUPERSEDED):
                    return None
                if isinstance(outcome, Reply):
                    return outcome
                is_here = job.is_sent_by(assignment)
                if is_here:
                    found = backend if outcome is Offer.AGAIN else self._choose(job, *tried, must_bind=True)
                    if found is None and self._late is not None:
                        # Pause, because the plan may choose the same backend at once.
                        job.not_before = time.monotonic() + self._settings.backoff
                        self._tasks.start(self._wake_after(self._settings.backoff), job.prompt_id)
                    self._place(job, found)
                if outcome is Offer.UNREACHED:
                    # Tell the fleet after this job has moved, because the fleet gives up all jobs of the backend.
                    self._fleet.refused(backend)
                if not is_here or not await journal_assignment(self._ledger, job):
                    return None
        finally:
            if self._turns.get(job) is turn:
                del self._turns[job]
        return None

    async def _offer(self, job: Job, backend: Backend, assignment: Assignment, turn: _Turn) -> Offer | Reply:
        outcome = "taken"
        try:
            changed = await self._inputs.prepare(job, backend)
            if self._turns.get(job) is not turn or not job.is_sent_by(assignment):
                outcome = "withdrawn"
                return Offer.SUPERSEDED
            steering = None if self._poisonous.is_held(job) else self._admission.steering(job, backend.name)
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
            return Offer.UNREACHED
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
                return await self._refused_there(job, backend, assignment, answer, turn)
            _log.warning("prompt_offer_failed", backend=backend.name, **job.log_ids, status=answer.status)
            return await self._ask(job, backend, assignment, answer)
        finally:
            if outcome not in ("unanswered", "taken", "5xx"):
                self._ledger.offered(assignment, is_there=False)
            self._metrics.dispatches.labels(backend.name, outcome).inc()

    async def _refused_there(
        self, job: Job, backend: Backend, assignment: Assignment, answer: Answer, turn: _Turn
    ) -> Offer | Reply:
        again = await self._lost_inputs.after_refusal(job, backend, answer.body)
        if again is Offer.AGAIN or (again is not None and self._choose(job, backend.name, must_bind=True) is not None):
            return again
        turn.refusals.append(refusal_for(job, assignment, answer, self._inputs.outputs, self._admission))
        if len(turn.refusals) < self._settings.attempts:
            # If the backend lacks a class or a choice, another backend may have it: the gateway's copy may be old.
            others = await self._outdated_copies.find_others(job, backend, answer.body)
            if others or (others is None and self._choose(job, must_bind=True) is not None):
                return Offer.NOT_SENT
        return turn.refusals[0]

    async def _taken(self, job: Job, backend: Backend, assignment: Assignment, answer: Answer) -> Offer | Reply:
        own_id, (known_as, node_errors) = assignment.upstream_id, read_taken(answer.body)
        if known_as is None or (known_as != own_id and not self._ledger.may_be_called(job, known_as)):
            # If the answer has no id, or another prompt's, ask for the prompt by the id that the gateway gave.
            _log.warning("prompt_answer_unclear", backend=backend.name, **job.log_ids)
            return await self._ask(job, backend, assignment, answer)
        self._ledger.offered(assignment, is_there=known_as == own_id or job.assignment is assignment)
        lacks = known_as == own_id and await self._lost_inputs.after_errors(job, backend, node_errors) is Offer.AGAIN
        if job.assignment is assignment and lacks and not job.is_ending:
            # If the backend dropped an output because its file is gone, its prompt becomes an orphan: send it again.
            self._ledger.lose(job)
            self._tasks.start(drop_orphans(self._ledger, backend, [own_id]), f"drop:{own_id}")
            self._resend(job)
        elif known_as == own_id and await self._outdated_copies.take_back(job, backend, assignment, node_errors):
            self._ledger.offered(assignment, is_there=False)
            return Offer.NOT_SENT
        elif job.assignment is assignment:
            said = node_errors_for(job, assignment, known_as, node_errors, self._inputs.outputs, self._admission)
            self._ledger.taken(job, known_as, said)
        else:
            # If the job was cancelled or given up during the offer, the backend's prompt is an orphan.
            self._ledger.orphans.add(backend.name, known_as)
            self._tasks.start(drop_orphans(self._ledger, backend, [known_as]), f"drop:{known_as}")
        return Offer.TAKEN

    async def _ask(
        self, job: Job, backend: Backend, assignment: Assignment, answer: Answer | None = None
    ) -> Offer | Reply:
        """Ask a backend if it has a prompt to which no clear answer came. Until it replies, the job stays with it."""
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
        """Try the next best backend after a 5xx or an unclear answer, but once. Else return the failure."""
        if self._choose(job, backend.name, must_bind=True) is not None and job.attempts == 0:
            job.attempts += 1
            return Offer.NOT_SENT
        return failure_for(job, assignment, answer, self._inputs.outputs)
