"""Drives comfyui-xy: its blocking client, and its asynchronous one for what runs at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

from _driver import encode, main, runs, until
from comfyui_xy import AsyncComfyUiClient, ComfyUiClient, ComfyUiHttpError

Prompt = dict[str, Any]
LIMIT = 50


def _client(url: str) -> ComfyUiClient:
    return ComfyUiClient(url, execution_timeout=LIMIT, raise_on_error=True)


def _result(responses: list[Any]) -> dict[str, Any]:
    return {
        "images": [encode(response.data) for response in responses if response.file_type == "image"],
        "types": sorted({response.source_type for response in responses if response.is_file}),
    }


def run(url: str, prompts: list[Prompt]) -> dict[str, Any]:
    """Run prompts one after the other."""
    client = _client(url)
    return {"results": [_result(client.process_workflow(prompt)) for prompt in prompts]}


def run_together(url: str, prompts: list[Prompt]) -> dict[str, Any]:
    """Run prompts at the same time."""

    async def together() -> list[list[Any]]:
        async with AsyncComfyUiClient(url, execution_timeout=LIMIT, raise_on_error=True) as client:
            return await asyncio.gather(*(client.process_workflow(prompt) for prompt in prompts))

    return {"results": [_result(responses) for responses in asyncio.run(together())]}


def upload(url: str, path: str, prompt: Prompt) -> dict[str, Any]:
    """Upload an image with each client and run prompts that load it."""

    async def asynchronously() -> list[Any]:
        async with AsyncComfyUiClient(url, execution_timeout=LIMIT, raise_on_error=True) as client:
            prompt["1"]["inputs"]["image"] = await client.upload_image(path)
            return await client.process_workflow(prompt)

    client = _client(url)
    name = prompt["1"]["inputs"]["image"] = client.upload_image(path)
    results = [_result(client.process_workflow(prompt))]
    results.append(_result(asyncio.run(asynchronously())))
    return {"name": name, "results": results}


def upload_mask(url: str, path: str) -> dict[str, Any]:
    """Upload a mask; says how it is answered."""
    try:
        return {"name": _client(url).upload_mask(path)}
    except ComfyUiHttpError as error:
        return {"status": error.status_code}


def interrupt(url: str, prompt: Prompt) -> dict[str, Any]:
    """Interrupt a prompt that runs."""
    client = _client(url)
    prompt_id = client.queue_prompt(prompt)
    until(lambda: runs(client.get_queue(), prompt_id))
    interrupted = client.interrupt()
    outputs = client.wait_for_execution(prompt_id, check_interval=0.05)
    return {
        "interrupted": interrupted,
        "outputs": outputs,
        "status": client.get_history(prompt_id)[prompt_id]["status"],
    }


def fail(url: str, prompt: Prompt) -> dict[str, Any]:
    """Run a prompt that fails, or is refused."""
    client = _client(url)
    try:
        prompt_id = client.queue_prompt(prompt)
    except ComfyUiHttpError as error:
        return {"refused": error.status_code, "text": error.response_text}
    outputs = client.wait_for_execution(prompt_id, check_interval=0.05)
    return {"outputs": outputs, "status": client.get_history_all()[prompt_id]["status"]}


def reads(url: str) -> dict[str, Any]:
    """What it can ask for besides."""
    client = _client(url)
    return {
        "queue": client.get_queue(),
        "history": client.get_history_all(),
        "nothing": client.get_history("00000000-0000-0000-0000-000000000000"),
        "sampler": client.get_object_info("KSampler"),
        "unknown class": client.get_object_info("NoSuchNode"),
    }


main(
    {
        "run": run,
        "run_together": run_together,
        "upload": upload,
        "upload_mask": upload_mask,
        "interrupt": interrupt,
        "fail": fail,
        "reads": reads,
    }
)
