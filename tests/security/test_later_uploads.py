"""Names that mean nothing when a prompt is sent, and another tenant's upload when its turn comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytest_asyncio

from tests.support.isolation import SECRET, node, saved
from tests.support.lab import Lab, until
from tests.support.pictures import colour, png
from tests.support.security_world import World, base_of, start_world
from tests.support.uploads import brought, upload
from tests.support.workflows import slow

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(shared_lab: Lab) -> World:
    """One for all of these: each test has file names of its own."""
    inputs = base_of(shared_lab) / "input"
    inputs.mkdir(parents=True)
    (inputs / "hand.png").write_bytes(png((1, 2, 3)))
    return await start_world(shared_lab)


def painted(mask: Any, steps: int = 1) -> dict[str, Any]:
    """Paint a file over what takes a twentieth of a second a step to make. Painter checks no name before it runs."""
    sampler = slow(steps=steps, step_seconds=0.05)["1"]
    painter = node("Painter", mask=mask, width=64, height=64, bg_color="#000000", image=["1", 0])
    return {"1": sampler, "2": painter, "3": node("SaveImage", images=["2", 0], filename_prefix="bens")}


SPELLED: dict[str, Callable[[str], Any]] = {
    "plain": lambda name: name,
    "wrapped": lambda name: {"__value__": name},
    "below-a-dot": lambda name: f"./{name}",
}


@pytest.mark.parametrize("how", SPELLED)
async def test_a_name_that_is_nobodys_yet_does_not_wait_for_an_upload(world: World, how: str) -> None:
    """If it were let through, the prompt would run until the upload is there."""
    name, before = f"{how}.png", len(brought(world.base, png(SECRET)))
    status, answer = await world.ben.post("/prompt", {"prompt": painted(SPELLED[how](name), steps=40)})
    await upload(world.anna, png(SECRET), name)

    async def is_placed() -> bool:
        return len(brought(world.base, png(SECRET))) > before

    await until(is_placed)
    colours = []
    if status == 200:
        entry = await world.ben.entry(answer["prompt_id"])
        colours = [colour(await world.ben.view(image)) for image in world.ben.images(entry)]
    assert SECRET not in colours


async def test_what_is_there_is_opened(world: World) -> None:
    """The operator's files, the tenant's own, and none at all."""
    ben = world.ben
    await upload(ben, png((4, 5, 6)), "bens.png")
    for mask, wanted in (("hand.png", (1, 2, 3)), ("bens.png", (4, 5, 6)), ("", None)):
        entry = await ben.entry(await ben.prompt(painted(mask)))
        assert entry["status"]["status_str"] == "success", entry
        colours = {colour(await ben.view(image)) for image in ben.images(entry)}
        assert wanted is None or colours == {wanted}


async def test_no_folder_is_read_because_another_upload_may_come_into_it(world: World) -> None:
    """Its own is refused too: until its turn comes, another tenant may have put a file there."""
    await upload(world.ben, png((4, 5, 6)), "bens.png", subfolder="pasted")
    status, answer = await world.ben.post(
        "/prompt", {"prompt": {"1": node("LoadImageDataSetFromFolder", folder="pasted"), "2": saved("1")}}
    )
    assert (status, answer["error"]["type"]) == (400, "input_refused")
    assert "folder" in answer["error"]["message"]
