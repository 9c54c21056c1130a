"""What the recordings are played against."""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.conformance.target import Target
from tests.support.lab import Lab


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(shared_lab: Lab) -> Lab:
    """Processes for all tests of a module, which run in its loop: as before a real ComfyUI, none needs fresh ones."""
    return shared_lab


@pytest_asyncio.fixture(params=["simulator", "gateway"], scope="module", loop_scope="module")
async def target(request: pytest.FixtureRequest, lab: Lab) -> Target:
    """A simulator alone, a gateway in front of one, or what --comfyui names."""
    url = request.config.getoption("--comfyui")
    if url:
        if request.param == "gateway":
            gateway = await lab.gateway(url)
            return Target(gateway.url, "gateway")
        return Target(url.rstrip("/"), "comfyui")
    simulator = await lab.simulator("--cache-ram", "--models", "", "--seed", "1")
    if request.param == "simulator":
        return Target(simulator.url, "simulator", simulator)
    gateway = await lab.gateway(simulator)
    return Target(gateway.url, "gateway", simulator)
