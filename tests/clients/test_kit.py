"""comfykit: takes what ``executed`` says for the result, and fails if there was none before ``executing`` null."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.simulator.nodes import seed_colour
from tests.clients.driving import Driver, colours, gateway_only, loading, picture
from tests.clients.target import Target
from tests.support.lab import Lab
from tests.support.workflows import failing, slow

KEY = "0123456789abcdef0123456789abcdef"
SEEDS = [80_000 * n + 29 for n in range(4)]


@pytest.fixture
def driver(python_driver: Callable[[str], Driver]) -> Driver:
    """The client."""
    return python_driver("kit.py")


def _prompts() -> list[dict[str, Any]]:
    """Prompts of which one is longer than all, one is there twice, one fails and one is refused."""
    prompts = [slow(seed, steps=steps, step_seconds=0.05) for seed, steps in zip(SEEDS, (8, 2, 2, 1), strict=True)]
    refused = slow()
    del refused["2"]["inputs"]["images"]
    return [*prompts, prompts[1], failing("no luck"), refused]


async def _runs_together(target: Target, driver: Driver, executor: str) -> None:
    results = (await driver(target.url, "run_together", executor=executor, prompts=_prompts()))["results"]
    assert colours(results) == [*([seed_colour(seed)] for seed in (*SEEDS, SEEDS[1])), [], []]
    assert [result["status"] for result in results] == ["completed"] * 5 + ["error"] * 2
    assert results[5]["message"].strip() == "no luck"
    assert '"required_input_missing"' in results[6]["message"]


async def test_runs_together_with_sockets(target: Target, driver: Driver) -> None:
    await _runs_together(target, driver, "websocket")


@gateway_only
async def test_runs_together_by_polling(target: Target, driver: Driver) -> None:
    await _runs_together(target, driver, "http")


async def test_key(lab: Lab, driver: Driver) -> None:
    """It sends its key with every request but /ws, so the address has to hold one."""
    gateway = await lab.gateway(await lab.simulator(), options=("--api-key", KEY))
    given = {"executor": "websocket", "prompts": [slow(SEEDS[1])]}
    (refused,) = (await driver(gateway.url, "run_together", **given, api_key=KEY))["results"]
    assert refused["message"].endswith("HTTP 401")
    url = f"http://anybody:{KEY}@{urlsplit(gateway.url).netloc}"
    assert colours((await driver(url, "run_together", **given))["results"]) == [[seed_colour(SEEDS[1])]]


@gateway_only
async def test_upload(target: Target, driver: Driver, tmp_path: Path) -> None:
    path = picture(tmp_path / "mine.png", (10, 200, 30))
    prompt = loading()
    prompt["1"]["_meta"] = {"title": "Load Image, $picture.~image!"}
    prompt["2"]["_meta"] = {"title": "$output.picture"}
    (result,) = (await driver(target.url, "upload", path=str(path), prompt=prompt))["results"]
    assert (colours([result]), result["by_name"]) == ([[(10, 200, 30)]], ["picture"])
