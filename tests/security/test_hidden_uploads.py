"""What an isolated tenant uploads lies on shared backends where no other tenant's prompt can name it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.comfy_client import Comfy
from tests.support.hidden_uploads import SECRET, surfaces
from tests.support.lab import Lab, until
from tests.support.pictures import png
from tests.support.security_world import caller, start
from tests.support.uploads import brought, load, result, upload

PICTURE, OTHER = png((9, 8, 7)), png((1, 2, 3))
FOLDER = re.compile(r"u/[0-9a-f]{32}/f")


async def placed(base: Path, content: bytes, count: int = 1) -> list[str]:
    """The places of some bytes below input/, once there are so many."""

    async def look() -> list[str]:
        found = brought(base, content)
        return sorted(found) if len(found) >= count else []

    return await until(look, what="the upload on its backend")


async def test_each_upload_has_a_folder_of_its_own(lab: Lab, tmp_path: Path) -> None:
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    places = []
    for comfy, name, data in (
        (anna, "cat.png", PICTURE),
        (anna, "3d/dog.PNG", OTHER),
        (ben, "cat.png", png((5, 5, 5))),
    ):
        subfolder, _, filename = name.rpartition("/")
        assert (await upload(comfy, data, filename, subfolder=subfolder))[1]["name"] == filename
        assert await result(comfy, load(name)) == tuple(Image.open(io.BytesIO(data)).getpixel((0, 0)))  # type: ignore[arg-type]
        (place,) = await placed(tmp_path, data)
        places.append(place)
    folders, names = zip(*(place.rsplit("/", 1) for place in places), strict=True)
    assert len(set(folders)) == 3
    assert all(FOLDER.fullmatch(folder) for folder in folders)
    assert names == ("f.png", "f.PNG", "f.png")


async def test_no_caller_reads_a_secret_folder(lab: Lab, tmp_path: Path) -> None:
    """Not in events, errors, history or lists, be it its own or another's."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await upload(anna, b"no picture", "broken.png", subfolder="deep")
    listener = await anna.listen("c")
    broken = await anna.prompt(load("deep/broken.png"), "c")
    said = await listener.next("execution_error")
    assert said["data"]["current_inputs"] == {"image": ["deep/broken.png"]}
    assert "deep/broken.png" in json.dumps((await anna.entry(broken))["status"])
    assert len(await placed(tmp_path, b"no picture")) == 1
    assert not SECRET.search(await surfaces(anna, broken))
    assert not SECRET.search(await surfaces(ben))
    assert not SECRET.search(json.dumps(listener.heard))


async def test_an_upload_written_over_keeps_its_folder(lab: Lab, tmp_path: Path) -> None:
    """Its name within may change, because prompts that are pending may read the old bytes."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna = caller(lab, gateway, "anna")
    for data in (PICTURE, OTHER):
        await upload(anna, data, "cat.png", overwrite="true")
        assert await result(anna, load("cat.png")) == tuple(Image.open(io.BytesIO(data)).getpixel((0, 0)))  # type: ignore[arg-type]
    (first,), (second,) = await placed(tmp_path, PICTURE), await placed(tmp_path, OTHER)
    assert first.rsplit("/", 1)[0] == second.rsplit("/", 1)[0]
    assert first != second


async def test_a_restart_finds_what_is_placed(lab: Lab, tmp_path: Path) -> None:
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator)
    await upload(caller(lab, gateway, "anna"), PICTURE, "cat.png")
    before = await placed(tmp_path, PICTURE)
    assert await gateway.stop() == 0
    gateway = await start(lab, simulator)
    anna = caller(lab, gateway, "anna")
    assert await result(anna, load("cat.png")) == (9, 8, 7)
    assert brought(tmp_path, PICTURE) == before


async def test_a_text_that_is_no_file_stays_what_it_is(lab: Lab, tmp_path: Path) -> None:
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna = caller(lab, gateway, "anna")
    await upload(anna, PICTURE, "cat.png")
    entry = await anna.entry(await anna.prompt(load("cat.png", "cat.png")))
    assert [image["filename"] for image in anna.images(entry)] == ["cat.png_00001_.png"]


async def test_a_mask_is_drawn_into_a_hidden_upload(lab: Lab, tmp_path: Path) -> None:
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna = caller(lab, gateway, "anna")
    await upload(anna, PICTURE, "cat.png")
    mask = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 77)).save(mask, "PNG")
    reference = json.dumps({"filename": "cat.png", "type": "input", "subfolder": ""})
    answer = await upload(anna, mask.getvalue(), "masked.png", "mask", original_ref=reference)
    assert answer == (200, {"name": "masked.png", "subfolder": "", "type": "input"})
    assert await result(anna, load("masked.png")) == (9, 8, 7)


async def test_a_custom_class_finds_the_upload_in_its_list(lab: Lab, tmp_path: Path) -> None:
    """Such a class may take nothing but a name of the root, so the file gets a name there that nobody can guess."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await upload(anna, PICTURE, "cat.png")
    prompt: dict[str, Any] = {"1": {"class_type": "PickNode", "inputs": {"picture": "cat.png"}}}
    entry = await anna.entry(await anna.prompt(prompt))
    assert entry["status"]["status_str"] == "success", entry
    assert any(re.fullmatch(r"u-[0-9a-f]{32}\.png", place) for place in await placed(tmp_path, PICTURE, 2))
    for comfy in (anna, ben):
        assert not SECRET.search(json.dumps([await comfy.get("/object_info"), entry]))


async def test_a_lone_tenant_sees_no_difference(lab: Lab, tmp_path: Path) -> None:
    gateway = await lab.gateway(await lab.simulator("--base-dir", str(tmp_path)))
    comfy = Comfy(lab.http, gateway.url)
    await upload(comfy, PICTURE, "cat.png")
    assert await result(comfy, load("cat.png")) == (9, 8, 7)
    assert await placed(tmp_path, PICTURE) == ["cat.png"]


async def test_a_node_that_shows_an_upload_tells_of_its_own_name(lab: Lab, tmp_path: Path) -> None:
    """Of uploads with the same bytes each has its own; another tenant's has none."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    for name in ("one.png", "two.png"):
        await upload(anna, PICTURE, name, subfolder="deep")
    places = await placed(tmp_path, PICTURE, 2)
    files = [{"subfolder": place.rpartition("/")[0], "filename": "f.png", "type": "input"} for place in places]
    prompt = {"t": {"class_type": "TellNode", "inputs": {"ui": json.dumps({"images": files})}}}
    for comfy, seen in ((anna, {("deep", "one.png"), ("deep", "two.png")}), (ben, {("", "f.png")})):
        comfy.is_watched = False
        entry = await comfy.entry(await comfy.prompt(prompt))
        assert {(image["subfolder"], image["filename"]) for image in comfy.images(entry)} == seen


async def test_a_prompt_out_of_a_picture_names_its_uploads_again(lab: Lab, tmp_path: Path) -> None:
    """The prompt in a picture is the one that the backend ran, so it names an upload by its secret folder."""
    gateway = await start(lab, await lab.simulator("--base-dir", str(tmp_path)))
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await upload(anna, PICTURE, "cat.png", subfolder="deep")
    assert await result(anna, load("deep/cat.png"))
    (place,) = await placed(tmp_path, PICTURE)
    again = await anna.entry(await anna.prompt(load(place)))
    assert again["prompt"][2]["1"]["inputs"]["image"] == "deep/cat.png"
    assert again["status"]["status_str"] == "success"
    # A refusal repeats the name that ben himself gave.
    ben.is_watched = False
    for body in (load(place), load(place.replace("/f/f", "/f/../f/f"))):
        assert (await ben.post("/prompt", {"prompt": body}))[0] == 400
