"""Prompts that end a ComfyUI, or its prompt-running thread: the simulator ends as well, a gateway lets none pass.

Tried on a real 0.33.0: each of `WEDGING` is answered 200 there, and no prompt runs afterwards.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until


def _preview(more: dict[str, Any] | None = None, **inputs: Any) -> dict[str, Any]:
    image = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    return {"1": image, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0], **inputs}}, **(more or {})}


def _chain(length: int) -> dict[str, Any]:
    sources = ["1", *(f"c{n}" for n in range(length - 1))]
    return {
        f"c{n}": {"class_type": "ImageInvert", "inputs": {"image": [source, 0]}} for n, source in enumerate(sources)
    }


WEDGING: dict[str, dict[str, Any]] = {
    "no inputs": _preview({"9": {"class_type": "EmptyImage"}}),
    "undeclared link": _preview(bogus=["99", 0]),
    "hidden link": _preview(prompt=["99", 0]),
    "wrapped link": _preview(images={"__value__": ["99", 0]}),
    "long chain": _preview(_chain(1_000)),
}
ENDING = {"list": {"client_id": [1]}, "object": {"client_id": {"a": 1}}, "inside": {"extra_data": {"client_id": [1]}}}


@pytest.mark.parametrize("body", ENDING.values(), ids=ENDING.keys())
async def test_a_client_id_that_is_no_text_ends_a_simulator(lab: Lab, body: dict[str, Any]) -> None:
    simulator = await lab.simulator()
    status, _ = await Comfy(lab.http, simulator.url).post("/prompt", {"prompt": _preview(), **body})
    assert status == 200
    assert await simulator.wait() == 1


@pytest.mark.parametrize("prompt", WEDGING.values(), ids=WEDGING.keys())
async def test_a_simulator_runs_no_prompt_any_more(lab: Lab, prompt: dict[str, Any]) -> None:
    simulator = await lab.simulator()
    comfy = Comfy(lab.http, simulator.url)
    prompt_id = await comfy.prompt(prompt)

    async def look() -> bool:
        return "prompt_worker ended" in simulator.log.read_text()

    await until(look)
    await comfy.prompt(_preview())
    queue = await comfy.get("/queue")
    assert [item[1] for item in queue["queue_running"]] == [prompt_id]
    assert len(queue["queue_pending"]) == 1


async def test_none_passes_a_gateway(lab: Lab) -> None:
    simulator = await lab.simulator()
    comfy = Comfy(lab.http, (await lab.gateway(simulator)).url)
    for body in ENDING.values():
        entry = await comfy.entry(await comfy.prompt(_preview(), **body))
        assert entry["status"]["status_str"] == "success"
        assert entry["prompt"][3]["client_id"] in ([1], {"a": 1})
    for name, prompt in WEDGING.items():
        status, answer = await comfy.post("/prompt", {"prompt": prompt})
        assert (status, answer["error"]["type"]) == (400, "invalid_prompt"), name
        assert "would stop the ComfyUI" in answer["error"]["message"]
    # ComfyUI's own refusal of a link that its validation follows.
    status, answer = await comfy.post("/prompt", {"prompt": _preview(images=["99", 0])})
    assert (status, answer["error"]["type"]) == (400, "prompt_outputs_failed_validation")
    entry = await comfy.entry(await comfy.prompt(_preview()))
    assert entry["status"]["status_str"] == "success"
