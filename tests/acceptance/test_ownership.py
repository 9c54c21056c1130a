"""Everything about a prompt stays with its owner, and names never mix."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from gateway.simulator.nodes import seed_colour
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.pictures import colour
from tests.support.workflows import slow


async def test_colliding_names_under_two_backends(lab: Lab) -> None:
    """Both backends write ComfyUI_00001_.png: two names, each with its own picture, the same ones everywhere."""
    gateway = await lab.gateway(*await lab.simulators(2))
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    ids = {seed: await comfy.prompt(slow(seed, steps=2), "c") for seed in (0x112233, 0x445566)}
    for prompt_id in ids.values():
        await listener.end_of(prompt_id)
    told = {e["data"]["prompt_id"]: e["data"]["output"]["images"] for e in listener.heard if e["type"] == "executed"}
    names = set()
    for seed, prompt_id in ids.items():
        entry = await comfy.entry(prompt_id)
        (image,) = comfy.images(entry)
        names.add(image["filename"])
        assert told[prompt_id] == [image]
        assert (await comfy.get(f"/api/jobs/{prompt_id}"))["preview_output"]["filename"] == image["filename"]
        assert colour(await comfy.view(image)) == seed_colour(seed)
    assert names in ({"ComfyUI_00001_.png", "ComfyUI_00001_~b2.png"}, {"ComfyUI_00001_.png", "ComfyUI_00001_~b1.png"})


async def test_a_collided_name_as_input_of_a_later_workflow(lab: Lab) -> None:
    """``name~b2.png [output]`` in a prompt means that file: the prompt goes where it is, under its name there."""
    gateway = await lab.gateway(*await lab.simulators(2))
    comfy = Comfy(lab.http, gateway.url)
    ids = {seed: await comfy.prompt(slow(seed)) for seed in (0x102030, 0x405060)}
    for seed, prompt_id in ids.items():
        (image,) = comfy.images(await comfy.entry(prompt_id))
        prompt: dict[str, Any] = {
            "1": {"class_type": "LoadImage", "inputs": {"image": f"{image['filename']} [output]"}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "again"}},
        }
        entry = await comfy.entry(await comfy.prompt(prompt))
        assert entry["status"]["status_str"] == "success"
        assert entry["prompt"][2] == prompt
        (copy,) = comfy.images(entry)
        assert colour(await comfy.view(copy)) == seed_colour(seed)


async def test_an_upload_is_found_by_the_prompt_that_names_it(lab: Lab) -> None:
    import aiohttp

    gateway = await lab.gateway(*await lab.simulators(3))
    comfy = Comfy(lab.http, gateway.url)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 8, 7)).save(buffer, "PNG")
    form = aiohttp.FormData()
    form.add_field("image", buffer.getvalue(), filename="mine.png", content_type="image/png")
    async with lab.http.post(f"{gateway.url}/upload/image", data=form) as answer:
        assert await answer.json() == {"name": "mine.png", "subfolder": "", "type": "input"}
    for n in range(4):
        prompt = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "mine.png"}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": f"u{n}"}},
        }
        (image,) = comfy.images(await comfy.entry(await comfy.prompt(prompt)))
        assert colour(await comfy.view(image)) == (9, 8, 7)


async def test_view_passes_range_and_conditions(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(2))
    comfy = Comfy(lab.http, gateway.url)
    (image,) = comfy.images(await comfy.entry(await comfy.prompt(slow())))
    whole = await comfy.view(image)
    url = f"{gateway.url}/view"
    async with lab.http.get(url, params=image, headers={"Range": "bytes=5-9"}) as answer:
        assert answer.status == 206
        assert await answer.read() == whole[5:10]
        etag = answer.headers["ETag"]
    async with lab.http.get(url, params=image, headers={"If-None-Match": etag}) as answer:
        assert answer.status == 304
    async with lab.http.head(url, params=image) as answer:
        assert answer.status == 200
        assert int(answer.headers["Content-Length"]) == len(whole)
    async with lab.http.get(url, params={**image, "preview": "jpeg;50"}) as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"


async def test_view_of_a_file_whose_owner_is_down(lab: Lab) -> None:
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    images = [comfy.images(await comfy.entry(await comfy.prompt(slow(n))))[0] for n in range(2)]
    await simulators[0].kill()
    await lab.backends_up(gateway, 1)
    statuses = []
    for image in images:
        async with lab.http.get(f"{gateway.url}/view", params=image) as answer:
            statuses.append(answer.status)
            if answer.status == 503:
                assert int(answer.headers["Retry-After"]) > 0
                assert (await answer.json())["error"]["extra_info"]["state"] == "gone"
    assert sorted(statuses) == [200, 503]


async def test_cancel_is_precise(lab: Lab) -> None:
    """Delete takes what has not started, interrupt what runs, cancel either; the others go on."""
    gateway = await lab.gateway(*await lab.simulators(2), dispatch__max_queue=2)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c", "&events=interleave")
    ids = [await comfy.prompt(slow(n, steps=300, step_seconds=0.02)) for n in range(8)]

    async def two_run() -> list[str]:
        running = [item[1] for item in (await comfy.get("/queue"))["queue_running"]]
        return running if len(running) == 2 else []

    running = await until(two_run)
    pending = [prompt_id for prompt_id in ids if prompt_id not in running]
    assert (await comfy.post("/queue", {"delete": [running[0], pending[0], pending[5], "unknown"]}))[0] == 200
    left = await comfy.get("/queue")
    assert {item[1] for item in left["queue_running"]} == set(running)
    assert [item[1] for item in left["queue_pending"]] == pending[1:5]
    assert (await comfy.post(f"/api/jobs/{pending[1]}/cancel"))[1] == {"cancelled": True}
    assert (await comfy.post(f"/api/jobs/{pending[1]}/cancel"))[1] == {"cancelled": False}
    assert (await comfy.post("/interrupt", {"prompt_id": running[0]}))[0] == 200
    entry = await comfy.entry(running[0])
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert (await comfy.post("/queue", {"clear": True}))[0] == 200
    rest = await comfy.get("/queue")
    assert rest["queue_pending"] == []
    for item in rest["queue_running"]:
        assert (await comfy.post("/interrupt"))[0] == 200
        await comfy.entry(item[1])

    async def empty() -> bool:
        return bool((await comfy.get("/prompt"))["exec_info"]["queue_remaining"] == 0)

    await until(empty)
    await listener.socket.close()


async def test_history_pages_and_deletion(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(2))
    comfy = Comfy(lab.http, gateway.url)
    ids = []
    for n in range(5):
        ids.append(await comfy.prompt(slow(n, steps=1)))
        await comfy.entry(ids[-1])
    assert list(await comfy.get("/history")) == ids
    assert list(await comfy.get("/history", max_items="2")) == ids[-2:]
    assert list(await comfy.get("/history", max_items="2", offset="1")) == ids[1:3]
    async with lab.http.get(f"{gateway.url}/history?max_items=x") as answer:
        assert answer.status == 400
    assert (await comfy.post("/history", {"delete": [ids[0], "unknown"]}))[0] == 200
    assert list(await comfy.get("/history")) == ids[1:]
    assert await comfy.get(f"/history/{ids[0]}") == {}
    assert (await comfy.post("/history", {"clear": True}))[0] == 200
    assert await comfy.get("/history") == {}
