"""comfyui-xy: posts without a client_id and polls /history once a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.simulator.nodes import seed_colour
from tests.clients.driving import Driver, busy, colours, loading, picture
from tests.clients.target import Target
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.workflows import failing, slow, text_to_image

SEEDS = [30_000 * n + 11 for n in range(6)]


@pytest.fixture
def driver(python_driver: Callable[[str], Driver]) -> Driver:
    """The client."""
    return python_driver("xy.py")


async def test_runs(target: Target, driver: Driver) -> None:
    prompts = [text_to_image(0x336699), slow(0x996633, save=False)]
    results = (await driver(target.url, "run", prompts=prompts))["results"]
    assert colours(results) == [[(0x33, 0x66, 0x99)], [(0x99, 0x66, 0x33)]]
    assert [result["types"] for result in results] == [["output"], ["temp"]]


async def test_parallel_runs(target: Target, driver: Driver) -> None:
    prompts = [slow(seed, step_seconds=0.1) for seed in SEEDS]
    results = (await driver(target.url, "run_together", prompts=prompts))["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in SEEDS]


async def test_upload(target: Target, driver: Driver, tmp_path: Path) -> None:
    path = picture(tmp_path / "mine.png", (10, 20, 200))
    result = await driver(target.url, "upload", path=str(path), prompt=loading())
    assert result["name"] == "mine.png"
    assert colours(result["results"]) == [[(10, 20, 200)]] * 2


async def test_upload_mask(lab: Lab, driver: Driver, tmp_path: Path) -> None:
    """It leaves out what the mask belongs to, so ComfyUI fails at it; the gateway says 400 where that says 500."""
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    lab.expect_trouble = True
    path = str(picture(tmp_path / "mask.png", (0, 0, 0)))
    alone = await driver(simulators[0].url, "upload_mask", path=path)
    assert alone == {"status": 500}
    assert await driver(gateway.url, "upload_mask", path=path) == {"status": 400}


async def test_interrupt(target: Target, driver: Driver) -> None:
    result = await driver(target.url, "interrupt", prompt=slow(steps=200, step_seconds=0.1))
    assert result["interrupted"]
    assert result["outputs"] == {}
    assert "execution_interrupted" in [name for name, _ in result["status"]["messages"]]


async def test_failing_workflow(target: Target, driver: Driver) -> None:
    result = await driver(target.url, "fail", prompt=failing("no luck"))
    assert result["outputs"] == {}
    errors = [data for name, data in result["status"]["messages"] if name == "execution_error"]
    assert [error["exception_message"].strip() for error in errors] == ["no luck"]


async def test_invalid_workflow(target: Target, driver: Driver) -> None:
    prompt = slow()
    del prompt["2"]["inputs"]["images"]
    result = await driver(target.url, "fail", prompt=prompt)
    assert result["refused"] == 400
    assert json.loads(result["text"])["node_errors"]["2"]["errors"][0]["type"] == "required_input_missing"


async def test_reads(lab: Lab, driver: Driver) -> None:
    """All that it can read is the same as of one ComfyUI."""
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    assert await driver(gateway.url, "reads") == await driver(simulators[0].url, "reads")


async def test_backend_dies(lab: Lab, driver: Driver) -> None:
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    prompts = [slow(seed, steps=15, step_seconds=0.1) for seed in SEEDS]
    run = await driver.start(gateway.url, "run_together", prompts=prompts)
    await (await busy(Comfy(lab.http, gateway.url), simulators, 3)).kill()
    assert colours((await run.result())["results"]) == [[seed_colour(seed)] for seed in SEEDS]
