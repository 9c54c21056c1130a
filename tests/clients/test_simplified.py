"""comfy-api-simplified: posts, then connects, and ends at the first ``status`` without work or ``executing`` null."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.simulator.nodes import seed_colour
from tests.clients.driving import Driver, busy, colours, is_near, loading, mean_colour, picture, titled
from tests.clients.target import Target
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.workflows import failing, slow

KEY = "0123456789abcdef0123456789abcdef"
SEEDS = [40_000 * n + 7 for n in range(6)]


@pytest.fixture
def driver(python_driver: Callable[[str], Driver]) -> Driver:
    """The client."""
    return python_driver("simplified.py")


async def test_waits_for_images(target: Target, driver: Driver) -> None:
    prompt = titled(
        {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 2, "color": 0x123456}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "simplified"}},
        }
    )
    result = await driver(target.url, "wait_images", prompt=prompt, node="SaveImage")
    assert len(result["names"]) == 2
    assert colours([result]) == [[(0x12, 0x34, 0x56)] * 2]


async def test_takes_previews_for_images(target: Target, driver: Driver) -> None:
    """The client's own doing: once it has seen a preview, it answers with the previews instead of the images."""
    prompt = titled(slow(0x804020, steps=3, step_seconds=0.3))
    result = await driver(target.url, "wait_images", prompt=prompt, node="SaveImage")
    assert result["names"] == [str(n) for n in range(len(result["names"]))]
    assert is_near(colours([result])[0][-1], (0x80, 0x40, 0x20))


async def test_runs_with_previews(target: Target, driver: Driver) -> None:
    seed = 0xC06030
    (result,) = (await driver(target.url, "run", prompts=[slow(seed, steps=4, step_seconds=0.2)]))["results"]
    assert colours([result]) == [[seed_colour(seed)]]
    assert 1 <= len(result["previews"]) <= 4
    assert is_near(mean_colour(result["previews"][-1]), seed_colour(seed))


async def test_parallel_runs(target: Target, driver: Driver) -> None:
    prompts = [slow(seed, step_seconds=0.1) for seed in SEEDS]
    results = (await driver(target.url, "run", prompts=prompts))["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in SEEDS]


async def test_key(lab: Lab, driver: Driver) -> None:
    """It knows Basic alone, in the address of its socket too."""
    gateway = await lab.gateway(*await lab.simulators(3), options=("--api-key", KEY))
    prompts = [slow(seed, step_seconds=0.1) for seed in SEEDS]
    results = (await driver(gateway.url, "run", prompts=prompts, user="anybody", password=KEY))["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in SEEDS]
    with pytest.raises(AssertionError, match="401: Unauthorized"):
        await driver(gateway.url, "run", prompts=prompts, user="anybody", password="wrong")


async def test_upload(target: Target, driver: Driver, tmp_path: Path) -> None:
    path = picture(tmp_path / "mine.png", (10, 200, 30))
    result = await driver(target.url, "upload", path=str(path), prompt=titled(loading()))
    assert result["uploaded"] == {"name": "mine.png", "subfolder": "default_upload_folder", "type": "input"}
    assert colours(result["results"]) == [[(10, 200, 30)]]


async def test_interrupt(target: Target, driver: Driver) -> None:
    result = await driver(target.url, "interrupt", prompt=slow(steps=200, step_seconds=0.1))
    assert result["images"] == []
    assert result["status"]["status_str"] == "error"
    assert not result["status"]["completed"]
    assert "execution_interrupted" in [name for name, _ in result["status"]["messages"]]


async def test_failing_workflow(target: Target, driver: Driver) -> None:
    """It learns of the error only while it is connected, so the prompt takes a while before it fails."""
    prompt = failing()
    prompt["1"]["inputs"].update(steps=10, step_seconds=0.1)
    assert (await driver(target.url, "fail", prompt=prompt))["error"] == "Execution error occurred."


async def test_invalid_workflow(target: Target, driver: Driver) -> None:
    prompt = slow()
    del prompt["2"]
    error = (await driver(target.url, "fail", prompt=prompt))["error"]
    assert error == "Request failed with status code 400: Bad Request"


async def test_queue_position(target: Target, driver: Driver) -> None:
    """Behind a gateway the second prompt finds an idle backend, or waits there for its start."""
    long = slow(steps=10, step_seconds=0.1)
    before = (await driver(target.url, "position", first=long, second=long))["before"]
    assert before[0] == 0
    assert before[1] in ({0, 1} if target.is_gateway else {1})


async def test_reads(lab: Lab, driver: Driver) -> None:
    """All that it can read is the same as of one ComfyUI."""
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    assert await driver(gateway.url, "reads") == await driver(simulators[0].url, "reads")


async def test_backend_dies(lab: Lab, driver: Driver) -> None:
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    prompts = [slow(seed, steps=10, step_seconds=0.1) for seed in SEEDS]
    run = await driver.start(gateway.url, "run", prompts=prompts)
    await (await busy(Comfy(lab.http, gateway.url), simulators, 3)).kill()
    assert colours((await run.result())["results"]) == [[seed_colour(seed)] for seed in SEEDS]
