"""POST /api/v2/jobs: check the body, resolve references to assets, and submit the prompt as POST /prompt does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial

from aiohttp import web

from gateway.comfy import json_codec
from gateway.comfy.ids import new_prompt_id
from gateway.jobs.admission.replies import Overloaded, Reply
from gateway.jobs.parsing.json_reader import NotRead
from gateway.jobs.scheduling.dispatcher import RETRY_AFTER_SECONDS
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import Submission
from gateway.store.protocol import StoreError
from gateway.telemetry.tasks import in_turns
from gateway.tenants.limits import LimitReached
from gateway.web.guard.authentication import key_of
from gateway.web.guard.context import caller, context_of
from gateway.web.guard.prompt_headers import with_requirement
from gateway.web.http.request_body import read_json
from gateway.web.http.request_ids import request_id_of
from gateway.web.http.request_log import name_jobs
from gateway.web.http.v2_errors import V2Error
from gateway.web.v2.assets import hash_of, name_of
from gateway.web.v2.outputs import Output, job_of
from gateway.web.v2.references import Reference, may_hold_references, references_in, resolving
from gateway.web.v2.service import v2_of
from gateway.web.v2.submission import SHORT, NewJob, error_of_refusal, idempotency_key, read

# Bytes and values of a graph that has references, because it is parsed here.
MAX_GRAPH_BYTES, MAX_GRAPH_VALUES = 4 * 1024**2, 40_000
# Jobs whose outputs one graph may refer to.
MAX_SOURCES = 50
# Limits of a tenant that are reached because too many of its jobs wait.
_QUEUE_LIMITS = ("jobs_waiting", "open_bytes")
_REUSED = (
    "This Idempotency-Key has already been used. Keys are single-use; poll or list your jobs instead of resubmitting "
    "with the same key."
)
_RETRY = {"Retry-After": str(RETRY_AFTER_SECONDS)}
# If one of these is raised, there is certainly no job.
_NO_JOB = (
    Rejection,
    Overloaded,
    LimitReached,
    StoreError,
    NotRead,
    V2Error,
    json_codec.MalformedJson,
    web.HTTPRequestEntityTooLarge,
)


async def accept(request: web.Request) -> tuple[str, NewJob]:
    """Accept the job in a request. Return its id and its checked body.

    Raises:
        V2Error: it is refused.
        LimitReached, StoreError: as on POST /prompt.
    """
    gateway, v2, tenant = context_of(request), v2_of(request), caller(request).tenant
    gateway.limits.prompt(tenant, time.monotonic())
    maximum = gateway.settings.dispatch.max_prompt_bytes
    prompt_id, key = new_prompt_id(), None
    try:
        with gateway.limits.body(tenant) as grow:
            body = await read_json(request, maximum, grow)
            new = await _checked(request, body)
            del body
            workflow = await resolved(request, new.workflow)
            given = idempotency_key(request.headers.get("Idempotency-Key"))
            if trouble := gateway.engine.ledger.trouble:
                # Before the journal owes anything about a job that it would refuse.
                raise StoreError(trouble)
            if given is not None and v2.keys.is_taken(tenant, given):
                raise V2Error(422, "idempotency_key_reuse", _REUSED)
            submission = await read_submission(request, new.prompt_body(prompt_id, workflow))
            del workflow
            # Taken late, because a gateway that is killed before it has the job's record keeps the key without a job.
            if given is not None and not v2.keys.take(tenant, given, int(time.time() * 1000)):
                raise V2Error(422, "idempotency_key_reuse", _REUSED)
            key = given
            v2.kept.put_note(tenant, prompt_id, new.note)
        await _submit(request, submission)
    except _NO_JOB as error:
        v2.kept.drop_note(tenant, prompt_id)
        if key is not None:
            v2.keys.free(tenant, key)
        if (refusal := _refused(request, error)) is not error:
            raise refusal from error
        raise
    name_jobs(request, [prompt_id])
    return prompt_id, new


async def _checked(request: web.Request, body: bytes) -> NewJob:
    """Check a body; a long one in a thread, which goes in short steps, few at a time.

    Raises:
        V2Error: it can't be a job.
    """
    maximum = context_of(request).settings.dispatch.max_body_values
    if len(body) <= SHORT:
        return read(body, maximum)
    async with v2_of(request).threads:
        return await asyncio.to_thread(read, body, maximum)


def _refused(request: web.Request, error: Exception) -> Exception:
    """Return the refusal of a submission that made no job, in the form of the API where it has one."""
    match error:
        case web.HTTPRequestEntityTooLarge():
            return V2Error(413, "payload_too_large", f"The request body is too large: {error.text}")
        case json_codec.MalformedJson():
            return V2Error(400, "invalid_request", "Body must be JSON.")
        case NotRead():
            return V2Error(503, "upstream_unreachable", f"The workflow could not be read: {error}", None, _RETRY)
        case Overloaded():
            if error.limit is not None:
                context_of(request).metrics.limited.labels(error.limit).inc()
            # Without a limit, no backend has told its node classes yet: a client is to wait as for a cold start.
            code = "queue_full" if error.limit is not None else "deployment_not_ready"
            return V2Error(429, code, f"No job can be accepted now: {error}", None, _RETRY)
        case Rejection():
            context_of(request).metrics.prompts_refused.labels(error.body["error"]["type"]).inc()
            return error_of_refusal(error.status, error.body)
    return error


async def read_submission(request: web.Request, body: bytes) -> Submission:
    """Read the body of POST /prompt into a submission, as that route does.

    Raises:
        Rejection, NotRead, Overloaded: as on that route.
    """
    engine, identity = context_of(request).engine, caller(request)
    await engine.admission.ready(identity.tenant)
    submission = await engine.reader.read(
        identity.tenant,
        body,
        engine.admission.file_inputs,
        by_admin=identity.is_admin,
        inspect=engine.admission.inspector(identity.tenant, by_admin=identity.is_admin),
        own_name=partial(engine.outputs.own_name, identity.tenant),
        request_id=request_id_of(request),
    )
    if submission.secrets and (key := key_of(request)) is not None:
        submission = submission.without_secret(key)
    submission = await engine.bindings.with_bound(identity.tenant, with_requirement(request, submission))
    await engine.admission.ready_for(submission)
    return submission


async def _submit(request: web.Request, submission: Submission) -> None:
    """Submit a prompt. Return once it is accepted.

    Raises:
        V2Error: a backend, or a full queue, refused it.
        Rejection, Overloaded, LimitReached, StoreError: as `submit`.
    """
    try:
        reply = await submit(request, submission)
    except LimitReached as reached:
        if reached.limit not in _QUEUE_LIMITS or reached.retry_after is None:
            raise
        context_of(request).metrics.limited.labels(reached.limit).inc()
        headers = {"Retry-After": str(reached.retry_after)}
        raise V2Error(429, "queue_full", f"{reached.message}: {reached}", None, headers) from reached
    if reply.status != 200:
        raise error_of_refusal(reply.status, _object(reply.body))


async def submit(request: web.Request, submission: Submission) -> Reply:
    """Submit a prompt. Return the reply once it is accepted, also if its backend has not answered yet, or refused.

    Raises:
        Rejection, Overloaded, LimitReached, StoreError: as `Dispatcher.submit`.
    """
    gateway, v2, tenant = context_of(request), v2_of(request), caller(request).tenant
    early: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def answer_early(reply: Reply) -> None:
        if not early.done():
            early.set_result(reply)

    async def work() -> Reply | Exception:
        try:
            return await gateway.engine.dispatcher.submit(tenant, submission, answer_early)
        except (Rejection, Overloaded, LimitReached, StoreError) as error:
            # A task's failure is reported as a fault, and these are none.
            return error

    # In a task of its own, because it goes on after an early answer.
    task = v2.tasks.start(work(), "submission")
    waited: set[asyncio.Future[object]] = {task, early}  # type: ignore[arg-type]
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if early.done():
        return early.result()
    outcome = await task
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _object(body: bytes) -> Mapping[str, object]:
    try:
        value = json_codec.loads(body)
    except json_codec.MalformedJson:
        return {}
    return value if isinstance(value, dict) else {}


async def resolved(request: web.Request, workflow: bytes) -> bytes:
    """Return a graph with the names of files in place of references to assets.

    Raises:
        V2Error: a reference leads to nothing of the caller's, or the graph is too large to be looked through.
    """
    if not may_hold_references(workflow):
        return workflow
    if len(workflow) > MAX_GRAPH_BYTES or json_codec.count_values(workflow) > MAX_GRAPH_VALUES:
        said = f"A workflow with references has at most {MAX_GRAPH_BYTES} bytes and {MAX_GRAPH_VALUES} values."
        raise V2Error(413, "payload_too_large", said)
    graph, encode = json_codec.read_bounded(workflow, context_of(request).settings.dispatch.max_depth)
    await asyncio.sleep(0)
    found = [each for each in await in_turns(references_in(graph)) if isinstance(each, Reference)]
    outputs = await _outputs_named(request, found)
    assets, tenant = v2_of(request).assets, caller(request).tenant

    def resolve(reference: Reference) -> str | None:
        asset = assets.find(tenant, reference.id)
        if asset is None and (digits := hash_of(reference.hash)) is not None and reference.id not in outputs:
            asset = next(iter(assets.by_hash(tenant, digits)), None)
        if asset is not None:
            return name_of(asset)
        output = outputs.get(reference.id)
        return None if output is None else _name_of_output(output)

    missing = await in_turns(resolving(graph, resolve))
    if missing:
        said = f"Unresolvable core/ASSET reference(s): {', '.join(missing[:5])}"
        raise V2Error(422, "missing_asset", said, {"missing_ids": missing})
    return encode(graph)


async def _outputs_named(request: web.Request, references: list[Reference]) -> dict[str, Output]:
    """Return the outputs of the caller's jobs that references name, by their ids."""
    sources = dict.fromkeys(job_id for each in references if (job_id := job_of(each.id)) is not None)
    if len(sources) > MAX_SOURCES:
        said = f"A workflow may refer to outputs of at most {MAX_SOURCES} jobs."
        raise V2Error(422, "missing_asset", said, {"missing_ids": []})
    wanted, jobs = {each.id for each in references}, v2_of(request).jobs
    outputs: dict[str, Output] = {}
    for job_id in sources:
        found = jobs.find(caller(request), job_id)
        if found is not None and found.tenant == caller(request).tenant:
            outputs |= {each.id: each for each in await jobs.outputs(found) if each.id in wanted}
    return outputs


def _name_of_output(output: Output) -> str:
    """Return the text that stands for an output in a graph: a file with its folder, or the text itself."""
    if output.ref is None:
        return output.text
    folder = f"{output.ref.subfolder}/" if output.ref.subfolder else ""
    return f"{folder}{output.ref.filename} [{output.ref.kind}]"
