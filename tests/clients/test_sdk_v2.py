"""comfy-sdk, unmodified, on the gateway itself: the Comfy API v2 over three backends, and two tenants."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.simulator.nodes import seed_colour
from tests.clients.driving import Driver, colours, loading, mean_colour, picture
from tests.support.lab import GatewayProcess, Lab
from tests.support.security_world import KEYS, start
from tests.support.v2 import hash_of
from tests.support.workflows import failing, slow

ANNA, BEN = KEYS["anna"], KEYS["ben"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """One gateway for all tests."""
    lab = Lab(tmp_path_factory.mktemp("sdk"))
    try:
        yield await start(lab, *await lab.simulators(3))
    finally:
        await lab.close()


@pytest.fixture
def driver(python_driver: Callable[[str], Driver]) -> Driver:
    """The client."""
    return python_driver("sdk_v2.py")


async def test_runs_with_an_asset(gateway: GatewayProcess, driver: Driver, tmp_path: Path) -> None:
    path = picture(tmp_path / "mine.png", (100, 20, 30))
    found = await driver(gateway.url, "run", key=ANNA, path=str(path), prompt=loading())
    assert colours(found["results"]) == [[(100, 20, 30)]] * 2
    assert [result["status"] for result in found["results"]] == ["succeeded"] * 2
    assert found["created"] == [True, False]
    assert found["hashes"] == [hash_of(path.read_bytes())] * 2
    assert found["graph"]["1"]["inputs"]["image"] == "mine.png"
    assert base64.b64decode(found["part"]) == b"\x89PNG\r\n\x1a\n"
    assert found["link"].startswith(f"{gateway.url}/api/v2/assets/")
    assert found["is_same"]


async def test_events(gateway: GatewayProcess, driver: Driver) -> None:
    seed = 0x40C080
    found = await driver(gateway.url, "events", key=ANNA, prompt=slow(seed, steps=15, step_seconds=0.15))
    live, late = found["kinds"]
    assert live[0] == live[-1] == late[-1] == "StatusChange"
    assert late == ["OutputReady", "StatusChange"]
    assert live.index("OutputReady") < len(live) - 1
    assert found["statuses"][-1] == "succeeded"
    assert len(found["previews"]) >= 2
    assert found["progress"] == sorted(found["progress"])
    assert [mean_colour(output) for output in found["outputs"]] == [seed_colour(seed)]
    assert colours([found["result"]]) == [[seed_colour(seed)]]


async def test_cancel(gateway: GatewayProcess, driver: Driver) -> None:
    """A job that waited is canceled, not expired."""
    prompt = slow(steps=200, step_seconds=0.1)
    found = await driver(gateway.url, "cancel", key=ANNA, prompt=prompt, running=3)
    assert found["returned"] == [*["canceling"] * 3, "canceled"]
    assert found["ended"] == ["canceled"] * 4


async def test_lists_by_labels(gateway: GatewayProcess, driver: Driver) -> None:
    found = await driver(gateway.url, "labels", key=ANNA, other=BEN, prompt=slow(steps=1))
    submitted = found["submitted"]
    assert found["listed"] == submitted[::-1]
    assert found["odd"] == [submitted[3], submitted[1]]
    assert found["labels"] == {"client": "acme", "n": "1"}
    assert found["has_times"]
    assert not set(found["others"]) & set(submitted)
    assert found["read"] == ["NotFound", "not_found", 404, True]


async def test_each_refusal_is_its_exception(gateway: GatewayProcess, driver: Driver) -> None:
    found = await driver(gateway.url, "errors", key=BEN, prompt=slow(steps=1), failing=failing())
    assert found == {
        "invalid": ["InvalidWorkflow", "invalid_workflow", 422, True],
        "reused": ["IdempotencyKeyReuse", "idempotency_key_reuse", 422, True],
        "unknown": ["NotFound", "not_found", 404, True],
        "missing": ["MissingAsset", "missing_asset", 422, True],
        "labels": ["ComfyError", "metadata_invalid", 422, True],
        "failed": ["JobFailed", "node_execution_error", 200],
        "unauthorized": ["Unauthorized", "unauthorized", 401, True],
    }


async def test_many_at_once(gateway: GatewayProcess, driver: Driver) -> None:
    seeds = [50_000 * n + 13 for n in range(6)]
    prompts = [slow(seed, steps=2) for seed in seeds]
    found = await driver(gateway.url, "together", key=BEN, prompts=prompts)
    assert colours(found["results"]) == [[seed_colour(seed)] for seed in seeds]
