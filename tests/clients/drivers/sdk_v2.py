"""Drives comfy-sdk, which speaks to the gateway itself: the Comfy API v2."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from _driver import encode, main, until
from comfy_sdk import AsyncComfy, Comfy, ComfyError, JobFailed
from comfy_sdk.events import OutputReady, Preview, Progress, StatusChange

Prompt = dict[str, Any]
LIMIT = 50.0


def _client(url: str, key: str) -> Comfy:
    os.environ["COMFY_BASE_URL"] = url
    return Comfy(api_key=key)


def _images(job: Any) -> dict[str, Any]:
    return {"id": job.id, "status": job.status, "images": [encode(output.to_bytes()) for output in job.outputs]}


def run(url: str, key: str, path: str, prompt: Prompt) -> dict[str, Any]:
    """Run a graph with an asset twice, ask for its graph, a part, a link and the bytes' record, and delete it."""
    with _client(url, key) as client:
        results, created, hashes = [], [], []
        for _ in range(2):
            asset = client.assets.from_file(path)
            workflow = client.workflows.from_json(prompt)
            workflow.set_input("1", "image", asset)
            job = client.run(workflow)
            results.append(_images(job))
            created.append(asset.created_new)
            hashes.append(asset.hash)
        link = job.outputs[0].get_download_url()
        found = {
            "results": results,
            "created": created,
            "hashes": hashes,
            "graph": client.jobs.get(job.id).get_workflow().graph,
            "part": encode(job.outputs[0].to_bytes(range=(0, 7))),
            "link": link.url,
            "is_same": client.jobs.get(job.id).outputs[0].size_bytes == len(job.outputs[0].to_bytes()),
        }
        asset.delete()
        return found


def events(url: str, key: str, prompt: Prompt) -> dict[str, Any]:
    """Follow a job's events, from its submission and once more when it has ended."""
    with _client(url, key) as client:
        job = client.submit(client.workflows.from_json(prompt))
        seen = [list(job.events()) for _ in range(2)]
        kinds = [[type(event).__name__ for event in found] for found in seen]
        first = seen[0]
        return {
            "kinds": kinds,
            "previews": [encode(event.data) for event in first if isinstance(event, Preview)],
            "progress": [event.value for event in first if isinstance(event, Progress)],
            "statuses": [event.status for event in first if isinstance(event, StatusChange)],
            "outputs": [encode(event.output.to_bytes()) for event in first if isinstance(event, OutputReady)],
            "result": _images(job.result()),
        }


def cancel(url: str, key: str, prompt: Prompt, running: int) -> dict[str, Any]:
    """Cancel jobs of which so many run, and one that waits."""
    with _client(url, key) as client:
        jobs = [client.submit(client.workflows.from_json(prompt)) for _ in range(running + 1)]
        until(lambda: all(job.refresh().status == "running" for job in jobs[:running]))
        returned = [job.cancel().status for job in reversed(jobs)]
        return {"returned": returned[::-1], "ended": [job.wait(timeout=LIMIT).status for job in jobs]}


def labels(url: str, key: str, other: str, prompt: Prompt) -> dict[str, Any]:
    """List jobs by their labels, page by page, as two tenants."""
    with _client(url, key) as client:
        jobs = [
            client.submit(client.workflows.from_json(prompt), metadata={"client": "acme", "n": str(n % 2)})
            for n in range(4)
        ]
        for job in jobs:
            job.wait(timeout=LIMIT)
        odd = list(client.list_jobs(metadata={"client": "acme", "n": "1"}, limit=1))
        found = {
            "submitted": [job.id for job in jobs],
            "listed": [summary.id for summary in client.list_jobs(metadata={"client": "acme"}, limit=3)],
            "odd": [summary.id for summary in odd],
            "labels": client.jobs.get(jobs[1].id).metadata,
            "has_times": all(summary.create_time is not None for summary in odd),
        }
    with _client(url, other) as client:
        found["others"] = [summary.id for summary in client.list_jobs()]
        found["read"] = _refused(lambda: client.jobs.get(jobs[0].id))
    return found


def _refused(call: Callable[[], Any]) -> list[Any]:
    try:
        call()
    except JobFailed as error:
        return [type(error).__name__, error.code, 200]
    except ComfyError as error:
        return [type(error).__name__, error.code, error.http_status, bool(error.request_id)]
    return []


def errors(url: str, key: str, prompt: Prompt, failing: Prompt) -> dict[str, Any]:
    """Have everything refused that can be, and tell each exception."""
    with _client(url, key) as client:

        def submit(graph: Any, **more: Any) -> Callable[[], Any]:
            return lambda: client.submit(client.workflows.from_json(graph), **more)

        missing = {"1": {"class_type": "LoadImage", "inputs": {"image": {"__type": "core/ASSET", "info": {"id": "x"}}}}}
        client.submit(client.workflows.from_json(prompt), idempotency_key="once").wait(timeout=LIMIT)
        calls = {
            "invalid": submit({"1": {"class_type": "NoSuchNode", "inputs": {}}}),
            "reused": submit(prompt, idempotency_key="once"),
            "unknown": lambda: client.jobs.get("nope"),
            "missing": submit(missing),
            "labels": submit(prompt, metadata={"a b": "c"}),
            "failed": lambda: client.run(client.workflows.from_json(failing)),
        }
        found = {name: _refused(call) for name, call in calls.items()}
    with _client(url, "wrong-key-0123456789") as client:
        found["unauthorized"] = _refused(lambda: client.jobs.get("nope"))
    return found


def together(url: str, key: str, prompts: list[Prompt]) -> dict[str, Any]:
    """Run jobs at the same time."""

    async def one(client: AsyncComfy, prompt: Prompt) -> dict[str, Any]:
        job = await client.run(client.workflows.from_json(prompt))
        return {"status": job.status, "images": [encode(await output.to_bytes()) for output in job.outputs]}

    async def all_of_them() -> list[dict[str, Any]]:
        os.environ["COMFY_BASE_URL"] = url
        async with AsyncComfy(api_key=key) as client:
            return await asyncio.gather(*(one(client, prompt) for prompt in prompts))

    began = time.monotonic()
    return {"results": asyncio.run(all_of_them()), "seconds": time.monotonic() - began}


main(
    {"run": run, "events": events, "cancel": cancel, "labels": labels, "errors": errors, "together": together},
)
