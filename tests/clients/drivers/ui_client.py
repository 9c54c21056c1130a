"""Drives comfy-ui-client, of PyPI: one thread and one socket a client, which it opens when POST /prompt is answered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from json import JSONDecodeError
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from _driver import encode, main, runs, until
from comfy_ui_client import ComfyUIClient
from comfy_ui_client.type import ImageRef

Prompt = dict[str, Any]


def _client(url: str) -> ComfyUIClient:
    client = ComfyUIClient(urlsplit(url).netloc)
    client.ws.timeout = 50
    return client


def _run(client: ComfyUIClient, prompt: Prompt) -> dict[str, Any]:
    statuses: list[int] = []
    progress: list[int] = []
    executed: list[str] = []

    def keep_status(message: dict[str, Any]) -> None:
        statuses.append(message["data"]["status"]["exec_info"]["queue_remaining"])

    outputs = client.get_outputs(
        prompt,
        handle_status_event=keep_status,
        handle_progress_event=lambda node, value, maximum: progress.append(value) if maximum else None,
        handle_executed_event=lambda data: executed.append(data["node"]),
    )
    folders = [folder for node in outputs["images"].values() for types in node.values() for folder in types.values()]
    images = [encode(data) for folder in folders for data in folder.values()]
    return {"images": images, "statuses": statuses, "progress": progress, "executed": executed}


def run_together(url: str, prompts: list[Prompt]) -> dict[str, Any]:
    """Run prompts at the same time, with a client each, as it knows one prompt at a time."""
    with ThreadPoolExecutor(len(prompts)) as threads:
        return {"results": list(threads.map(lambda prompt: _run(_client(url), prompt), prompts))}


def upload(url: str, path: str, prompt: Prompt) -> dict[str, Any]:
    """Upload an image and a mask for it, and run prompts that load them."""
    client = _client(url)
    reference = ImageRef("mine.png", "from ui client", "input")
    uploaded = client.upload_image(reference, path, overwrite=True)
    masked = client.upload_mask(reference, path)
    results = []
    for name in (uploaded, masked):
        prompt["1"]["inputs"]["image"] = f"{name['subfolder']}/{name['name']}".lstrip("/")
        results.append(_run(client, prompt))
    return {"uploaded": uploaded, "masked": masked, "results": results}


def interrupt(url: str, prompt: Prompt) -> dict[str, Any]:
    """Interrupt a prompt that runs, and delete what is left of it."""
    client = _client(url)
    client.connect()
    prompt_id = client.queue_prompt(prompt)["prompt_id"]
    until(lambda: runs(client.get_queue(), prompt_id))
    # If ComfyUI interrupts, it answers with an empty body, which the client can't read.
    with suppress(JSONDecodeError):
        client.interrupt()
    entry = until(lambda: client.get_history(prompt_id).get(prompt_id))
    client.delete_history([prompt_id])
    client.close()
    return {"status": entry["status"], "left": client.get_history(prompt_id)}


def refused(url: str, prompt: Prompt) -> dict[str, Any]:
    """Run a prompt that is refused."""
    try:
        _client(url).get_outputs(prompt)
    except HTTPError as error:
        return {"status": error.code, "text": error.read().decode()}
    return {}


def reads(url: str) -> dict[str, Any]:
    """What it can ask for besides."""
    client = _client(url)
    return {
        "embeddings": client.get_embeddings(),
        "extensions": client.get_extensions(),
        "stats": sorted(client.get_system_stats()["system"]),
        "prompt": client.get_prompt(),
        "sampler": client.get_object_info("KSampler"),
        "classes": sorted(client.get_object_info()),
        "queue": client.get_queue(),
    }


main(
    {"run_together": run_together, "upload": upload, "interrupt": interrupt, "refused": refused, "reads": reads},
)
