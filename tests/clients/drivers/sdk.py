"""Drives comfy-sdk, which speaks to comfy-api-proxy, which speaks to the ComfyUI."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from _driver import encode, main, until
from comfy_sdk import AsyncComfy, AsyncJob, Comfy, ComfyError, Job, JobFailed, Workflow
from comfy_sdk.events import OutputReady, Preview, Progress, StatusChange

Prompt = dict[str, Any]
LIMIT = 50.0


@contextmanager
def _proxy(url: str) -> Iterator[None]:
    """A proxy before the ComfyUI, to which the SDK's clients then speak."""
    command = [sys.executable, "-u", "-m", "comfy_api_proxy.cli", "run", "--comfyui", url, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            match = re.search(r"http://[\w.:]+", proxy.stdout.readline())
            assert match
            os.environ["COMFY_BASE_URL"] = match[0]
            yield
        finally:
            proxy.terminate()


def _images(job: Any) -> dict[str, Any]:
    return {"status": job.status, "images": [encode(output.to_bytes()) for output in job.outputs]}


def _run(client: Comfy, workflow: Workflow) -> Job:
    """As the client's own run(), but that result() asks once more how it ended.

    The proxy asks for the history entry first, and for the queue after: of a prompt that ends in between it says for
    once that it expired, at which run() gives up.
    """
    return client.submit(workflow).wait(timeout=LIMIT).result()


async def _run_beside_others(client: AsyncComfy, workflow: Workflow) -> AsyncJob:
    job = await client.submit(workflow)
    return await (await job.wait(timeout=LIMIT)).result()


def run(url: str, prompts: list[Prompt]) -> dict[str, Any]:
    """Run prompts one after the other."""
    with _proxy(url), Comfy() as client:
        jobs = [_run(client, client.workflows.from_json(prompt)) for prompt in prompts]
        return {
            "results": [_images(job) for job in jobs],
            "graphs": [job.get_workflow().graph for job in jobs],
            "listed": [summary.id for summary in client.list_jobs()] == [job.id for job in reversed(jobs)],
            "again": [_images(client.jobs.get(job.id)) for job in jobs],
        }


def run_together(url: str, prompts: list[Prompt]) -> dict[str, Any]:
    """Run prompts at the same time."""

    async def one(client: AsyncComfy, prompt: Prompt) -> dict[str, Any]:
        job = await _run_beside_others(client, client.workflows.from_json(prompt))
        return {"status": job.status, "images": [encode(await output.to_bytes()) for output in job.outputs]}

    async def together() -> list[dict[str, Any]]:
        async with AsyncComfy() as client:
            return await asyncio.gather(*(one(client, prompt) for prompt in prompts))

    with _proxy(url):
        return {"results": asyncio.run(together())}


def events(url: str, prompt: Prompt) -> dict[str, Any]:
    """Follow a prompt's events."""
    previews: list[Preview] = []
    progress: list[float] = []
    outputs: list[str] = []
    statuses: list[str] = []
    with _proxy(url), Comfy() as client:
        job = client.submit(client.workflows.from_json(prompt))
        for event in job.events():
            match event:
                case Preview():
                    previews.append(event)
                case Progress():
                    progress.append(event.value)
                case OutputReady():
                    outputs.append(encode(event.output.to_bytes()))
                case StatusChange():
                    statuses.append(event.status)
        return {
            "previews": [encode(preview.data) for preview in previews],
            "nodes": sorted({preview.node_id for preview in previews}),
            "progress": progress,
            "outputs": outputs,
            "statuses": statuses,
            "result": _images(job.result()),
        }


def upload(url: str, path: str, prompt: Prompt) -> dict[str, Any]:
    """Upload an image as an asset and run a prompt that loads it."""
    with _proxy(url), Comfy() as client:
        asset = client.assets.from_file(path)
        workflow = client.workflows.from_json(prompt)
        workflow.set_input("1", "image", asset)
        result = _images(_run(client, workflow))
        part = client.jobs.get(next(iter(client.list_jobs())).id).outputs[0].to_bytes(range=(0, 7))
        return {"created": asset.created_new, "results": [result], "part": encode(part)}


def cancel(url: str, prompt: Prompt, running: int) -> dict[str, Any]:
    """Cancel prompts of which so many run, and one that waits."""
    with _proxy(url), Comfy() as client:
        jobs = [client.submit(client.workflows.from_json(prompt)) for _ in range(running + 1)]
        until(lambda: all(job.refresh().status == "running" for job in jobs[:running]))
        for job in reversed(jobs):
            job.cancel()
        return {"results": [_images(job.wait(timeout=LIMIT)) for job in jobs]}


def fail(url: str, prompt: Prompt) -> dict[str, Any]:
    """Run a prompt that fails, or is refused."""
    with _proxy(url), Comfy() as client:
        try:
            _run(client, client.workflows.from_json(prompt))
        except JobFailed as error:
            return {"failed": str(error), "error": str(error.error)}
        except ComfyError as error:
            return {"refused": error.http_status, "code": error.code, "message": str(error)}
        return {}


main(
    {
        "run": run,
        "run_together": run_together,
        "events": events,
        "upload": upload,
        "cancel": cancel,
        "fail": fail,
    }
)
