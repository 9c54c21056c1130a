"""comfy-ui-client, of npm: reads /history at ``executing`` null of its own prompt, and listens once it has its id."""

from __future__ import annotations

from collections.abc import Callable

from gateway.simulator.nodes import seed_colour
from tests.clients.driving import Driver, colours, gateway_only
from tests.clients.target import Target
from tests.support.workflows import slow

SEEDS = [110_000 * n + 41 for n in range(5)]


async def test_runs_together(target: Target, node_driver: Callable[[str], Driver]) -> None:
    """Three on one socket and three on their own; two prompts are the same, byte for byte."""
    seeds = [*SEEDS, SEEDS[0]]
    steps = (10, 2, 3, 4, 2, 10)
    prompts = [slow(seed, steps=n, step_seconds=0.06) for seed, n in zip(seeds, steps, strict=True)]
    results = (await node_driver("ui_client.mjs")(target.url, "runTogether", prompts=prompts))["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in seeds]


@gateway_only
async def test_invalid_workflow(target: Target, node_driver: Callable[[str], Driver]) -> None:
    prompt = slow()
    del prompt["2"]["inputs"]["images"]
    error = (await node_driver("ui_client.mjs")(target.url, "refused", prompt=prompt))["error"]
    assert error["node_errors"]["2"]["errors"][0]["type"] == "required_input_missing"
