"""@saintno/comfyui-sdk: one socket a client, which takes many events for its own whichever prompt they are of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator.nodes import seed_colour
from tests.clients.driving import Driver, busy, colours, is_near, loading, mean_colour, picture
from tests.clients.target import Target
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.workflows import failing, slow

KEY = "0123456789abcdef0123456789abcdef"
SEEDS = [45_000 * n + 17 for n in range(6)]


@pytest.fixture
def driver(node_driver: Callable[[str], Driver]) -> Driver:
    """The client."""
    return node_driver("saintno.mjs")


async def test_runs_with_previews(target: Target, driver: Driver) -> None:
    """It listens for a run's events once it has the answer to POST /prompt."""
    seed = 0xC06030
    results = (await driver(target.url, "run", prompts=[slow(seed, steps=6, step_seconds=0.1)] * 3))["results"]
    assert colours(results) == [[seed_colour(seed)]] * 3
    assert [result["failed"] for result in results] == [[]] * 3
    assert [(result["pending"], result["finished"]) for result in results] == [(1, 1)] * 3
    # It listens only once it has read the answer, and misses what comes before; if it gets no CPU then, that is much.
    assert any(result["progress"] for result in results)
    for result in results:
        assert result["started"] <= 1
        assert result["progress"] == [1, 2, 3, 4, 5, 6][6 - len(result["progress"]) :]
    for result in (result for result in results if result["previews"]):
        assert is_near(mean_colour(result["previews"][-1]), seed_colour(seed))


async def test_runs_one_after_the_other(target: Target, driver: Driver) -> None:
    prompts = [slow(seed, step_seconds=0.1) for seed in SEEDS[:3]]
    results = (await driver(target.url, "run", prompts=prompts))["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in SEEDS[:3]]
    assert [result["failed"] for result in results] == [[]] * 3


async def test_parallel_runs(target: Target, driver: Driver) -> None:
    prompts = [slow(seed, step_seconds=0.2) for seed in SEEDS]
    results = (await driver(target.url, "runTogether", prompts=prompts, returns=False))["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in SEEDS]
    assert [result["failed"] for result in results] == [[]] * 6


async def test_short_run_beside_a_long_one(target: Target, driver: Driver) -> None:
    """The client's run() never returns if it reads from /queue and /history that a prompt has ended before it was told
    that it started. It reads them at each ``status``."""
    prompts = [slow(SEEDS[1], steps=20, step_seconds=0.1), slow(SEEDS[2], steps=5, step_seconds=0.1)]
    results = (await driver(target.url, "runTogether", prompts=prompts, returns=True, limit=8000))["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in SEEDS[1:3]]


@pytest.mark.parametrize("mode", ["PICK_ZERO", "PICK_LOWEST", "PICK_ROUTINE"])
async def test_pool(target: Target, driver: Driver, mode: str) -> None:
    """Only in turn does the pool use all of its clients for sure: those are all before the same queue."""
    prompts = [slow(seed, step_seconds=0.2) for seed in SEEDS]
    result = await driver(target.url, "pool", prompts=prompts, clients=3, mode=mode)
    assert colours(result["results"]) == [[seed_colour(seed)] for seed in SEEDS]
    assert [one["failed"] for one in result["results"]] == [[]] * 6
    assert result["used"] == 3 or mode != "PICK_ROUTINE"


@pytest.mark.parametrize(
    "credentials",
    [
        {"type": "basic", "username": "anybody", "password": KEY},
        {"type": "bearer_token", "token": KEY},
        {"type": "custom", "headers": {"X-API-Key": KEY}},
    ],
    ids=lambda credentials: credentials["type"],
)
async def test_key(lab: Lab, driver: Driver, credentials: dict[str, Any]) -> None:
    gateway = await lab.gateway(*await lab.simulators(3), options=("--api-key", KEY))
    prompt = slow(SEEDS[1], steps=5, step_seconds=0.1)
    (result,) = (await driver(gateway.url, "run", prompts=[prompt], credentials=credentials))["results"]
    assert colours([result]) == [[seed_colour(SEEDS[1])]]


async def test_upload(target: Target, driver: Driver, tmp_path: Path) -> None:
    path = picture(tmp_path / "mine.png", (10, 20, 200))
    result = await driver(target.url, "upload", path=str(path), prompt=loading())
    assert result["uploaded"]["filename"] == "from node.png"
    assert (result["inFolder"]["subfolder"], result["inFolder"]["filename"]) == ("some/folder", "node.png")
    assert mean_colour(result["input"]) == (10, 20, 200)
    assert result["mask"]
    assert colours(result["results"]) == [[(10, 20, 200)]] * 2


async def test_interrupt(target: Target, driver: Driver) -> None:
    (result,) = (await driver(target.url, "interrupt", prompt=slow(steps=200, step_seconds=0.1)))["results"]
    assert result["output"] is False
    assert [error["message"] for error in result["failed"]] == ["The execution was interrupted!"]


async def test_queue_and_history(target: Target, driver: Driver) -> None:
    """Behind a gateway both run, and the second is shown as pending; it is deleted all the same."""
    prompt = slow(steps=200, step_seconds=0.1)
    result = await driver(target.url, "deletePending", prompt=prompt, count=2)
    assert result["before"] == [result["last"]]
    assert result["after"] == []
    # What ran when it was deleted leaves an entry.
    assert result["finished"][0]
    assert target.is_gateway or not result["finished"][1]
    assert result["cleared"]


async def test_failing_workflow(target: Target, driver: Driver) -> None:
    prompt = failing("no luck")
    prompt["1"]["inputs"].update(steps=5, step_seconds=0.1)
    (result,) = (await driver(target.url, "run", prompts=[prompt]))["results"]
    assert result["output"] is False
    assert [error["message"] for error in result["failed"]] == ["RuntimeError"]
    assert result["failed"][0]["cause"]["exception_message"].strip() == "no luck"


async def test_invalid_workflow(target: Target, driver: Driver) -> None:
    prompt = slow()
    del prompt["2"]["inputs"]["images"]
    (result,) = (await driver(target.url, "run", prompts=[prompt]))["results"]
    assert result["output"] is False
    assert result["failed"][0]["message"] == "Failed to queue prompt"
    assert result["failed"][0]["cause"]["error"]["type"] == "prompt_outputs_failed_validation"


async def test_userdata(target: Target, driver: Driver) -> None:
    result = await driver(target.url, "userdata")
    assert result["stored"] == {"a": 1}
    assert (result["listed"], result["moved"], result["deleted"]) == (["mine.json"], ["yours.json"], [])
    assert result["one"] == "value"
    assert result["all"] == {"Some.Setting": "value", "Other.Setting": 2}


async def test_reads(lab: Lab, driver: Driver) -> None:
    """All that it can read is the same as of one ComfyUI."""
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    assert await driver(gateway.url, "reads") == await driver(simulators[0].url, "reads")


async def test_backend_dies(lab: Lab, driver: Driver) -> None:
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    prompts = [slow(seed, steps=15, step_seconds=0.1) for seed in SEEDS]
    run = await driver.start(gateway.url, "pool", prompts=prompts, clients=3, mode="PICK_ROUTINE")
    await (await busy(Comfy(lab.http, gateway.url), simulators, 3)).kill()
    results = (await run.result())["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in SEEDS]
    assert [result["failed"] for result in results] == [[]] * 6


async def test_backend_dies_under_one_connection(lab: Lab, driver: Driver) -> None:
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    prompts = [slow(seed, steps=15, step_seconds=0.1) for seed in SEEDS]
    run = await driver.start(gateway.url, "runTogether", prompts=prompts, returns=False)
    await (await busy(Comfy(lab.http, gateway.url), simulators, 3)).kill()
    results = (await run.result())["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in SEEDS]
