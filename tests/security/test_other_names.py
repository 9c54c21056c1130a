"""Names that are more than a name on Windows: they open another tenant's file, and the gateway can't tell which."""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.support.comfy_client import Comfy
from tests.support.isolation import SECRET, node, saved, seen, tells
from tests.support.lab import Lab
from tests.support.pictures import png
from tests.support.security_world import World, base_of, start_world
from tests.support.uploads import upload

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAMES = ("C:annas.png", "annas.png::$DATA", "ANNASP~1.PNG", "C:/x/annas.png")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(shared_lab: Lab) -> World:
    """One for all names: a file of each very name stands for what a backend on Windows would open."""
    for name in NAMES:
        path = base_of(shared_lab) / "input" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(SECRET))
    return await start_world(shared_lab)


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_that_windows_takes_for_another_opens_nothing(world: World, name: str) -> None:
    prompt = {"1": node("LoadImage", image=name), "2": saved("1")}
    assert tells(SECRET) in await seen(Comfy(world.lab.http, world.simulator.url), prompt)
    assert "Invalid image file" in await seen(world.ben, prompt)


async def test_ones_own_file_of_such_a_name_is_loaded(world: World) -> None:
    status, stored = await upload(world.ben, png(SECRET), "a:b~1.png")
    assert status == 200
    assert tells(SECRET) in await seen(world.ben, {"1": node("LoadImage", image=stored["name"]), "2": saved("1")})
