"""Dates that aiohttp fails over: in a conditional request they are no condition (RFC 9110, section 13.1)."""

from __future__ import annotations

from urllib.parse import urlencode

from tests.support.lab import Lab
from tests.support.pictures import png
from tests.support.security_world import caller
from tests.support.stored import storage, until_stored
from tests.support.v2 import start_v2
from tests.support.workflows import slow

# Python reads the year, and makes no date of it.
FAR = "Sat, 01 Jan 99999999999 00:00:00 GMT"


async def test_a_year_of_many_digits_fails_nothing(lab: Lab) -> None:
    """Files of the gateway's disk, of object storage and of a backend, and pages of the primary backend."""
    world = await start_v2(lab, **storage(lab, links="signed", when="before"))
    job = await world.anna.run(slow(steps=1))
    await until_stored(world.gateway, 1)
    comfy = caller(lab, world.gateway, "anna")
    (stored,) = comfy.images(await comfy.entry(job["id"]))
    (shown,) = comfy.images(await comfy.entry(await comfy.prompt(slow(steps=1, seed=2, save=False))))
    await world.anna.upload(png((1, 2, 3)))
    status, _ = await comfy.post("/userdata/notes.json", {})
    assert status == 200
    upload = {"filename": "in.png", "type": "input"}
    paths = ["/", "/userdata/notes.json", *(f"/view?{urlencode(each)}" for each in (stored, shown, upload))]
    links = [job["outputs"][0]["url"], *(f"{world.gateway.url}{path}" for path in paths)]
    for link in links:
        async with lab.http.get(link, headers=comfy.headers) as answer:
            assert answer.status == 200
            whole = await answer.read()
        for name in ("If-Modified-Since", "If-Unmodified-Since", "if-range"):
            # If-Range without a date that fits stands for the whole file.
            more = {"Range": "bytes=0-0"} if name == "if-range" else {}
            async with lab.http.get(link, headers={**comfy.headers, **more, name: FAR}) as answer:
                assert (answer.status, await answer.read()) == (200, whole), (link, name)
    assert not [line for line in world.gateway.log_lines() if line["level"] in ("error", "warning")]
