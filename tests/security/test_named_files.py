"""Outputs that name files which their job did not write: a custom node may show whatever a prompt says.

No name that is told makes a file of another tenant's, or of nobody's, one's own, nor takes it from its owner.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gateway.files.identity import MAX_FILES
from gateway.simulator.nodes import seed_colour
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.named_files import ANNAS, BENS, names_files, sees
from tests.support.pictures import colour, png
from tests.support.saved_copies import made
from tests.support.security_world import caller, start
from tests.support.uploads import load
from tests.support.workflows import slow

SPELLINGS: dict[str, Any] = {
    "a file": lambda name: {"images": [{"filename": name, "subfolder": "", "type": "output"}]},
    "without a type": lambda name: {"gifs": [{"filename": name}]},
    "deep": lambda name: {"a": [{"b": {"c": [{"filename": name, "type": "output"}]}}]},
    "a sibling": lambda name: {"gifs": [{"filename": "x.mp4", "workflow": name, "type": "output"}]},
    "a repeated one": lambda name: {"result": [{"filename": name, "type": "output"}]},
    "below text": lambda name: {"text": [{"filename": name, "type": "output"}]},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_what_a_node_names_stays_its_owners(lab: Lab, tmp_path: Path, spelling: str) -> None:
    """While the job runs, after it, out of the cache, and after a restart."""
    simulator = await lab.simulator("--base-dir", str(tmp_path), "--cache-ram")
    gateway = await start(lab, simulator)
    anna, ben, other = (caller(lab, gateway, name) for name in ("anna", "ben", "other"))
    image = await made(anna, slow(ANNAS))
    ui = SPELLINGS[spelling](image["filename"])

    async def is_annas_alone(*others: Comfy) -> None:
        assert colour(await anna.view(image)) == seed_colour(ANNAS)
        for each in others:
            assert not await sees(each, image["filename"])
            status, answer = await each.post("/prompt", {"prompt": load(f"{image['filename']} [output]")})
            assert status == 400 or (await each.entry(answer["prompt_id"]))["outputs"] == {}

    listener = await ben.listen("c")
    runs = await ben.prompt(names_files(ui, goes_on=True), "c")
    await listener.next("executed")
    assert not await sees(ben, image["filename"])
    assert colour(await anna.view(image)) == seed_colour(ANNAS)
    assert (await ben.post("/interrupt", {"prompt_id": runs}))[0] == 200
    await ben.entry(runs)
    await is_annas_alone(ben)
    for comfy in (ben, other, ben):
        entry = await comfy.entry(await comfy.prompt(names_files(ui)))
        assert entry["status"]["status_str"] == "success"
        await is_annas_alone(ben, other)
    assert await gateway.stop() == 0
    gateway = await start(lab, simulator)
    anna, ben, other = (caller(lab, gateway, name) for name in ("anna", "ben", "other"))
    await other.entry(await other.prompt(names_files(ui)))
    await is_annas_alone(ben, other)


@pytest.mark.parametrize("spelling", ["a file", "a 3D model"])
async def test_what_a_node_names_is_not_ones_own_because_it_is_nobodys(lab: Lab, tmp_path: Path, spelling: str) -> None:
    """What failed jobs left behind, or was there before the gateway."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path), "--cache-ram"))
    ben, other = caller(lab, gateway, "ben"), caller(lab, gateway, "other")
    name, ui = ("older.png", SPELLINGS["a file"]("older.png")) if spelling == "a file" else ("older.glb", None)
    ui = ui or {"result": ["mesh/older.glb", "", None]}
    folder = "" if spelling == "a file" else "mesh"
    path = tmp_path / "output" / folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(png((1, 2, 3)))
    os.utime(path, (1e9, 1e9))
    listener = await ben.listen("c")
    runs = await ben.prompt(names_files(ui, goes_on=True), "c")
    await listener.next("executed")
    assert not await sees(ben, name, folder)
    assert (await ben.post("/interrupt", {"prompt_id": runs}))[0] == 200
    for comfy in (ben, other, ben):
        await comfy.entry(await comfy.prompt(names_files(ui)))
        assert not await sees(comfy, name, folder)


async def test_what_was_told_among_too_many_is_no_more_ones_own_out_of_the_cache(lab: Lab, tmp_path: Path) -> None:
    """Of so many files nothing is learnt: of the last one only that it was told of."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path), "--cache-ram"))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    image = await made(anna, slow(ANNAS))
    many = {"images": [{"filename": "x"}] * MAX_FILES}
    prompts = [names_files(ui)["0"] for ui in (many, {"images": [image]})]
    await ben.entry(await ben.prompt({"0": prompts[0], "1": prompts[1]}))
    for _ in range(2):
        await ben.entry(await ben.prompt({"1": prompts[1]}))
        assert not await sees(ben, image["filename"])
    assert colour(await anna.view(image)) == seed_colour(ANNAS)


async def test_a_fixed_name_is_the_last_writers(lab: Lab, tmp_path: Path) -> None:
    """A custom node that always writes the same name; told again without being written, it stays one's own."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    image = {"filename": "fixed.png", "subfolder": "", "type": "output"}

    async def job(comfy: Comfy, picture: bytes | None, shown: tuple[int, int, int]) -> None:
        listener = await comfy.listen("c")
        runs = await comfy.prompt(names_files({"images": [image]}, goes_on=True), "c")
        await listener.next("executed")
        if picture is not None:
            (tmp_path / "output" / "fixed.png").write_bytes(picture)
        assert colour(await comfy.view(image)) == shown
        assert (await comfy.post("/interrupt", {"prompt_id": runs}))[0] == 200
        await comfy.entry(runs)
        assert colour(await comfy.view(image)) == shown
        await listener.socket.close()

    for comfy, other, mine in ((anna, ben, (1, 1, 1)), (ben, anna, (2, 2, 2)), (anna, ben, (3, 3, 3))):
        await job(comfy, png(mine), mine)
        await job(comfy, None, mine)
        assert not await sees(other, "fixed.png")


async def test_neither_a_team_nor_its_guest_has_what_it_names_of_the_others(lab: Lab, tmp_path: Path) -> None:
    """A team finds what is nobody's by its name: that it told of a guest's file makes that nobody's no more."""
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator, isolation="shared", tenants={"other": "guest"})
    guest, mate = caller(lab, gateway, "other"), caller(lab, gateway, "mate")
    guests, mates = await made(guest, slow(ANNAS, prefix="guests")), await made(mate, slow(BENS, prefix="mates"))
    for comfy, theirs, own in ((mate, guests, mates), (guest, mates, guests)):
        listener = await comfy.listen("c")
        ui = {"images": [theirs], "result": [theirs]}
        runs = await comfy.prompt(names_files(ui, goes_on=True), "c")
        await listener.next("executed")
        assert not await sees(comfy, theirs["filename"])
        assert (await comfy.post("/interrupt", {"prompt_id": runs}))[0] == 200
        await comfy.entry(runs)
        assert not await sees(comfy, theirs["filename"])
        await comfy.entry(await comfy.prompt(names_files(ui)))
        assert not await sees(comfy, theirs["filename"])
        assert await sees(comfy, own["filename"])
    assert colour(await guest.view(guests)) == seed_colour(ANNAS)
    assert colour(await mate.view(mates)) == seed_colour(BENS)
