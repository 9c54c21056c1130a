"""Drives comfy-api-simplified."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from _driver import encode, main, runs, until
from comfy_api_simplified import ComfyApiError, ComfyApiWrapper, ComfyWorkflowWrapper

Prompt = dict[str, Any]


def _images(api: ComfyApiWrapper, prompt_id: str) -> list[str]:
    outputs = api.get_history(prompt_id)[prompt_id]["outputs"]
    images = [image for output in outputs.values() for image in output.get("images", [])]
    return [encode(api.get_image(image["filename"], image["subfolder"], image["type"])) for image in images]


def _run(api: ComfyApiWrapper, prompt: Prompt) -> dict[str, Any]:
    prompt_id, previews = asyncio.run(api.queue_prompt_and_wait(ComfyWorkflowWrapper(prompt)))
    return {"previews": [encode(preview) for preview in previews], "images": _images(api, prompt_id)}


def wait_images(url: str, prompt: Prompt, node: str) -> dict[str, Any]:
    """The call of its README."""
    found = ComfyApiWrapper(url).queue_and_wait_images(ComfyWorkflowWrapper(prompt), node)
    return {"names": list(found), "images": [encode(data) for data in found.values()]}


def run(url: str, prompts: list[Prompt], user: str = "", password: str = "") -> dict[str, Any]:
    """Run prompts at the same time, each with a connection of its own."""
    api = ComfyApiWrapper(url, user, password)
    with ThreadPoolExecutor(len(prompts)) as pool:
        return {"results": list(pool.map(lambda prompt: _run(api, prompt), prompts))}


def upload(url: str, path: str, prompt: Prompt) -> dict[str, Any]:
    """Upload an image and run a prompt that loads it."""
    api = ComfyApiWrapper(url)
    uploaded = api.upload_image(path)
    workflow = ComfyWorkflowWrapper(prompt)
    workflow.set_node_param("LoadImage", "image", f"{uploaded['subfolder']}/{uploaded['name']}")
    return {"uploaded": uploaded, "results": [_run(api, workflow)]}


def interrupt(url: str, prompt: Prompt) -> dict[str, Any]:
    """Interrupt a prompt that runs."""
    api = ComfyApiWrapper(url)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: asyncio.run(api.queue_prompt_and_wait(prompt)))
        until(lambda: api.get_queue()["queue_running"])
        api.interrupt()
        prompt_id, _ = waiting.result(40)
    return {"status": api.get_history(prompt_id)[prompt_id]["status"], "images": _images(api, prompt_id)}


def position(url: str, first: Prompt, second: Prompt) -> dict[str, Any]:
    """Where two prompts are in the queue, while the first runs."""
    api = ComfyApiWrapper(url)
    prompt_id = api.queue_prompt(first)["prompt_id"]
    until(lambda: runs(api.get_queue(), prompt_id))
    before = [api.get_queue_size_before(prompt_id)]
    other = api.queue_prompt(second)["prompt_id"]
    before.append(api.get_queue_size_before(other))
    return {"before": before}


def fail(url: str, prompt: Prompt) -> dict[str, Any]:
    """Run a prompt that fails."""
    try:
        asyncio.run(ComfyApiWrapper(url).queue_prompt_and_wait(prompt))
    except ComfyApiError as error:
        return {"error": str(error)}
    return {"error": None}


def reads(url: str) -> dict[str, Any]:
    """What it can ask for besides."""
    api = ComfyApiWrapper(url)
    return {
        "queue": api.get_queue(),
        "sampler": api.get_object_info("KSampler"),
        "classes": sorted(api.get_object_info()),
        "embeddings": api.get_embeddings(),
        "stats": sorted(api.get_system_stats()["system"]),
    }


main(
    {
        "wait_images": wait_images,
        "run": run,
        "upload": upload,
        "interrupt": interrupt,
        "position": position,
        "fail": fail,
        "reads": reads,
    }
)
