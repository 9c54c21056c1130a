"""The Comfy API v2 with object storage: sizes, hashes, links and bytes come from the store, also without a backend."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio

from tests.support.lab import Lab, Simulator, until
from tests.support.pictures import colour, png
from tests.support.security_world import KEYS, start
from tests.support.stored import break_bucket, mend_bucket, objects, storage, until_rows
from tests.support.uploads import load
from tests.support.v2 import V2Caller, V2World, hash_of, reference
from tests.support.workflows import slow

pytestmark = pytest.mark.asyncio(loop_scope="module")
RED, GREEN = png((200, 10, 10)), png((10, 200, 10))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def simulators(shared_lab: Lab) -> list[Simulator]:
    """Two backends."""
    return await shared_lab.simulators(2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(shared_lab: Lab, simulators: list[Simulator]) -> V2World:
    """A gateway that stores outputs and uploads, signs links to them, and has room for one upload."""
    stored = storage(shared_lab, when="before", links="signed", kinds="output,uploads")
    room = {"uploads__quota": f"{len(RED) + 10}B", "uploads__aside": "1h"}
    gateway = await start(shared_lab, *simulators, **stored, **room)
    anna, ben = (V2Caller(shared_lab, gateway, KEYS[name]) for name in ("anna", "ben"))
    return V2World(shared_lab, simulators, gateway, anna, ben)


async def fetched(world: V2World, url: str) -> tuple[int, bytes]:
    """Follow a link, without a key."""
    async with world.lab.http.get(url) as answer:
        return answer.status, await answer.read()


async def seconds_left(shown: Any) -> float:
    """Seconds until a link ends."""
    return (datetime.fromisoformat(shown["url_expires_at"]) - datetime.now().astimezone()).total_seconds()


async def test_an_upload_that_the_store_alone_has_is_an_asset_still(world: V2World) -> None:
    anna, ben = world.anna, world.ben
    first = (await anna.upload(RED, "red.png")).body
    job = await anna.run(load(reference(first["id"])))
    assert job["status"] == "succeeded", job
    # It takes the room of the first.
    second = (await anna.upload(GREEN, "green.png")).body
    assert (await anna.content(first)).raw == RED
    part = await anna.content(first, Range="bytes=1-3")
    assert (part.status, part.raw) == (206, RED[1:4])
    assert (await anna.content(first, Range=f"bytes={len(RED)}-")).status == 416
    head = await anna("HEAD", first["url"])
    assert (head.status, head.headers["Content-Length"], head.raw) == (200, str(len(RED)), b"")
    assert (await ben("GET", f"/assets/{first['id']}/content")).status == 404
    assert (await anna("HEAD", f"/assets/by-hash/{first['hash']}")).status == 200
    minted = await anna("POST", "/assets/from-hash", json={"hash": first["hash"], "file_path": "again.png"})
    assert (minted.status, minted.body["hash"]) == (201, first["hash"])
    assert (await anna.content(minted.body)).raw == RED
    again = await anna.run(load(reference(minted.body["id"]), prefix="again"))
    assert colour((await anna.content(again["outputs"][0])).raw) == (200, 10, 10)
    break_bucket(world.lab)
    away = await anna.content(first)
    assert (away.status, away.body["error"]["code"]) == (503, "upstream_unreachable")
    assert away.headers["Retry-After"] == "5"
    mend_bucket(world.lab)
    for asset in (first, minted.body):
        assert (await anna.content(asset)).raw == RED
        assert (await anna("DELETE", f"/assets/{asset['id']}")).status == 204
    assert (await anna("HEAD", f"/assets/by-hash/{first['hash']}")).status == 404

    async def is_deleted() -> bool:
        return RED not in objects(world.lab).values()

    await until(is_deleted)
    assert (await anna("DELETE", f"/assets/{second['id']}")).status == 204


async def test_outputs_outlive_their_backend(world: V2World, simulators: list[Simulator]) -> None:
    anna, ben = world.anna, world.ben
    answer = await anna("POST", "/jobs", json={"workflow": slow(7, steps=2)}, headers={"Prefer": "wait=20"})
    job = answer.body
    assert (answer.status, job["status"]) == (200, "succeeded")
    (output,) = job["outputs"]
    data = (await anna("GET", f"/assets/{output['id']}/content")).raw
    assert (output["size_bytes"], output["hash"]) == (len(data), hash_of(data))
    # The link is signed, and leads in whoever has it.
    assert output["url"].startswith(f"{world.gateway.url}/gateway/stored/")
    assert 3_500 < await seconds_left(output) <= 3_601
    assert await fetched(world, output["url"]) == (200, data)
    assert (await fetched(world, f"{world.gateway.url}/api/v2/assets/{output['id']}/content"))[0] == 401
    asset = (await anna("GET", f"/assets/{output['id']}")).body
    assert [asset[name] for name in ("hash", "size_bytes", "url")] == [output[n] for n in ("hash", "size_bytes", "url")]
    (told,) = [each for name, each in await events(anna, job) if name == "output"]
    assert told == output
    # Below the prefix of a proxy. A list has links for the key's holder alone.
    (listed,) = (await anna("GET", "/jobs?limit=1")).body["jobs"]
    (shown,) = listed["outputs"]
    assert (shown["hash"], shown["url"]) == (
        output["hash"],
        f"{world.gateway.url}/api/v2/assets/{output['id']}/content",
    )
    sent = await anna("GET", f"/assets/{output['id']}/content?redirect=1", allow_redirects=False)
    assert sent.status == 302
    assert await fetched(world, world.gateway.url + sent.headers["Location"]) == (200, data)
    ran_on = await backend_of(world, job["id"])
    await simulators[ran_on].kill()
    await world.lab.backends_up(world.gateway, 1)
    assert (await anna.job(job["id"]))["outputs"][0]["hash"] == output["hash"]
    path = f"/assets/{output['id']}/content"
    assert (await anna("GET", path)).raw == data
    part = await anna("GET", path, headers={"Range": "bytes=2-5"})
    assert (part.status, part.raw) == (206, data[2:6])
    assert (await anna("GET", path, headers={"Range": "bytes=1000000-"})).status == 416
    for given in ({"If-Match": '"other"'}, {"If-Unmodified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"}):
        assert (await anna("GET", path, headers=given)).raw == data, given
    for stranger in (path, path.removesuffix("/content")):
        assert (await ben("GET", stranger)).status == 404
    # The backend that is left reads it.
    again = await anna.run(load(reference(output["id"])))
    assert again["status"] == "succeeded", again
    assert colour((await anna.content(again["outputs"][0])).raw) == colour(data)
    break_bucket(world.lab)
    away = await anna("GET", path)
    assert (away.status, away.body["error"]["code"]) == (503, "upstream_unreachable")
    mend_bucket(world.lab)
    async with world.lab.http.delete(
        f"{world.gateway.url}/gateway/api/v1/me/jobs/{job['id']}", headers=anna.headers
    ) as answered:
        assert answered.status == 200
    assert (await anna("GET", path)).status == 404
    assert (await fetched(world, output["url"]))[0] == 404


async def events(caller: V2Caller, job: Any) -> list[tuple[str, Any]]:
    """All events of a job from now on."""
    async with caller.stream(job) as stream:
        return await stream.rest()


async def backend_of(world: V2World, job_id: str) -> int:
    """The place of the backend that ran a job."""
    headers = {"Authorization": f"Bearer {KEYS['boss']}"}
    async with world.lab.http.get(f"{world.gateway.url}/api/jobs/{job_id}", headers=headers) as answer:
        return int((await answer.json())["gateway_backend"].removeprefix("b")) - 1


async def test_what_the_store_alone_has_is_unavailable_while_storage_is_off(world: V2World) -> None:
    """The last test of the module, because it starts the gateway again, without storage."""
    anna, blue = world.anna, png((10, 10, 200))
    first = (await anna.upload(blue, "blue.png")).body
    job = await anna.run(load(reference(first["id"])))
    # The store was away in the test before.
    await until_rows(world.gateway, lambda rows: {each.state for each in rows} == {"stored"})
    await anna.upload(png((10, 200, 200)), "other.png")
    assert (await anna.content(first)).raw == blue
    await world.gateway.stop()
    del world.gateway.environment["COMFYUI_GATEWAY_STORAGE__URL"]
    await world.gateway.start()
    off = await anna("GET", f"/assets/{first['id']}/content")
    assert (off.status, off.body["error"]["code"]) == (503, "upstream_unreachable")
    assert (await anna("GET", f"/assets/{first['id']}")).body["hash"] == first["hash"]
    # An output comes from its backend.
    await world.lab.backends_up(world.gateway, 1)
    assert (await anna("GET", f"/assets/{job['outputs'][0]['id']}/content")).raw[:4] == b"\x89PNG"
