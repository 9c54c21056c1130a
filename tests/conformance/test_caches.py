"""Results that a ComfyUI holds, under each of its cache options: the same sequences of prompts, run again.

The recordings are of a ComfyUI 0.33.0 without a GPU. In those with `free_ram` the free RAM was a given number of bytes,
less the tensors that it held.
"""

from __future__ import annotations

import io
from typing import Any

import aiohttp
import pytest
from PIL import Image

from tests.conformance.replay import recording
from tests.support.comfy_client import Comfy, Listener
from tests.support.lab import Lab

RECORDED = recording("caches.json")
pytestmark = pytest.mark.asyncio(loop_scope="module")
# The share of a simulated machine's RAM that is free while nothing is held.
_FREE = 0.75


async def _upload(http: aiohttp.ClientSession, url: str, step: dict[str, Any]) -> None:
    with io.BytesIO() as buffer:
        Image.new("RGB", (16, 16), (step["color"], 0, 0)).save(buffer, "PNG")
        form = aiohttp.FormData({"overwrite": "true"})
        form.add_field("image", buffer.getvalue(), filename=step["upload"], content_type="image/png")
    async with http.post(f"{url}/upload/image", data=form) as answer:
        assert answer.status == 200


async def _run(comfy: Comfy, listener: Listener, step: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Run a prompt; its id, and what was told of it, in the recording's form."""
    listener.heard.clear()
    prompt_id = await comfy.prompt(step["prompt"], client_id="caches")
    await listener.end_of(prompt_id)
    told = [(each["type"], each["data"]) for each in listener.heard if each["data"].get("prompt_id") == prompt_id]
    (cached,) = [data["nodes"] for type_, data in told if type_ == "execution_cached"]
    executed = [[data["node"], data["output"] is not None] for type_, data in told if type_ == "executed"]
    seen = {
        "cached": cached,
        "ran": sorted(data["node"] for type_, data in told if type_ == "executing" and data["node"] is not None),
        "executed": sorted(executed),
        "status": "success",
    }
    for type_, data in told:
        if type_ == "execution_error":
            current_outputs, done = sorted(data["current_outputs"]), sorted(data["executed"])
            seen |= {"status": "error", "current_outputs": current_outputs, "done": done}
    return prompt_id, seen


def _alike(seen: dict[str, Any], prompt: dict[str, Any]) -> dict[str, Any]:
    """The same with the description of a node in place of its id: of two equal nodes either may be the one that ran."""

    def described(node_id: str) -> str:
        node = prompt[node_id]
        literals = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        return f"{node['class_type']} {literals}"

    executed = sorted([described(node_id), has_output] for node_id, has_output in seen["executed"])
    return {**seen, "ran": sorted(map(described, seen["ran"])), "executed": executed}


@pytest.mark.parametrize("recorded", RECORDED["runs"], ids=lambda run: " ".join(run["options"]) or "no option")
async def test_held_results(lab: Lab, recorded: dict[str, Any]) -> None:
    ram = ["--ram-gb", str(recorded["free_ram"] / _FREE / 2**30)] if recorded["free_ram"] else []
    # Without a value it is the default.
    options = recorded["options"] or ["--cache-ram"]
    simulator = await lab.simulator("--cpu", "--models", "", *options, *ram)
    comfy = Comfy(lab.http, simulator.url)
    assert (await comfy.get("/system_stats"))["system"]["argv"] == ["main.py", "--cpu", *options]
    listener = await comfy.listen("caches")
    for name, wanted in recorded["seen"].items():
        await comfy.post("/free", {"unload_models": True, "free_memory": True})
        results = []
        for step in RECORDED["sequences"][name]:
            if "free" in step:
                await comfy.post("/free", step["free"])
            elif "upload" in step:
                await _upload(lab.http, simulator.url, step)
            else:
                results.append(await _run(comfy, listener, step))
        prompts = [step["prompt"] for step in RECORDED["sequences"][name] if "prompt" in step]
        for at, ((_, seen), known, prompt) in enumerate(zip(results, wanted, prompts, strict=True)):
            assert _alike(seen, prompt) == _alike(known, prompt), (name, at)
        history = await comfy.get("/history")
        for prompt_id, seen in results:
            messages = dict(history[prompt_id]["status"]["messages"])
            assert messages["execution_cached"]["nodes"] == seen["cached"]
            assert sorted(history[prompt_id]["outputs"]) == [
                node for node, has_output in seen["executed"] if has_output
            ]
    await listener.socket.close()
