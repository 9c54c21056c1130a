"""comfy-sdk on comfy-api-proxy: the proxy polls /history and /queue, and opens a socket a prompt for its events."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.simulator.nodes import seed_colour
from tests.clients.driving import Driver, busy, colours, loading, mean_colour, picture
from tests.clients.target import Target
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.workflows import failing, slow, text_to_image

SEEDS = [50_000 * n + 13 for n in range(6)]


@pytest.fixture
def driver(python_driver: Callable[[str], Driver]) -> Driver:
    """The client."""
    return python_driver("sdk.py")


async def test_runs(target: Target, driver: Driver) -> None:
    prompts = [text_to_image(0x336699), slow(0x996633)]
    result = await driver(target.url, "run", prompts=prompts)
    assert colours(result["results"]) == colours(result["again"]) == [[(0x33, 0x66, 0x99)], [(0x99, 0x66, 0x33)]]
    assert [one["status"] for one in result["results"]] == ["succeeded"] * 2
    assert result["graphs"] == prompts
    assert result["listed"]


async def test_parallel_runs(target: Target, driver: Driver) -> None:
    prompts = [slow(seed, step_seconds=0.1) for seed in SEEDS]
    results = (await driver(target.url, "run_together", prompts=prompts))["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in SEEDS]


async def test_events(target: Target, driver: Driver) -> None:
    """At most two previews a second, with the node's id: the proxy asks for previews with metadata."""
    seed = 0x40C080
    result = await driver(target.url, "events", prompt=slow(seed, steps=10, step_seconds=0.2))
    assert colours([result["result"]]) == [[seed_colour(seed)]]
    assert result["nodes"] == ["1"]
    assert len(result["previews"]) >= 2
    red, green, blue = mean_colour(result["previews"][-1])
    assert red < blue < green
    assert len(result["progress"]) >= 2
    assert result["progress"] == sorted(result["progress"])
    assert result["statuses"][-1] == "succeeded"


async def test_output_event(target: Target, driver: Driver) -> None:
    """The proxy tells of outputs before the terminal status, after which the SDK no longer listens, only if the
    history entry is there when it asks for it at once after the last ``executed``."""
    result = await driver(target.url, "events", prompt=slow(0x40C080, steps=5, step_seconds=0.1))
    assert [mean_colour(output) for output in result["outputs"]] == [(0x40, 0xC0, 0x80)]


async def test_upload(target: Target, driver: Driver, tmp_path: Path) -> None:
    path = picture(tmp_path / "mine.png", (100, 20, 30))
    result = await driver(target.url, "upload", path=str(path), prompt=loading())
    assert result["created"]
    assert colours([result["results"][0]]) == [[(100, 20, 30)]]
    assert base64.b64decode(result["part"]) == b"\x89PNG\r\n\x1a\n"


async def test_cancel(target: Target, driver: Driver) -> None:
    """What waits leaves no history when it is cancelled, which the proxy calls expired."""
    prompt = slow(steps=200, step_seconds=0.1)
    results = (await driver(target.url, "cancel", prompt=prompt, running=1))["results"]
    assert results[0]["status"] == "canceled"
    # Behind a gateway it runs by then, though it is shown as pending.
    assert results[1]["status"] in ({"canceled", "expired"} if target.is_gateway else {"expired"})


async def test_failing_workflow(target: Target, driver: Driver) -> None:
    result = await driver(target.url, "fail", prompt=failing("no luck"))
    assert result["failed"].endswith("ended failed")
    assert "no luck" in result["error"]


async def test_invalid_workflow(target: Target, driver: Driver) -> None:
    prompt = slow()
    del prompt["2"]["inputs"]["images"]
    result = await driver(target.url, "fail", prompt=prompt)
    assert result["code"] == "invalid_workflow"


async def test_backend_dies(lab: Lab, driver: Driver) -> None:
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    prompts = [slow(seed, steps=15, step_seconds=0.1) for seed in SEEDS]
    run = await driver.start(gateway.url, "run_together", prompts=prompts)
    await (await busy(Comfy(lab.http, gateway.url), simulators, 3)).kill()
    assert colours((await run.result())["results"]) == [[seed_colour(seed)] for seed in SEEDS]


async def test_backend_dies_while_events_are_followed(lab: Lab, driver: Driver) -> None:
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    seed = 0x40C080
    run = await driver.start(gateway.url, "events", prompt=slow(seed, steps=15, step_seconds=0.1))
    await (await busy(Comfy(lab.http, gateway.url), simulators, 1)).kill()
    result = await run.result()
    assert colours([result["result"]]) == [[seed_colour(seed)]]
    assert result["statuses"][-1] == "succeeded"
