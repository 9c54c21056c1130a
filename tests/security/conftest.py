"""Fixtures for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.security.proxied import TRUST, Proxied
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.raw_http import between
from tests.support.security_world import caller, start


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_proxied(shared_lab: Lab) -> AsyncIterator[Proxied]:
    """A gateway behind which a proxy stands, for all tests of a module that restart nothing."""
    async with between(shared_lab, await shared_lab.simulator()) as backend:
        gateway = await start(shared_lab, backend.url, dispatch__backoff=0.05, probe__interval=0.1, **TRUST)
        anna, ben = (caller(shared_lab, gateway, name) for name in ("anna", "ben"))
        yield Proxied(shared_lab, backend, gateway, anna, ben)
        await gateway.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def proxied(shared_proxied: Proxied) -> AsyncIterator[Proxied]:
    """The same, without the jobs, entries and faults of the tests before."""
    shared = shared_proxied
    yield shared
    shared.backend.hook = shared.backend.rewrite = None
    await shared.backend.simulator.no_faults(shared.lab.http)
    for comfy in (shared.anna, shared.ben):
        await comfy.post("/queue", {"clear": True})
        await comfy.post("/interrupt")

        async def is_idle(comfy: Comfy = comfy) -> bool:
            return not any((await comfy.get("/queue")).values())

        await until(is_idle, what="all jobs have ended")
        await comfy.post("/history", {"clear": True})
    shared.backend.sent.clear()
