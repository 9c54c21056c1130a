"""Output folders that are emptied: a backend counts from 1 again, and a name comes to mean another's file.

What such a file is, the gateway hears only with `executed`. Until then, or if that went by unheard, the name's earlier
owner must not be led to it: not by /view, nor as an input, nor by a result out of ComfyUI's cache.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

import pytest

from gateway.simulator.nodes import seed_colour
from tests.support.clock import Clock
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.pictures import colour, png
from tests.support.saved_copies import clean, made, only, saved_and_goes_on
from tests.support.security_world import ask, caller, start
from tests.support.uploads import brought, load, upload
from tests.support.workflows import slow

ANNAS, BENS = 0x112233, 0x445566
SECRET = (1, 2, 3)


def written_by_another(base: Path, image: Mapping[str, str]) -> None:
    """The folder is emptied, and another's node has written a file wherever one was, and by the name that is seen."""
    places = [path for path in (base / "output").rglob("*") if path.is_file()]
    clean(base)
    for place in (*places, base / "output" / image["filename"]):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(SECRET))


async def assert_is_not_shown(comfy: Comfy, image: Mapping[str, str]) -> None:
    """In no form in which a picture can be asked for."""
    plain = {"filename": image["filename"], "type": "output"}
    for more in ({}, {"preview": "webp;90"}, {"channel": "rgb"}, {"channel": "a"}, {"res": "64"}):
        for path in ("/view", "/api/view", "/vhs/viewvideo"):
            answer = await ask(comfy, "GET", f"{path}?{urlencode(plain | more)}")
            assert answer.status == 404, (path, more, answer)
    for headers in ({"Range": "bytes=0-7"}, {"Range": "bytes=999999-"}, {"If_None_Match": "*"}):
        assert (await ask(comfy, "GET", f"/view?{urlencode(plain)}", **headers)).status == 404, headers
    assert (await ask(comfy, "HEAD", f"/view?{urlencode(plain)}")).status == 404


async def assert_is_no_input(comfy: Comfy, image: Mapping[str, str], client_id: str) -> None:
    """A prompt that reads it fails, and says that the file is gone."""
    status, answer = await comfy.post(
        "/prompt", {"prompt": load(f"{image['filename']} [output]"), "client_id": client_id}
    )
    if status == 200:
        entry = await comfy.entry(answer["prompt_id"])
        assert (entry["status"]["status_str"], entry["outputs"]) == ("error", {})
        assert "not there any more" in json.dumps(entry["status"]["messages"])
    else:
        assert status == 400


async def pending(lab: Lab, simulator: Simulator, gateway: GatewayProcess, prompt_id: str) -> None:
    """Until a prompt waits in a backend's own queue."""

    async def look() -> bool:
        queue = await Comfy(lab.http, simulator.url).get("/queue")
        return any(item[1] == gateway.upstream_ids()[prompt_id] for item in queue["queue_pending"])

    await until(look, what="pending on its backend")


async def test_what_another_is_writing_is_not_shown_under_an_old_name(lab: Lab, tmp_path: Path) -> None:
    first, second = await lab.simulator("--base-dir", str(tmp_path)), await lab.simulator()
    gateway = await start(lab, first, second)
    anna = caller(lab, gateway, "anna")
    await only(lab, gateway, "b1")
    image = await made(anna, slow(ANNAS))
    assert colour(await anna.view(image)) == seed_colour(ANNAS)
    written_by_another(tmp_path, image)
    await assert_is_not_shown(anna, image)
    await assert_is_no_input(anna, image, "here")
    await only(lab, gateway, "b2")
    await assert_is_no_input(anna, image, "there")
    reference = json.dumps({"filename": image["filename"], "type": "output"})
    status, said = await upload(anna, png((0, 0, 0)), "mask.png", "mask", original_ref=reference)
    assert (await ask(anna, "GET", f"/view?{urlencode({'filename': said['name'], 'type': 'input'})}")).status == 404, (
        status
    )
    assert await gateway.stop() == 0
    gateway = await start(lab, first, second, up=1)
    await assert_is_not_shown(caller(lab, gateway, "anna"), image)


async def test_a_result_out_of_the_cache_leads_to_nobody_elses_file(lab: Lab, tmp_path: Path) -> None:
    """Anna's prompt comes again after the folder was emptied, and after Ben's, which has all of hers as well."""
    simulator = await lab.simulator("--base-dir", str(tmp_path), "--cache-ram")
    gateway = await start(lab, simulator)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    image = await made(anna, slow(ANNAS))
    clean(tmp_path)
    both = slow(ANNAS) | {str(int(n) + 2): node for n, node in slow(BENS).items()}
    both["4"]["inputs"] = {"images": ["3", 0], "filename_prefix": "bens"}
    bens = ben.images(await ben.entry(await ben.prompt(both)))
    for _ in range(2):
        again = await made(anna, slow(ANNAS))
        assert colour(await anna.view(again)) == seed_colour(ANNAS)
        assert [colour(await ben.view(each)) for each in bens] == [seed_colour(ANNAS), seed_colour(BENS)]
        assert (await ask(anna, "GET", f"/view?{urlencode(bens[1])}")).status == 404
        assert image == again or (await ask(anna, "GET", f"/view?{urlencode(image)}")).status == 404
        assert await gateway.stop() == 0
        gateway = await start(lab, simulator)
        anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")


async def test_a_result_out_of_the_cache_is_shown_while_it_is_what_it_was(lab: Lab, tmp_path: Path) -> None:
    """Two tenants with the same prompt have the same file, until somebody writes another one under its name."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path), "--cache-ram"))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    images = [await made(comfy, slow(ANNAS)) for comfy in (anna, ben)]
    for comfy, image in zip((anna, ben), images, strict=True):
        assert colour(await comfy.view(image)) == seed_colour(ANNAS)
    written_by_another(tmp_path, images[0])
    for comfy, image in zip((anna, ben), images, strict=True):
        await assert_is_not_shown(comfy, image)
    assert (await ask(ben, "GET", f"/view?{urlencode(await made(ben, slow(ANNAS)))}")).status == 404


async def test_a_file_that_ones_own_job_writes_again_is_shown(lab: Lab, tmp_path: Path) -> None:
    """From the moment at which its node has run, through the rest of the job, and after it."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna = caller(lab, gateway, "anna")
    image = await made(anna, slow(ANNAS))
    clean(tmp_path)
    prompt_id = await saved_and_goes_on(anna, ANNAS)
    again = {**image, "filename": image["filename"].replace("00001", "00002")}
    assert colour(await anna.view(again)) == seed_colour(ANNAS)
    assert (await anna.post("/interrupt", {"prompt_id": prompt_id}))[0] == 200
    await anna.entry(prompt_id)
    assert colour(await anna.view(again)) == seed_colour(ANNAS)
    assert (await ask(anna, "GET", f"/view?{urlencode(image)}")).status == 404, "an earlier job's file is gone"


async def test_a_prompt_that_waited_does_not_read_what_the_one_before_it_wrote(lab: Lab, tmp_path: Path) -> None:
    """Its input was right when it was sent; while it is pending the folder is emptied, and Ben's job has the name."""
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    image = await made(anna, slow(ANNAS))
    listener = await ben.listen("c")
    bens = await ben.prompt(slow(BENS, steps=100, step_seconds=0.02), "c")
    await listener.next("progress")
    annas = await anna.prompt(load(f"{image['filename']} [output]"))
    await pending(lab, simulator, gateway, annas)
    clean(tmp_path)
    assert ben.images(await ben.entry(bens)) == [image]
    entry = await anna.entry(annas)
    colours = [colour(await anna.view(each)) for each in anna.images(entry)]
    assert seed_colour(BENS) not in colours
    assert colours == [] or entry["status"]["status_str"] == "success"


async def test_what_is_being_collected_is_not_what_the_next_job_writes(lab: Lab, tmp_path: Path) -> None:
    """Anna's entry takes long to come; meanwhile Ben's job runs there, and the folder is emptied."""
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    annas = str(uuid.uuid4())
    await simulator.fault(lab.http, "500:/history/*")
    prompt = slow(ANNAS)
    prompt["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "another"}}
    events = await anna.listen("c")
    await anna.post("/prompt", {"prompt": prompt, "prompt_id": annas, "client_id": "c"})
    (image,) = (await events.next("executed"))["data"]["output"]["images"]
    bens = await ben.prompt(slow(BENS, steps=1000))

    async def runs() -> bool:
        return any(item[1] == bens for item in (await ben.get("/queue"))["queue_running"])

    await until(runs, what="Ben's job runs")
    assert colour(await anna.view(image)) == seed_colour(ANNAS)
    # An answer has the time in whole seconds, and in the first one after a job no other is taken to have written.
    await asyncio.sleep(2.1)
    written_by_another(tmp_path, image)
    await assert_is_not_shown(anna, image)
    await simulator.no_faults(lab.http)
    await anna.entry(annas)
    await assert_is_not_shown(anna, image)
    assert (await ben.post("/interrupt", {"prompt_id": bens}))[0] == 200
    await ben.entry(bens)
    await assert_is_not_shown(anna, image)


@pytest.mark.parametrize("preview", ["", "webp;90"])
async def test_a_team_does_not_see_what_a_guest_is_writing(lab: Lab, tmp_path: Path, preview: str) -> None:
    """Neither under a name that the team knew, nor under one that it guesses; its older files it sees all the while."""
    gateway = await start(
        lab, await lab.simulator("--base-dir", str(tmp_path)), isolation="shared", tenants={"other": "guest"}
    )
    guest, mate = caller(lab, gateway, "other"), caller(lab, gateway, "mate")
    image = await made(mate, slow(ANNAS))
    older = tmp_path / "output" / "older.png"
    older.write_bytes(png((7, 7, 7)))
    os.utime(older, (1e9, 1e9))
    listener = await guest.listen("c")
    prompt_id = await guest.prompt(slow(BENS, steps=1000), "c")
    await listener.next("progress")
    (place,) = (path for path in (tmp_path / "output").rglob("*.png") if path != older)
    for name, path in ((image["filename"], place), ("guessed.png", tmp_path / "output" / "guessed.png")):
        path.write_bytes(png(SECRET))
        query = {"filename": name, "type": "output", **({"preview": preview} if preview else {})}
        assert (await ask(mate, "GET", f"/view?{urlencode(query)}")).status == 404, name
    query = {"filename": "older.png", **({"preview": preview} if preview else {})}
    assert (await ask(mate, "GET", f"/view?{urlencode(query)}")).status == 200
    assert (await guest.post("/interrupt", {"prompt_id": prompt_id}))[0] == 200
    await guest.entry(prompt_id)


async def test_an_admin_sees_what_is_there(lab: Lab, tmp_path: Path) -> None:
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    image = await made(caller(lab, gateway, "anna"), slow(ANNAS))
    written_by_another(tmp_path, image)
    boss = caller(lab, gateway, "boss")
    assert colour(await boss.view(image)) == SECRET


async def test_a_prompt_that_waited_does_not_read_anothers_upload_of_the_name(lab: Lab, tmp_path: Path) -> None:
    """The folder of inputs is emptied while Anna's prompt is pending, and Ben uploads a picture of the same name."""
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    runs = await ben.prompt(slow(BENS, steps=1000))
    await upload(anna, png((9, 9, 9)), "pic.png")
    annas = await anna.prompt(load("pic.png"))
    await pending(lab, simulator, gateway, annas)
    clean(tmp_path, "input")
    await upload(ben, png(SECRET), "pic.png")
    bens = await ben.prompt(load("pic.png"))
    await pending(lab, simulator, gateway, bens)
    assert (await ben.post("/interrupt", {"prompt_id": runs}))[0] == 200
    # Her own is put there again, and her job runs once more.
    for comfy, prompt_id, rgb in ((anna, annas, (9, 9, 9)), (ben, bens, SECRET)):
        (image,) = comfy.images(await comfy.entry(prompt_id))
        assert colour(await comfy.view(image)) == rgb


async def test_a_copy_with_its_originals_time_is_shown(lab: Lab, tmp_path: Path) -> None:
    """ComfyUI saves a 3D model as it was loaded, also with the time of the file; anything else that is so old is not.

    The backend's clock is ahead, so all that is on its disk is older than its jobs.
    """
    clock = Clock(tmp_path / "clock")
    clock.step("+600s")
    simulator = await lab.simulator("--base-dir", str(tmp_path), environment=clock.environment)
    gateway = await start(lab, simulator)
    anna = caller(lab, gateway, "anna")
    await upload(anna, png((9, 9, 9)), "mine.png")

    def names_files(name: str) -> dict[str, dict[str, object]]:
        ui = {"images": [{"filename": name, "type": "output"}]}
        return load("mine.png", "old") | {"9": {"class_type": "TellNode", "inputs": {"ui": json.dumps(ui)}}}

    async def placed() -> list[str]:
        # Whole: a copy of a part of it has another time.
        return brought(tmp_path, png((9, 9, 9)))

    (mine,) = await until(placed)
    (tmp_path / "output").mkdir(exist_ok=True)
    shutil.copy2(tmp_path / "input" / mine, tmp_path / "output" / "copy.png")
    (tmp_path / "output" / "other.png").write_bytes(png((9, 9, 9)))
    for name, status in (("copy.png", 200), ("other.png", 404)):
        await anna.entry(await anna.prompt(names_files(name)))
        query = urlencode({"filename": name, "type": "output"})
        assert (await ask(anna, "GET", f"/view?{query}")).status == status, name
    assert any(line["event"] == "output_older_than_job" for line in gateway.log_lines())
