"""Uploads go where the work goes: kept once, put on the backend that needs them, under names that mean one thing."""

from __future__ import annotations

import asyncio
import io
import json
import os
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from PIL import Image

from tests.support.comfy_client import Comfy
from tests.support.folders import files_below
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.pictures import colour, png
from tests.support.uploads import ANNA, BEN, brought, busy, folder, load, result, upload, with_keys
from tests.support.workflows import slow


async def test_an_upload_is_on_every_backend_and_in_every_list(lab: Lab) -> None:
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    assert await upload(comfy, png((9, 8, 7)), "mine.png") == (
        200,
        {"name": "mine.png", "subfolder": "", "type": "input"},
    )
    info = await comfy.get("/object_info/LoadImage")
    assert info["LoadImage"]["input"]["required"]["image"][0] == ["mine.png"]
    assert "mine.png" in (await comfy.get("/object_info"))["LoadImageMask"]["input"]["required"]["image"][0]
    for simulator in simulators:

        async def look(simulator: Simulator = simulator) -> bool:
            return await folder(lab, simulator) == {"mine.png"}

        await until(look)
    # All three work at once, each on its own copy.
    colours = await asyncio.gather(*(result(comfy, load("mine.png", f"u{n}")) for n in range(6)))
    assert set(colours) == {(9, 8, 7)}
    assert await comfy.view({"filename": "mine.png", "type": "input"}) == png((9, 8, 7))


async def test_a_name_that_means_other_bytes_there_is_rewritten(lab: Lab, tmp_path: Path) -> None:
    """A backend has a pic.png of its own: the prompt that goes there names another file, the client sees its own."""
    own = png((1, 1, 1))
    base = tmp_path / "base"
    (base / "input").mkdir(parents=True)
    (base / "input" / "pic.png").write_bytes(own)
    first, second = await lab.simulator("--base-dir", str(base)), await lab.simulator()
    gateway = await lab.gateway(first, second)
    comfy = Comfy(lab.http, gateway.url)
    assert (await upload(comfy, png((50, 60, 70)), "pic.png"))[1]["name"] == "pic.png"
    await busy(lab, second)
    await asyncio.gather(*(_sees(lab, gateway, name, 6) for name in ("b2",)))
    assert await result(comfy, load("pic.png")) == (50, 60, 70)
    assert await result(comfy, load("pic.png [input]", "annotated")) == (50, 60, 70)
    assert (base / "input" / "pic.png").read_bytes() == own
    assert (base / "input" / "pic (1).png").read_bytes() == png((50, 60, 70))
    history = await Comfy(lab.http, first.url).get("/history")
    sent = [entry["prompt"][2]["1"]["inputs"]["image"] for entry in history.values()]
    assert sent == ["pic (1).png", "pic (1).png [input]"]


async def _sees(lab: Lab, gateway: GatewayProcess, backend: str, queued: int) -> None:
    async def look() -> bool:
        async with lab.http.get(f"{gateway.url}/gateway/backends") as answer:
            backends = {b["name"]: b for b in (await answer.json())["backends"]}
        return bool(backends[backend]["queue_running"] + backends[backend]["queue_pending"] == queued)

    await until(look)


async def test_overwritten_bytes_are_what_the_next_prompt_loads(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(2))
    comfy = Comfy(lab.http, gateway.url)
    await upload(comfy, png((10, 0, 0)), "pic.png")
    assert await result(comfy, load("pic.png", "a")) == (10, 0, 0)
    assert (await upload(comfy, png((0, 20, 0)), "pic.png"))[1]["name"] == "pic (1).png"
    assert (await upload(comfy, png((0, 0, 30)), "pic.png", overwrite="true"))[1]["name"] == "pic.png"
    for n in range(4):
        assert await result(comfy, load("pic.png", f"b{n}")) == (0, 0, 30)
        assert await result(comfy, load("pic (1).png", f"c{n}")) == (0, 20, 0)
    assert await comfy.view({"filename": "pic.png", "type": "input"}) == png((0, 0, 30))


async def test_subfolders_and_other_folders(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(2))
    comfy = Comfy(lab.http, gateway.url)
    names = {"a b/ç": "input", "": "temp", "t": "output"}
    for n, (subfolder, kind) in enumerate(names.items()):
        answer = await upload(comfy, png((n, n, n)), "ü 1.png", subfolder=subfolder, type=kind)
        assert answer == (200, {"name": "ü 1.png", "subfolder": subfolder, "type": kind})
    assert await result(comfy, load("a b/ç/ü 1.png")) == (0, 0, 0)
    assert await result(comfy, load("ü 1.png [temp]")) == (1, 1, 1)
    assert await result(comfy, load("t/ü 1.png [output]")) == (2, 2, 2)
    for n, (subfolder, kind) in enumerate(names.items()):
        image = {"filename": "ü 1.png", "subfolder": subfolder, "type": kind}
        assert colour(await comfy.view(image)) == (n, n, n)
        assert colour(await comfy.view({**image, "preview": "webp;100"})) == (n, n, n)
    assert await comfy.get("/object_info/LoadImage") is not None


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("x.png", {"subfolder": "../../etc"}),
        ("x.png", {"subfolder": "/etc"}),
        ("../x.png", {}),
        ("../../x.png", {"subfolder": "a"}),
        ("..", {}),
        ("x.png", {"type": "models"}),
        ("x" * 300 + ".png", {}),
    ],
)
async def test_names_that_lead_out_are_refused(lab: Lab, name: str, fields: dict[str, str]) -> None:
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    assert (await upload(comfy, b"data", name, **fields))[0] == 400
    blobs = files_below(lab.directory / "data" / "uploads")
    assert blobs == []


@pytest.mark.parametrize("drained", [False, True])
async def test_a_name_that_is_no_text_is_a_file_that_is_not_there(lab: Lab, drained: bool) -> None:
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    if drained:
        await _drain(lab, gateway, "b1", "drain")
    for name in ("\ud800.png", "x/\udcff.png [output]", "\0.png"):
        status, answer = await comfy.post("/prompt", {"prompt": load(name)})
        assert status == 400, name
        assert answer["node_errors"]["1"]["errors"][0]["details"] == f"image - Invalid image file: {name}"


async def test_a_body_that_is_no_upload(lab: Lab) -> None:
    gateway = await lab.gateway(await lab.simulator())
    for body, kind in ((b"", ""), (b"{}", "application/json"), (b"--x\r\nbroken", "multipart/form-data; boundary=x")):
        headers = {"Content-Type": kind} if kind else {}
        async with lab.http.post(f"{gateway.url}/upload/image", data=body, headers=headers) as answer:
            assert answer.status == 400
    form = aiohttp.FormData({"overwrite": "true"})
    form.add_field("other", b"x", filename="x.png")
    async with lab.http.post(f"{gateway.url}/api/upload/image", data=form) as answer:
        assert answer.status == 400


async def test_another_backends_output_is_fetched(lab: Lab) -> None:
    """Both backends have a ComfyUI_00001_.png; each is loaded on the other one, and stays what it is."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    for seed, name in ((0x102030, "b1"), (0x405060, "b2")):
        others = [n for n in ("b1", "b2") if n != name]
        await _drain(lab, gateway, others[0], "drain")
        (image,) = comfy.images(await comfy.entry(await comfy.prompt(slow(seed))))
        await _drain(lab, gateway, others[0], "resume")
        await _drain(lab, gateway, name, "drain")
        expected = (seed >> 16, seed >> 8 & 255, seed & 255)
        for n in range(2):
            assert await result(comfy, load(f"{image['filename']} [output]", f"of-{name}-{n}")) == expected
        await _drain(lab, gateway, name, "resume")


async def _drain(lab: Lab, gateway: GatewayProcess, backend: str, action: str) -> None:
    async with lab.http.post(f"{gateway.url}/gateway/backends/{backend}/{action}") as answer:
        assert answer.status == 200


async def test_a_prompt_waits_for_the_owner_of_its_file(lab: Lab) -> None:
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    await _drain(lab, gateway, "b1", "drain")
    (image,) = comfy.images(await comfy.entry(await comfy.prompt(slow(0x0A0B0C))))
    await _drain(lab, gateway, "b1", "resume")
    await simulators[1].fault(lab.http, "refuse:2")
    await lab.backends_up(gateway, 1)
    prompt_id = await comfy.prompt(load(f"{image['filename']} [output]"))
    assert [item[1] for item in (await comfy.get("/queue"))["queue_pending"]] == [prompt_id]
    entry = await comfy.entry(prompt_id)
    (copy,) = comfy.images(entry)
    assert colour(await comfy.view(copy)) == (0x0A, 0x0B, 0x0C)


async def test_a_backend_that_comes_back_empty_gets_what_its_next_job_needs(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    await upload(comfy, png((4, 5, 6)), "pic.png")
    assert await result(comfy, load("pic.png")) == (4, 5, 6)
    port = simulator.port
    await simulator.kill()
    await lab.backends_up(gateway, 0)
    again = await lab.simulator(port=port)
    await lab.backends_up(gateway, 1)
    assert await folder(lab, again) == set()
    assert await result(comfy, load("pic.png")) == (4, 5, 6)
    late = await lab.simulator()
    assert await folder(lab, late) == set()


async def test_uploads_outlive_the_gateway_and_its_backends_are_asked_but_once(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    await upload(comfy, png((4, 5, 6)), "pic.png")
    assert await result(comfy, load("pic.png")) == (4, 5, 6)
    await gateway.kill()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    assert await result(comfy, load("pic.png", "again")) == (4, 5, 6)
    assert (await upload(comfy, png((4, 5, 6)), "pic.png"))[1]["name"] == "pic.png"
    assert (await simulator.requests(lab.http))["POST /upload/image"] == 1


async def test_a_mask_that_is_no_picture_is_refused(lab: Lab) -> None:
    # Its backend fails over it.
    lab.expect_trouble = True
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    await upload(comfy, png((1, 2, 3)), "a.png")
    reference = json.dumps({"filename": "a.png", "type": "input"})
    status, refusal = await upload(comfy, b"no picture", "m.png", "mask", original_ref=reference)
    assert (status, refusal["error"]["type"]) == (400, "invalid_mask")


async def test_a_mask_is_composed_where_its_picture_is(lab: Lab) -> None:
    """Of an upload, and of an output of a backend: the result is an upload like any other."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    await upload(comfy, png((200, 100, 50), 64), "base.png")
    await _drain(lab, gateway, "b1", "drain")
    (output,) = comfy.images(await comfy.entry(await comfy.prompt(slow(0xC86432))))
    await _drain(lab, gateway, "b1", "resume")
    mask = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 77)).save(mask, "PNG")
    for n, original in enumerate(({"filename": "base.png", "type": "input"}, output)):
        reference = str({**original, "subfolder": ""}).replace("'", '"')
        answer = await upload(comfy, mask.getvalue(), f"masked{n}.png", "mask", original_ref=reference)
        assert answer == (200, {"name": f"masked{n}.png", "subfolder": "", "type": "input"})
        data = await comfy.view({"filename": f"masked{n}.png", "type": "input"})
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.getpixel((0, 0)) == (200, 100, 50, 77)
        for m in range(3):
            assert await result(comfy, load(f"masked{n}.png", f"m{n}{m}")) == (200, 100, 50)
    assert (await upload(comfy, mask.getvalue(), "m.png", "mask", original_ref="not json"))[0] == 400


async def test_two_tenants_with_the_same_names(lab: Lab, tmp_path: Path) -> None:
    """Same name, other bytes, one backend: each loads, sees and lists its own, and can't name the other's."""
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await with_keys(lab, simulator)
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
    assert (await upload(anna, png((1, 2, 3)), "pic.png"))[1]["name"] == "pic.png"
    assert (await upload(ben, png((7, 8, 9)), "pic.png"))[1]["name"] == "pic.png"
    assert (await upload(anna, png((3, 3, 3)), "secret.png"))[1]["name"] == "secret.png"
    for comfy, wanted in ((anna, (1, 2, 3)), (ben, (7, 8, 9))):
        assert await result(comfy, load("pic.png")) == wanted
        assert colour(await comfy.view({"filename": "pic.png", "type": "input"})) == wanted
    lists = [(await c.get("/object_info/LoadImage"))["LoadImage"]["input"]["required"]["image"][0] for c in (anna, ben)]
    assert lists == [["pic.png", "secret.png"], ["pic.png"]]

    async def placed() -> list[str]:
        return brought(tmp_path, png((1, 2, 3))) + brought(tmp_path, png((3, 3, 3)))

    annas, secret = await until(placed)
    ben.is_watched = False
    (output,) = anna.images(await anna.entry(await anna.prompt(slow(5, save=True, prefix="anna"))))
    for name in (
        "secret.png",
        "./secret.png",
        "x/../secret.png",
        "secret.pngX[input]",
        "SECRET.PNG",
        annas,
        secret,
        f"{output['filename']} [output]",
        f"../output/{output['filename']}",
        "secret.png [output]",
    ):
        status, answer = await ben.post("/prompt", {"prompt": load(name)})
        assert status == 400, name
        error = answer["node_errors"]["1"]["errors"][0]
        assert error["type"] == "custom_validation_failed"
        assert error["details"] == f"image - Invalid image file: {name}"
    for query in ({"filename": "secret.png", "type": "input"}, output):
        async with lab.http.get(f"{gateway.url}/view", params=query, headers=ben.headers) as answer:
            assert answer.status == 404
    reference = '{"filename": "secret.png", "type": "input", "subfolder": ""}'
    assert (await upload(ben, png((0, 0, 0)), "m.png", "mask", original_ref=reference))[0] == 200
    async with lab.http.get(f"{gateway.url}/view?filename=m.png&type=input", headers=ben.headers) as answer:
        assert answer.status == 404


async def test_callers_without_a_key_are_a_tenant_of_their_own(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator(), tenants__anonymous__networks="127.0.0.0/8")
    anna, guest = Comfy(lab.http, gateway.url, X_API_Key=ANNA), Comfy(lab.http, gateway.url)
    await upload(anna, png((1, 2, 3)), "pic.png")
    assert (await guest.post("/prompt", {"prompt": load("pic.png")}))[0] == 400
    await upload(guest, png((7, 8, 9)), "pic.png")
    assert await result(guest, load("pic.png")) == (7, 8, 9)
    assert await anna.get("/history") == {}
    async with lab.http.get(f"{gateway.url}/queue", headers={"X-API-Key": "wrong-key-123"}) as answer:
        assert answer.status == 401
    async with lab.http.post(f"{gateway.url}/free", json={}) as answer:
        assert answer.status == 403


async def test_a_large_file_takes_no_memory(lab: Lab) -> None:
    """400 MB through the gateway, to two backends."""
    size, chunk = 400 * 2**20, os.urandom(2**20)
    simulators = await lab.simulators(2, "--max-upload-size", "1000")
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    process = psutil.Process(gateway.pid)
    before = process.memory_info().rss
    maximum = 0

    async def content() -> Any:
        nonlocal maximum
        for _ in range(size // 2**20):
            yield chunk
            maximum = max(maximum, process.memory_info().rss)

    status, answer = await upload(comfy, content(), "film.mp4")
    assert (status, answer["name"]) == (200, "film.mp4")

    async def spread() -> bool:
        nonlocal maximum
        maximum = max(maximum, process.memory_info().rss)
        return all([await folder(lab, simulator) == {"film.mp4"} for simulator in simulators])

    await until(spread, 60)
    async with lab.http.head(f"{gateway.url}/view?filename=film.mp4&type=input") as head:
        assert int(head.headers["Content-Length"]) == size
    assert maximum - before < 60 * 2**20


async def test_limits_of_uploads(lab: Lab) -> None:
    """One too large gets 413; past the quota the least recently used goes, and its name with it."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, uploads__max_size=5000, uploads__quota=6000)
    comfy = Comfy(lab.http, gateway.url)
    status, answer = await upload(comfy, os.urandom(6000), "large.png")
    assert (status, answer["error"]["type"]) == (413, "upload_too_large")
    for name in ("a.png", "b.png", "c.png"):
        assert (await upload(comfy, os.urandom(2000), name))[0] == 200

    async def listed() -> list[str]:
        names: list[str] = (await comfy.get("/object_info/LoadImage"))["LoadImage"]["input"]["required"]["image"][0]
        return names

    assert await listed() == ["a.png", "b.png", "c.png"]
    async with lab.http.get(f"{gateway.url}/view?filename=a.png&type=input") as found:
        assert found.status == 200
    assert (await upload(comfy, os.urandom(3000), "d.png"))[0] == 200
    assert await listed() == ["a.png", "d.png"]
    blobs = files_below(lab.directory / "data" / "uploads")
    assert sorted(p.stat().st_size for p in blobs) == [2000, 3000]


async def test_a_backend_that_takes_small_files_only_is_nobody_elses_problem(lab: Lab) -> None:
    """Larger ones are taken, and the prompts that name them go to the others."""
    small, other = await lab.simulator("--max-upload-size", "0.001"), await lab.simulator()
    gateway = await lab.gateway(small, other)
    comfy = Comfy(lab.http, gateway.url)
    assert (await comfy.get("/features"))["max_upload_size"] == 100 * 2**20
    noise = Image.effect_noise((64, 64), 100).convert("RGB")
    noise.save(buffer := io.BytesIO(), "PNG")
    assert len(buffer.getvalue()) > 2_000
    assert (await upload(comfy, buffer.getvalue(), "large.png"))[0] == 200
    for n in range(4):
        entry = await comfy.entry(await comfy.prompt(load("large.png", f"large{n}")))
        assert entry["status"]["status_str"] == "success"
    assert (await small.requests(lab.http)).get("POST /prompt", 0) == 0


async def test_an_upload_that_an_open_job_needs_stays(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, uploads__quota=3000, uploads__keep=0.2, uploads__aside=0.2)
    comfy = Comfy(lab.http, gateway.url)
    data = png((6, 6, 6))
    await upload(comfy, data, "needed.png")
    await simulator.fault(lab.http, "refuse:3")
    await lab.backends_up(gateway, 0)
    prompt_id = await comfy.prompt(load("needed.png"))
    status, answer = await upload(comfy, os.urandom(2990), "other.png")
    assert (status, answer["error"]["type"]) == (507, "uploads_full")
    (image,) = comfy.images(await comfy.entry(prompt_id))
    assert colour(await comfy.view(image)) == (6, 6, 6)

    async def gone() -> bool:
        async with lab.http.get(f"{gateway.url}/view?filename=needed.png&type=input&channel=none") as answer:
            return answer.status == 404

    blobs = lab.directory / "data" / "uploads"

    async def empty() -> bool:
        return not files_below(blobs)

    await until(empty)
