"""A tenant that is isolated gets nothing of another's, whatever it asks for and however it spells it."""

from __future__ import annotations

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.pictures import colour, png
from tests.support.uploads import ANNA, BEN, load, result, upload, with_keys
from tests.support.workflows import slow


async def test_jobs_under_api_twice(lab: Lab) -> None:
    """ComfyUI serves /api/jobs under /api/api/jobs, too (server.py, add_routes)."""
    gateway = await with_keys(lab, await lab.simulator())
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
    prompt_id = await anna.prompt(slow())
    await anna.entry(prompt_id)
    assert (await anna.get("/api/api/jobs"))["jobs"][0]["id"] == prompt_id
    assert (await ben.get("/api/api/jobs"))["jobs"] == []
    async with lab.http.get(f"{gateway.url}/api/api/jobs/{prompt_id}", headers=ben.headers) as answer:
        assert answer.status == 404
    running = await anna.prompt(slow(steps=1000))
    await anna.running(running)
    assert await ben.post(f"/api/api/jobs/{running}/cancel") == (200, {"cancelled": False})
    assert await ben.post("/api/api/jobs/cancel", {"job_ids": [running]}) == (200, {"cancelled": False})
    assert await anna.post(f"/api/api/jobs/{running}/cancel") == (200, {"cancelled": True})


async def test_no_way_of_writing_a_file_names_anothers(lab: Lab) -> None:
    """As ComfyUI unwraps an input, in a widget's own object, and longer than any name that is typed."""
    simulator = await lab.simulator()
    gateway = await with_keys(lab, simulator)
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
    await upload(anna, png((1, 2, 3)), "secret.png")
    await upload(ben, png((7, 8, 9)), "own.png")
    (output,) = anna.images(await anna.entry(await anna.prompt(slow(5, prefix="anna"))))
    for name in ("secret.png", f"{output['filename']} [output]", "./" * 600 + "secret.png"):
        for value in (name, {"__value__": name}, {"__value__": [name]}, {"image": {"image": name}}):
            status, answer = await ben.post("/prompt", {"prompt": load(value)})
            assert status == 400, value
            error = answer["node_errors"]["1"]["errors"][0]
            assert error["details"] == f"image - Invalid image file: {name}"
    assert await result(ben, load({"__value__": "own.png"})) == (7, 8, 9)


async def test_a_wrapped_name_is_rewritten_where_it_means_other_bytes(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator())
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
    for comfy, wanted in ((anna, (1, 2, 3)), (ben, (7, 8, 9))):
        await upload(comfy, png(wanted), "pic.png")
        assert await result(comfy, load({"__value__": "pic.png"})) == wanted


async def test_a_name_that_a_backend_gives_again_is_not_the_first_ones(lab: Lab) -> None:
    """A backend that comes back empty counts its files from 1 again: the same name, another tenant's picture."""
    simulator = await lab.simulator("--cache-ram")
    gateway = await with_keys(lab, simulator)
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
    (image,) = anna.images(await anna.entry(await anna.prompt(slow(0x010203))))
    # Of the same prompt ComfyUI has the result in its cache: that picture is both tenants'.
    (same,) = ben.images(await ben.entry(await ben.prompt(slow(0x010203))))
    assert same == image
    for comfy in (anna, ben):
        assert colour(await comfy.view(image)) == (1, 2, 3)
    await simulator.kill()
    await lab.backends_up(gateway, 0)
    await lab.simulator(port=simulator.port)
    await lab.backends_up(gateway, 1)
    (other,) = ben.images(await ben.entry(await ben.prompt(slow(0x070809))))
    assert other != image, "the ledger counts on"
    for _ in range(2):
        assert colour(await ben.view(other)) == (7, 8, 9)
        async with lab.http.get(f"{gateway.url}/view", params=image, headers=anna.headers) as answer:
            assert answer.status == 404
        name = f"{image['filename']} [output]"
        assert (await anna.post("/prompt", {"prompt": load(name)}))[0] == 400
        await gateway.stop()
        gateway = await with_keys(lab, f"http://127.0.0.1:{simulator.port}")
        anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
