"""comfyui-utils: asks /queue at each ``status``, and fails if more than one prompt runs there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.driving import Driver, gateway_only, run_together
from tests.clients.target import Target
from tests.support.lab import Lab
from tests.support.workflows import slow

# The client fails at a preview, which a ComfyUI does not send unless it is told to.
SIMULATOR_OPTIONS = ("--preview-method", "none")
SEEDS = [60_000 * n + 19 for n in range(5)]


@pytest.fixture
def driver(python_driver: Callable[[str], Driver]) -> Driver:
    """The client."""
    return python_driver("python_api.py")


async def test_five_prompts_at_once(lab: Lab, target: Target, driver: Driver) -> None:
    """Two of them are the same, byte for byte."""
    maximum = await run_together(lab.http, driver, target.url, target.simulators, [*SEEDS[:4], SEEDS[0]])
    assert (maximum > 1) == target.is_gateway


@gateway_only
async def test_invalid_workflow(target: Target, driver: Driver) -> None:
    prompt = slow()
    del prompt["2"]["inputs"]["images"]
    result = await driver(target.url, "refused", prompt=prompt)
    assert result == {"error": "\nNode 2, images: Required input is missing"}
