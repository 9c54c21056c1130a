"""Files that the gateway carries from one backend to another, and names that come to mean another's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from gateway.simulator.nodes import seed_colour
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.pictures import colour, png
from tests.support.saved_copies import clean, made, only, saved_and_goes_on
from tests.support.security_world import ask, caller, start
from tests.support.uploads import brought, load, result, upload
from tests.support.workflows import slow

ANNAS, BENS = 0x112233, 0x445566


async def test_a_copy_of_what_is_not_there_any_more_is_nobodys_input(lab: Lab, tmp_path: Path) -> None:
    """An output folder that is cleaned counts from 1 again: Ben's file has the name that Anna's copied one had."""
    bases = [tmp_path / "one", tmp_path / "two"]
    for base in bases:
        base.mkdir()
    gateway = await start(lab, *[await lab.simulator("--base-dir", str(base)) for base in bases])
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await only(lab, gateway, "b1")
    annas = f"{(await made(anna, slow(ANNAS)))['filename']} [output]"
    await only(lab, gateway, "b2")
    for n in range(2):
        assert await result(anna, load(annas, f"again{n}")) == seed_colour(ANNAS)
    copies = [path for path in (bases[1] / "output").rglob("*") if "~b1" in path.name]
    assert len(copies) == 1, "the second prompt has the copy of the first"
    clean(bases[0])
    await only(lab, gateway, "b1")
    bens = f"{(await made(ben, slow(BENS)))['filename']} [output]"
    assert bens == annas
    await only(lab, gateway, "b2")
    assert await result(ben, load(bens, "bens")) == seed_colour(BENS)


async def test_what_a_job_has_written_is_its_own_before_it_ends(lab: Lab, tmp_path: Path) -> None:
    """Anna's name of a file that was cleaned away must not lead to what Ben's job has saved under it, and goes on."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    image = await made(anna, slow(ANNAS))
    clean(tmp_path)
    prompt_id = await saved_and_goes_on(ben, BENS)
    assert colour(await ben.view(image)) == seed_colour(BENS)
    assert (await ask(anna, "GET", "/view?" + urlencode(image))).status == 404
    assert (await anna.post("/prompt", {"prompt": load(f"{image['filename']} [output]")}))[0] == 400
    assert (await ben.post("/interrupt", {"prompt_id": prompt_id}))[0] == 200
    await ben.entry(prompt_id)


async def test_a_team_gets_no_copy_of_a_guests(lab: Lab, tmp_path: Path) -> None:
    """A copy, and an upload in the place that it got on its backend, are none of the team's, also after a restart."""
    simulators = [await lab.simulator(), await lab.simulator("--base-dir", str(tmp_path))]
    shared: dict[str, Any] = {"isolation": "shared", "tenants": {"other": "guest"}}
    gateway = await start(lab, *simulators, **shared)
    guest, mate = caller(lab, gateway, "other"), caller(lab, gateway, "mate")
    await only(lab, gateway, "b1")
    guests = f"{(await made(guest, slow(ANNAS)))['filename']} [output]"
    await only(lab, gateway, "b2")
    assert await result(guest, load(guests)) == seed_colour(ANNAS)
    (copied,) = (path for path in (tmp_path / "output").rglob("*") if "~b1" in path.name)
    copy = str(copied.relative_to(tmp_path / "output"))
    for comfy, colour_of in ((mate, (1, 1, 1)), (guest, (2, 2, 2))):
        await upload(comfy, png(colour_of), "pic.png")
        assert await result(comfy, load("pic.png", "pic")) == colour_of
    (place,) = brought(tmp_path, png((2, 2, 2)))

    async def is_kept_from(mate: Comfy) -> None:
        mate.is_watched = False
        for kind, path in (("output", copy), ("input", place)):
            subfolder, _, filename = path.rpartition("/")
            query = {"filename": filename, "subfolder": subfolder, "type": kind}
            assert (await ask(mate, "GET", "/view?" + urlencode(query))).status == 404
        for said in (f"{copy} [output]", place):
            assert (await mate.post("/prompt", {"prompt": load(said)}))[0] == 400

    await is_kept_from(mate)
    assert await gateway.stop() == 0
    gateway = await start(lab, *simulators, up=1, **shared)
    await is_kept_from(caller(lab, gateway, "mate"))
