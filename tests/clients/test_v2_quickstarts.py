"""The quickstarts of docs/api-v2.md, as they stand there: the SDK, curl, and a page with fetch and EventSource."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.simulator.nodes import seed_colour
from tests.support.chromium import launched
from tests.support.lab import GatewayProcess, Lab
from tests.support.pictures import colour
from tests.support.security_world import KEYS, start
from tests.support.workflows import slow

PROJECT = Path(__file__).parents[2]
BLOCKS: dict[str, str] = dict(
    re.findall(
        r"^```(python|sh|js)\n(.*?)^```$", (PROJECT / "docs" / "api-v2.md").read_text(), re.DOTALL | re.MULTILINE
    )
)
SEED = 0x4080C0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """One gateway for all tests."""
    lab = Lab(tmp_path_factory.mktemp("quickstarts"))
    try:
        yield await start(lab, await lab.simulator())
    finally:
        await lab.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a workflow."""
    (tmp_path / "workflow_api.json").write_text(json.dumps(slow(SEED, steps=3)))
    return tmp_path


async def run(folder: Path, environment: Mapping[str, str], *command: str | Path) -> str:
    """Run a command in a folder. Return what it said."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env={**os.environ, **environment}, stdout=-1, stderr=-2
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def picture_in(folder: Path) -> Any:
    """The colour of the one picture in a folder."""
    (picture,) = folder.glob("*.png")
    return colour(picture.read_bytes())


async def test_the_sdk(gateway: GatewayProcess, python_with_clients: Path, folder: Path) -> None:
    environment = {"COMFY_BASE_URL": gateway.url, "COMFY_API_KEY": KEYS["anna"]}
    await run(folder, environment, python_with_clients, "-c", BLOCKS["python"])
    assert picture_in(folder) == seed_colour(SEED)


async def test_curl(gateway: GatewayProcess, folder: Path) -> None:
    said = await run(folder, {"URL": gateway.url, "KEY": KEYS["anna"]}, "bash", "-euo", "pipefail", "-c", BLOCKS["sh"])
    job = json.loads((folder / "job.json").read_text())
    assert job["status"] == "succeeded"
    assert f'"id":"{job["id"]}"' in said
    assert said.endswith('event: status\ndata: {"status":"succeeded"}\n\n')
    assert picture_in(folder) == seed_colour(SEED)


async def test_a_page(gateway: GatewayProcess) -> None:
    script = f"""async ([key, workflow]) => {{
        const told = []
        const showProgress = (value) => told.push(value)
        const url = await new Promise((showPicture, reject) => (async () => {{ {BLOCKS["js"]} }})().catch(reject))
        const bytes = await (await fetch(url, {{headers: {{Authorization: `Bearer ${{key}}`}}}})).arrayBuffer()
        return [told, [...new Uint8Array(bytes)]]
    }}"""
    async with launched() as browser:
        page = await browser.new_page()
        await page.goto(f"{gateway.url}/healthz")
        told, data = await page.evaluate(script, [KEYS["anna"], slow(SEED + 1, steps=4, step_seconds=0.4)])
    assert told
    assert all(0 <= value <= 1 for value in told)
    assert colour(bytes(data)) == seed_colour(SEED + 1)


def test_each_block_is_run() -> None:
    found: list[Any] = re.findall(r"^```(\w+)$", (PROJECT / "docs" / "api-v2.md").read_text(), re.MULTILINE)
    assert sorted(found) == sorted(BLOCKS) == ["js", "python", "sh"]
