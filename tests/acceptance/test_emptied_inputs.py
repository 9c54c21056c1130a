"""A backend's folder is emptied while it runs: the gateway has the files, so no client hears of it."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, Simulator, until
from tests.support.pictures import colour, png
from tests.support.saved_copies import clean, only
from tests.support.security_world import ask, caller, start
from tests.support.uploads import brought, load, result, upload
from tests.support.workflows import slow

MINE = (40, 50, 60)


async def started(lab: Lab, base: Path, isolation: str) -> tuple[Simulator, Comfy]:
    """A backend, and a caller of a gateway before it: of a team, or an isolated tenant whose uploads lie in secret."""
    simulator = await lab.simulator("--base-dir", str(base))
    return simulator, caller(lab, await start(lab, simulator, isolation=isolation), "anna")


async def asked(lab: Lab, simulator: Simulator, route: str = "POST /prompt") -> int:
    """How often a backend was asked a route."""
    return (await simulator.requests(lab.http)).get(route, 0)


@pytest.mark.parametrize("isolation", ["shared", "isolated"])
async def test_a_prompt_runs_though_its_files_were_deleted(lab: Lab, tmp_path: Path, isolation: str) -> None:
    """Uploads of the root and of a subfolder, and a mask; the second prompt comes at once."""
    simulator, anna = await started(lab, tmp_path, isolation)
    assert (await upload(anna, png(MINE), "pic.png"))[0] == 200
    assert (await upload(anna, png((1, 2, 3)), "deep.png", subfolder="a/b"))[0] == 200
    mask = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 77)).save(mask, "PNG")
    reference = json.dumps({"filename": "pic.png", "type": "input", "subfolder": ""})
    assert (await upload(anna, mask.getvalue(), "masked.png", "mask", original_ref=reference))[0] == 200
    named = {"pic.png": MINE, "a/b/deep.png": (1, 2, 3), "masked.png": MINE, "pic.png [input]": MINE}
    for turn in range(2):
        for number, (name, rgb) in enumerate(named.items()):
            before = await asked(lab, simulator)
            assert await result(anna, load(name, f"t{turn}n{number}")) == rgb, name
            # What was found to be gone is looked for once for all files of that backend.
            is_first = turn == 1 and number == 0
            assert await asked(lab, simulator) - before == (2 if is_first else 1), name
        clean(tmp_path, "input")


async def test_a_file_that_is_nowhere_is_refused_as_comfyui_refuses_it(lab: Lab, tmp_path: Path) -> None:
    """Byte for byte, and its prompt is offered once; also one whose upload is there, and which is wrong in itself."""
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await lab.gateway(simulator)
    comfy, direct = Comfy(lab.http, gateway.url), Comfy(lab.http, simulator.url)
    await upload(comfy, png(MINE), "pic.png")
    wrong: dict[str, Any] = {
        "1": {"class_type": "LoadImageMask", "inputs": {"image": "pic.png", "channel": "no such channel"}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    assert await result(comfy, load("pic.png")) == MINE
    for prompt in (load("nowhere.png"), wrong):
        before = await asked(lab, simulator)
        body = json.dumps({"prompt": prompt}).encode()
        assert (found := await ask(comfy, "POST", "/prompt", body)).status == 400
        assert await asked(lab, simulator) == before + 1
        assert found.body == (await ask(direct, "POST", "/prompt", body)).body


async def test_many_prompts_at_once_run_though_their_file_was_deleted(lab: Lab, tmp_path: Path) -> None:
    """Those that were refused find it there again, as the first of them had it put there."""
    simulator, anna = await started(lab, tmp_path, "isolated")
    await upload(anna, png(MINE), "pic.png")
    assert await result(anna, load("pic.png")) == MINE
    clean(tmp_path, "input")
    found = await asyncio.gather(*(result(anna, load("pic.png", f"n{n}")) for n in range(12)))
    assert set(found) == {MINE}
    assert await asked(lab, simulator, "POST /upload/image") == 2


async def test_an_output_that_is_left_out_for_a_deleted_file_runs(lab: Lab, tmp_path: Path) -> None:
    """ComfyUI takes a prompt of which one output is fine, and leaves out the other, which names the file."""
    _, anna = await started(lab, tmp_path, "isolated")
    await upload(anna, png(MINE), "pic.png")
    assert await result(anna, load("pic.png")) == MINE
    clean(tmp_path, "input")
    listener = await anna.listen("c")
    both = {**load("pic.png", "both"), "3": slow(7, steps=2)["1"]}
    both["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "other"}}
    status, answer = await anna.post("/prompt", {"prompt": both, "client_id": "c"})
    assert (status, answer["node_errors"]) == (200, {})
    entry = await anna.entry(answer["prompt_id"])
    assert entry["status"]["status_str"] == "success"
    assert sorted(entry["outputs"]) == ["2", "4"]
    await listener.end_of(answer["prompt_id"])
    heard = listener.of(answer["prompt_id"])
    assert heard.count("execution_start") == heard.count("execution_success") == 1


async def test_a_job_runs_again_whose_file_was_deleted_while_it_waited(lab: Lab, tmp_path: Path) -> None:
    """Once: the backend had the file when it took the prompt, and its node opens it later."""
    simulator, anna = await started(lab, tmp_path, "isolated")
    listener = await anna.listen("c")
    before = await anna.prompt(slow(steps=1000))
    await anna.running(before)
    await upload(anna, png(MINE), "pic.png")
    waits = await anna.prompt(load("pic.png"), "c")

    async def pending() -> bool:
        return bool((await Comfy(lab.http, simulator.url).get("/queue"))["queue_pending"])

    await until(pending)
    clean(tmp_path, "input")
    assert (await anna.post("/interrupt", {"prompt_id": before}))[0] == 200
    entry = await anna.entry(waits)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert colour(await anna.view(anna.images(entry)[0])) == MINE
    await listener.end_of(waits)
    heard = listener.of(waits)
    assert heard.count("execution_start") == 1
    assert "execution_error" not in heard


async def test_a_custom_class_finds_the_upload_in_its_list_again(lab: Lab, tmp_path: Path) -> None:
    """The class checks nothing itself: ComfyUI holds the name against what the folder lists (`value_not_in_list`)."""
    _, anna = await started(lab, tmp_path, "isolated")
    await upload(anna, png(MINE), "pic.png")
    prompt: dict[str, Any] = {"1": {"class_type": "PickNode", "inputs": {"picture": "pic.png"}}}
    for _ in range(2):
        assert (await anna.entry(await anna.prompt(prompt)))["status"]["status_str"] == "success"
        clean(tmp_path, "input")


async def test_a_copy_of_another_backends_output_is_brought_again(lab: Lab, tmp_path: Path) -> None:
    """It is deleted between the offer and the run."""
    first, second = await lab.simulator(), await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, first, second)
    anna = caller(lab, gateway, "anna")
    await only(lab, gateway, "b1")
    (image,) = anna.images(await anna.entry(await anna.prompt(slow(0x0A0B0C))))
    await only(lab, gateway, "b2")
    before = await anna.prompt(slow(steps=1000))
    await anna.running(before)
    waits = await anna.prompt(load(f"{image['filename']} [output]"))

    async def pending() -> bool:
        return bool((await Comfy(lab.http, second.url).get("/queue"))["queue_pending"])

    await until(pending)
    clean(tmp_path)
    assert (await anna.post("/interrupt", {"prompt_id": before}))[0] == 200
    entry = await anna.entry(waits)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert colour(await anna.view(anna.images(entry)[0])) == (0x0A, 0x0B, 0x0C)


async def test_the_same_bytes_uploaded_again_are_put_there_again(lab: Lab, tmp_path: Path) -> None:
    simulator, anna = await started(lab, tmp_path, "isolated")

    async def is_there() -> bool:
        # What was seen there within two seconds is not looked at.
        assert (await upload(anna, png(MINE), "pic.png"))[1]["name"] == "pic.png"
        return bool(brought(tmp_path, png(MINE)))

    for _ in range(2):
        await until(is_there)
        clean(tmp_path, "input")
    assert await asked(lab, simulator, "POST /upload/image") == 2


async def test_a_mask_and_a_preview_are_made_of_a_deleted_picture(lab: Lab, tmp_path: Path) -> None:
    _, anna = await started(lab, tmp_path, "isolated")
    await upload(anna, png(MINE), "pic.png")
    assert await result(anna, load("pic.png")) == MINE
    clean(tmp_path, "input")
    reference = json.dumps({"filename": "pic.png", "type": "input", "subfolder": ""})
    mask = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 77)).save(mask, "PNG")
    assert (await upload(anna, mask.getvalue(), "masked.png", "mask", original_ref=reference))[0] == 200
    data = await anna.view({"filename": "masked.png", "type": "input"})
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.getpixel((0, 0)) == (*MINE, 77)
    clean(tmp_path, "input")
    seen = await ask(anna, "GET", "/view?filename=pic.png&type=input&preview=webp")
    assert seen.status == 200
    with Image.open(io.BytesIO(seen.body)) as picture:
        assert picture.size == (16, 16)


async def test_a_prompt_goes_elsewhere_if_a_backend_keeps_no_file(lab: Lab, tmp_path: Path) -> None:
    """A second offer there, then the other backend; if there is no other, the refusal is the answer."""
    broken, other = await lab.simulator("--base-dir", str(tmp_path)), await lab.simulator()
    gateway = await start(lab, broken, other)
    anna = caller(lab, gateway, "anna")
    await only(lab, gateway, "b1")
    await upload(anna, png(MINE), "pic.png")
    assert await result(anna, load("pic.png")) == MINE
    await broken.fault(lab.http, "lose-uploads")
    clean(tmp_path, "input")
    before = await asked(lab, broken)
    status, answer = await anna.post("/prompt", {"prompt": load("pic.png")})
    assert status == 400
    assert "Invalid image file: pic.png" in json.dumps(answer)
    assert await asked(lab, broken) - before == 2
    assert await anna.get("/prompt") == {"exec_info": {"queue_remaining": 0}}
    # The other has work of its own, so that the broken one is asked first.
    await only(lab, gateway, "b2")
    stranger = Comfy(lab.http, other.url)
    theirs = await stranger.prompt(slow(steps=1000))
    boss = caller(lab, gateway, "boss")

    async def is_seen() -> bool:
        backends = {each["name"]: each for each in (await boss.get("/gateway/backends"))["backends"]}
        return bool(backends["b2"]["queue_pending"] + backends["b2"]["queue_running"])

    await until(is_seen)
    assert (await boss.post("/gateway/backends/b1/resume"))[0] == 200
    prompt_id = await anna.prompt(load("pic.png"))
    assert await asked(lab, broken) - before == 4
    # Each probe lets the idle backend steal work: not the job that it refused.
    probes = await asked(lab, broken, "GET /queue")

    async def probed() -> bool:
        return await asked(lab, broken, "GET /queue") >= probes + 3

    await until(probed)
    assert await asked(lab, broken) - before == 4
    assert (await stranger.post("/interrupt", {"prompt_id": theirs}))[0] == 200
    entry = await anna.entry(prompt_id)
    assert colour(await anna.view(anna.images(entry)[0])) == MINE
