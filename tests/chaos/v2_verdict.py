"""What the Comfy API v2 must tell when the dust has settled: the same as the history, of each job."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gateway.simulator.nodes import seed_colour
from tests.chaos.clients import Accepted, Client, is_run
from tests.chaos.v2_client import TERMINAL, V2Client
from tests.chaos.world import World
from tests.support.lab import Lab
from tests.support.pictures import colour

STATUSES = {"execution_success": "succeeded", "execution_error": "failed", "execution_interrupted": "canceled"}
# Statuses of GET /gateway/run/{prompt_id} by the end of the job.
ENDS = {"succeeded": (200,), "failed": (422, 500), "canceled": (409,)}
History = dict[str, dict[str, Any]]


async def v2_problems(lab: Lab, world: World, clients: list[Client], history: History) -> list[str]:
    """Compare what the API tells of all jobs with the history, and with what its streams told."""
    problems = [problem for client in clients for problem in client.v2.problems]
    listed = await _listed(lab, world)
    known = {each["id"]: each for each in listed}
    problems += [f"{job_id}: listed {count} times" for job_id, count in _counted(listed) if count > 1]
    for client in clients:
        for accepted in client.accepted:
            problems += _job_problems(accepted, known.get(accepted.prompt_id), history.get(accepted.prompt_id))
            if accepted.task.is_v2:
                job = known.get(accepted.prompt_id, {})
                problems += _told_problems(accepted, job, client.v2)
                problems += await _output_problems(lab, accepted, job)
    return problems + [f"{job_id}: in the history, and not listed" for job_id in history.keys() - known.keys()]


def _counted(listed: list[Any]) -> list[tuple[str, int]]:
    return list(Counter(each["id"] for each in listed).items())


async def _listed(lab: Lab, world: World) -> list[Any]:
    """All jobs, page by page."""
    found, cursor = [], {}
    while True:
        async with lab.http.get(f"{world.url}/api/v2/jobs", params={"limit": "100", **cursor}) as answer:
            assert answer.status == 200, await answer.text()
            page = await answer.json()
        found += page["jobs"]
        if "next_cursor" not in page:
            return found
        cursor = {"cursor": page["next_cursor"]}


def _end_of(entry: dict[str, Any] | None) -> str:
    """The end that the history tells; a job that was cancelled before it ran has no entry."""
    if entry is None:
        return "canceled"
    return next(STATUSES[each] for each, _ in reversed(entry["status"]["messages"]) if each in STATUSES)


def _job_problems(accepted: Accepted, job: Any, entry: dict[str, Any] | None) -> list[str]:
    """A job has the end that the history tells."""
    name, wanted = accepted.prompt_id, _end_of(entry)
    if job is None:
        return [f"{name}: not listed"]
    if job["status"] != wanted:
        return [f"{name}: it is {wanted}, and listed as {job['status']}"]
    outputs = len(job["outputs"])
    return [] if outputs == (wanted == "succeeded") else [f"{name}: {wanted}, and listed with {outputs} outputs"]


def _told_problems(accepted: Accepted, job: Any, client: V2Client) -> list[str]:
    """Its stream told its outputs, and ended with its status. Its labels are those that it was sent with."""
    name, end, problems = accepted.prompt_id, client.ends.get(accepted.prompt_id), []
    missing = {each["id"] for each in job.get("outputs", ())} - set(client.outputs.get(name, ()))
    if missing:
        problems.append(f"{name}: its events told {client.outputs.get(name)}, and not {missing}")
    if end is None or end not in TERMINAL or end != job.get("status"):
        problems.append(f"{name}: its events ended with {end}, and it is {job.get('status')}")
    if job.get("metadata") != {"seed": str(accepted.task.seed)}:
        problems.append(f"{name}: its labels are {job.get('metadata')}")
    return problems


async def _output_problems(lab: Lab, accepted: Accepted, job: Any) -> list[str]:
    problems = []
    for output in job.get("outputs", ()):
        async with lab.http.get(output["url"]) as answer:
            data = await answer.read()
        if answer.status != 200 or colour(data) != seed_colour(accepted.task.seed):
            problems.append(f"{accepted.prompt_id}: its output answers {answer.status}, or is another job's")
        elif output["size_bytes"] != len(data):
            problems.append(f"{accepted.prompt_id}: its output has {len(data)} bytes, not {output['size_bytes']}")
    return problems


async def run_problems(lab: Lab, world: World, clients: list[Client], history: History) -> list[str]:
    """Compare the result of each run with the history: its picture, or the status of its error."""
    problems = []
    for accepted in (each for client in clients for each in client.accepted if is_run(each.task)):
        url = f"{world.url}/gateway/run/{accepted.prompt_id}"
        async with lab.http.get(url, headers={"Accept": "image/*", "Prefer": "wait=0"}) as answer:
            data = await answer.read()
        end = _end_of(history.get(accepted.prompt_id))
        if answer.status not in ENDS[end]:
            problems.append(f"{accepted.prompt_id}: it is {end}, and its result answers {answer.status}")
        elif end == "succeeded" and colour(data) != seed_colour(accepted.task.seed):
            problems.append(f"{accepted.prompt_id}: its result is another job's")
    return problems
