"""comfy-script: gives up on all its prompts when one ends while the last ``status`` said that none is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.simulator.nodes import seed_colour
from tests.clients.driving import Driver, colours, gateway_only
from tests.clients.target import Target
from tests.support.workflows import failing, slow

SEEDS = [90_000 * n + 31 for n in range(4)]


@pytest.fixture
def driver(python_driver: Callable[[str], Driver]) -> Driver:
    """The client."""
    return python_driver("script.py")


async def test_short_runs_behind_a_long_one(target: Target, driver: Driver) -> None:
    """The short ones have ended, on other backends, long before the client is told so; one fails."""
    prompts = [slow(seed, steps=steps, step_seconds=0.1) for seed, steps in zip(SEEDS, (12, 2, 1, 2), strict=True)]
    results = (await driver(target.url, "run_together", prompts=[*prompts, failing()]))["results"]
    assert colours(results) == [*([seed_colour(seed)] for seed in SEEDS), []]
    assert results[0]["progress"] == list(range(1, 13))
    for result, last in zip(results[:4], (12, 2, 1, 2), strict=True):
        assert result["progress"][-1] == last
        assert result["progress"] == sorted(result["progress"])


@gateway_only
async def test_cancel(target: Target, driver: Driver) -> None:
    assert await driver(target.url, "cancel", prompt=slow(steps=200, step_seconds=0.05)) == {"outputs": []}
