"""What the recordings are played against."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.lab import Lab


@dataclass(frozen=True)
class Target:
    """A ComfyUI, or what passes for one."""

    url: str
    kind: str


@pytest.fixture(params=["simulator", "gateway"])
async def target(request: pytest.FixtureRequest, lab: Lab) -> Target:
    """A simulator alone, a gateway in front of one, or what --comfyui names."""
    return await _start(request, lab)


@pytest_asyncio.fixture(params=["simulator", "gateway"], scope="module", loop_scope="module")
async def shared_lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Target, Lab]]:
    """The same, for many tests that leave nothing behind; they run in the module's loop."""
    lab = Lab(tmp_path_factory.mktemp("shared"))
    try:
        yield await _start(request, lab), lab
    finally:
        await lab.close()


async def _start(request: pytest.FixtureRequest, lab: Lab) -> Target:
    url = request.config.getoption("--comfyui")
    if url:
        if request.param == "gateway":
            gateway = await lab.gateway(url)
            return Target(gateway.url, "gateway")
        return Target(url.rstrip("/"), "comfyui")
    simulator = await lab.simulator("--cache", "--models", "", "--seed", "1")
    if request.param == "simulator":
        return Target(simulator.url, "simulator")
    gateway = await lab.gateway(simulator)
    return Target(gateway.url, "gateway")
