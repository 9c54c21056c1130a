"""Names that mean nothing when a prompt is sent, and another tenant's upload when its turn comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_guide_clients import colour
from tests.acceptance.test_uploads import png, upload
from tests.lab import Lab, until
from tests.security.test_isolation import SECRET, node, saved
from tests.security.world import caller, start
from tests.workflows import slow


def painted(mask: Any) -> dict[str, Any]:
    """Paint a file over what takes two seconds to make. Painter checks no name before it runs."""
    sampler = slow(steps=40, step_seconds=0.05)["1"]
    painter = node("Painter", mask=mask, width=64, height=64, bg_color="#000000", image=["1", 0])
    return {"1": sampler, "2": painter, "3": node("SaveImage", images=["2", 0], filename_prefix="bens")}


@pytest.mark.parametrize("mask", ["image.png", {"__value__": "image.png"}, "./image.png"])
async def test_a_name_that_is_nobodys_yet_does_not_wait_for_an_upload(lab: Lab, tmp_path: Path, mask: Any) -> None:
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    status, answer = await ben.post("/prompt", {"prompt": painted(mask)})
    await upload(anna, png(SECRET), "image.png")

    async def is_placed() -> bool:
        return (tmp_path / "input" / "image.png").exists()

    await until(is_placed)
    colours = []
    if status == 200:
        entry = await ben.entry(answer["prompt_id"])
        colours = [colour(await ben.view(image)) for image in ben.images(entry)]
    assert SECRET not in colours


async def test_what_is_there_is_opened(lab: Lab, tmp_path: Path) -> None:
    """The operator's files, the tenant's own, and none at all."""
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "hand.png").write_bytes(png((1, 2, 3)))
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    ben = caller(lab, await start(lab, simulator), "ben")
    await upload(ben, png((4, 5, 6)), "bens.png")
    for mask, wanted in (("hand.png", (1, 2, 3)), ("bens.png", (4, 5, 6)), ("", None)):
        entry = await ben.entry(await ben.prompt(painted(mask)))
        assert entry["status"]["status_str"] == "success", entry
        colours = {colour(await ben.view(image)) for image in ben.images(entry)}
        assert wanted is None or colours == {wanted}


async def test_no_folder_is_read_because_another_upload_may_come_into_it(lab: Lab) -> None:
    """Its own is refused too: until its turn comes, another tenant may have put a file there."""
    gateway = await start(lab, await lab.simulator())
    ben = caller(lab, gateway, "ben")
    await upload(ben, png((4, 5, 6)), "bens.png", subfolder="pasted")
    status, answer = await ben.post(
        "/prompt", {"prompt": {"1": node("LoadImageDataSetFromFolder", folder="pasted"), "2": saved("1")}}
    )
    assert (status, answer["error"]["type"]) == (400, "input_refused")
    assert "folder" in answer["error"]["message"]
