"""comfy-ui-client, of PyPI: asks /queue at each ``status``, and fails if more than one prompt runs there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.driving import Driver, colours, gateway_only, loading, picture, run_together
from tests.clients.target import Target
from tests.support.lab import Lab
from tests.support.workflows import slow

SEEDS = [70_000 * n + 23 for n in range(5)]


@pytest.fixture
def driver(python_driver: Callable[[str], Driver]) -> Driver:
    """The client."""
    return python_driver("ui_client.py")


async def test_five_prompts_at_once(lab: Lab, target: Target, driver: Driver) -> None:
    """Two of them are the same, byte for byte."""
    maximum = await run_together(lab.http, driver, target.url, target.simulators, [*SEEDS[:4], SEEDS[0]])
    assert (maximum > 1) == target.is_gateway


@gateway_only
async def test_upload(target: Target, driver: Driver, tmp_path: Path) -> None:
    """It sends as the mask the picture itself, of which ComfyUI takes no more than the transparency."""
    path = picture(tmp_path / "mine.png", (10, 20, 200))
    result = await driver(target.url, "upload", path=str(path), prompt=loading())
    assert result["uploaded"] == {"name": "mine.png", "subfolder": "from ui client", "type": "input"}
    assert colours(result["results"]) == [[(10, 20, 200)]] * 2


@gateway_only
async def test_interrupt(target: Target, driver: Driver) -> None:
    result = await driver(target.url, "interrupt", prompt=slow(steps=200, step_seconds=0.1))
    assert "execution_interrupted" in [name for name, _ in result["status"]["messages"]]
    assert result["left"] == {}


@gateway_only
async def test_invalid_workflow(target: Target, driver: Driver) -> None:
    prompt = slow()
    del prompt["2"]["inputs"]["images"]
    result = await driver(target.url, "refused", prompt=prompt)
    assert result["status"] == 400
    assert json.loads(result["text"])["node_errors"]["2"]["errors"][0]["type"] == "required_input_missing"


@gateway_only
async def test_reads(target: Target, driver: Driver) -> None:
    """All that it can read is the same as of one ComfyUI."""
    assert await driver(target.url, "reads") == await driver(target.simulators[0].url, "reads")
