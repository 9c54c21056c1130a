"""@stable-canvas/comfyui-client: one socket, whose previews it takes for those of the prompt that last executed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.simulator.nodes import seed_colour
from tests.clients.driving import Driver, colours, gateway_only, loading, picture
from tests.clients.target import Target
from tests.support.lab import Lab
from tests.support.workflows import slow

KEY = "0123456789abcdef0123456789abcdef"
SEEDS = [100_000 * n + 37 for n in range(4)]


@pytest.fixture
def driver(node_driver: Callable[[str], Driver]) -> Driver:
    """The client."""
    return node_driver("canvas.mjs")


async def test_runs_together(target: Target, driver: Driver) -> None:
    """Two prompts are the same, byte for byte."""
    steps = (8, 2, 3, 1)
    prompts = [slow(seed, steps=n, step_seconds=0.05) for seed, n in zip(SEEDS, steps, strict=True)]
    results = (await driver(target.url, "runTogether", prompts=[*prompts, prompts[1]]))["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in (*SEEDS, SEEDS[1])]
    for result, last in zip(results, (*steps, 2), strict=True):
        # What comes right after the answers it may miss, as it listens only once it has read them.
        assert result["progress"][-1] == last
        assert result["progress"] == sorted(result["progress"])


@gateway_only
async def test_polls(target: Target, driver: Driver) -> None:
    """It takes a prompt that is not in /queue for one that has ended, and its history entry for there."""
    prompts = [slow(seed, steps=2, step_seconds=0.05) for seed in SEEDS]
    results = (await driver(target.url, "poll", prompts=prompts))["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in SEEDS]


async def test_key(lab: Lab, driver: Driver) -> None:
    """It sends its key as ``?token=``, but the addresses of pictures that it gives are without."""
    gateway = await lab.gateway(await lab.simulator(), options=("--api-key", KEY))
    results = (await driver(gateway.url, "runTogether", prompts=[slow(SEEDS[1], steps=5)], token=KEY))["results"]
    assert colours(results) == [[seed_colour(SEEDS[1])]]


@gateway_only
async def test_upload(target: Target, driver: Driver, tmp_path: Path) -> None:
    path = picture(tmp_path / "mine.png", (200, 10, 30))
    result = await driver(target.url, "upload", path=str(path), prompt=loading())
    assert result["uploaded"]["name"].startswith("canvas")
    assert colours(result["results"]) == [[(200, 10, 30)]]


@gateway_only
async def test_interrupt(target: Target, driver: Driver) -> None:
    result = await driver(target.url, "interrupt", prompt=slow(steps=200, step_seconds=0.05))
    assert result["error"] == "Execution has been interrupted"
    assert result["status"]["status_str"] == "error"


@gateway_only
async def test_invalid_workflow(target: Target, driver: Driver) -> None:
    prompt = slow()
    del prompt["2"]["inputs"]["images"]
    result = await driver(target.url, "fail", prompt=prompt)
    assert result["body"]["node_errors"]["2"]["errors"][0]["type"] == "required_input_missing"


@gateway_only
async def test_reads(target: Target, driver: Driver) -> None:
    """All that it can read is the same as of one ComfyUI."""
    assert await driver(target.url, "reads") == await driver(target.simulators[0].url, "reads")
