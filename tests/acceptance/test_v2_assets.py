"""Assets of the Comfy API v2: uploads, ranges, references, expiry. No answer tells of another tenant's assets."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.lab import Lab, until
from tests.support.media import HLS
from tests.support.pictures import colour, png
from tests.support.security_world import KEYS, caller
from tests.support.uploads import load
from tests.support.uploads import upload as native_upload
from tests.support.v2 import V2Caller, V2World, hash_of, reference, start_v2
from tests.support.workflows import slow

pytestmark = pytest.mark.asyncio(loop_scope="module")
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="file_path"\r\n\r\nx.png\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.png"\r\n\r\nDATA\r\n--x--\r\n'
)
RED, GREEN, BLUE = (200, 10, 10), (10, 200, 10), (10, 10, 200)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(shared_lab: Lab) -> V2World:
    """One gateway over two backends for all tests."""
    return await start_v2(shared_lab, 2)


async def test_known_and_new_depend_on_ones_own_assets_alone(world: V2World) -> None:
    data = png(RED)
    made = []
    for who in (world.anna, world.ben):
        known = await who("HEAD", f"/assets/by-hash/{hash_of(data)}")
        assert known.status == 404
        unknown = await who("POST", "/assets/from-hash", json={"hash": hash_of(data), "file_path": "a.png"})
        assert (unknown.status, unknown.body["error"]["code"]) == (404, "blob_not_found")
        first = await who.upload(data, "photo.png", content_type="image/png", expected_hash=hash_of(data).upper())
        assert (first.status, first.body["created_new"]) == (201, True)
        assert (first.body["hash"], first.body["size_bytes"]) == (hash_of(data), len(data))
        assert (first.body["content_type"], first.body["file_path"]) == ("image/png", "photo.png")
        again = await who.upload(data, "photo.png")
        assert (again.status, again.body["created_new"], again.body["id"]) == (200, False, first.body["id"])
        other = await who.upload(data, "other.png")
        assert (other.status, other.body["created_new"]) == (200, False)
        assert (other.body["id"] != first.body["id"], other.body["file_path"]) == (True, "other.png")
        for hash_ in (hash_of(data), hash_of(data).replace(":", "%3A")):
            assert (await who("HEAD", f"/assets/by-hash/{hash_}")).status == 200
        minted = await who("POST", "/assets/from-hash", json={"hash": hash_of(data), "file_path": "photo.png"})
        assert (minted.status, minted.body["id"]) == (200, first.body["id"])
        minted = await who("POST", "/assets/from-hash", json={"hash": hash_of(data), "file_path": "sub.png"})
        assert (minted.status, minted.body["created_new"]) == (201, False)
        made.append(first.body)
    for path in ("", "/content"):
        assert (await world.anna("GET", f"/assets/{made[1]['id']}{path}")).status == 404
    assert (await world.anna("DELETE", f"/assets/{made[1]['id']}")).status == 404
    assert (await world.ben.content(made[1])).raw == data


async def test_the_same_asset_sent_twice_at_a_time_is_one(world: V2World) -> None:
    data = png((99, 98, 97))
    answers = await asyncio.gather(*(world.ben.upload(data, "twice.png") for _ in range(4)))
    assert len({answer.body["id"] for answer in answers}) == 1
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 201]


async def test_bytes_whole_and_in_ranges(world: V2World) -> None:
    data = bytes(range(256)) * 4
    asset = (await world.anna.upload(data, "data.bin", content_type="application/x-test")).body
    whole = await world.anna.content(asset)
    assert (whole.status, whole.raw) == (200, data)
    assert (whole.headers["Content-Type"], whole.headers["Accept-Ranges"]) == ("application/x-test", "bytes")
    head = await world.anna("HEAD", asset["url"])
    assert (head.status, head.headers["Content-Length"], head.raw) == (200, "1024", b"")
    for given, start, end in (("0-9", 0, 10), ("10-", 10, 1024), ("-5", 1019, 1024), ("1023-2000", 1023, 1024)):
        part = await world.anna.content(asset, Range=f"bytes={given}")
        assert (part.status, part.raw) == (206, data[start:end]), given
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/1024"
    for given in ("bytes=1024-", "bytes=5-2", "bytes=-0"):
        refused = await world.anna.content(asset, Range=given)
        assert (refused.status, refused.headers["Content-Range"]) == (416, "bytes */1024"), given
    for given in ("bytes=0-1,4-5", "lines=0-1", "bytes=x"):
        assert (await world.anna.content(asset, Range=given)).raw == data, given


async def test_an_outputs_bytes_in_ranges(world: V2World) -> None:
    (output,) = (await world.anna.run(slow(31, steps=1)))["outputs"]
    whole = (await world.anna.content(output)).raw
    assert (await world.anna.content(output, Range="bytes=0-9")).raw == whole[:10]
    assert (await world.anna.content(output, Range="bytes=1000000-")).status == 416
    for given in ("bytes=0-1,4-5", "lines=0-1"):
        assert (await world.anna.content(output, Range=given)).raw == whole, given
    assert (await world.anna("DELETE", f"/assets/{output['id']}")).status == 404
    for id_ in ("nope", output["id"][:-4] + "0000", "out_", "eyJqIjoieCIsImYiOiJ4In0.AAAA"):
        assert (await world.anna("GET", f"/assets/{id_}/content")).status == 404


async def test_an_admin_has_the_bytes_of_the_job_that_was_asked_for(world: V2World) -> None:
    boss = V2Caller(world.lab, world.gateway, KEYS["boss"])
    jobs = {who: await who.run(slow(seed, steps=1, prefix="same")) for who, seed in ((world.anna, 255), (boss, 65280))}
    for owner, job in jobs.items():
        (output,) = job["outputs"]
        own, seen = await owner.content(output), await boss.content(output)
        assert (seen.status, seen.raw) == (200, own.raw)
        part = await boss.content(output, Range="bytes=0-99", **{"If-Match": '"x"'})
        assert (part.status, part.raw) == (206, own.raw[:100])


async def test_refused_uploads(world: V2World) -> None:
    data = png(GREEN)
    for path in (None, "../x.png", "/etc/x.png", "input/../x.png", "nodir/x.png", "checkpoints/x.safetensors",
                 "C:\\x.png", "a\nb.png", "input/", "x" * 300, "input/a.png [output]"):  # fmt: skip
        answer = await world.anna.upload(data, path)
        assert (answer.status, answer.body["error"]["code"]) == (422, "invalid_request"), path
    wrong = await world.anna.upload(data, "x.png", expected_hash="blake3:" + "0" * 64)
    assert (wrong.status, wrong.body["error"]["code"]) == (409, "hash_mismatch")
    assert (await world.anna("HEAD", f"/assets/by-hash/{hash_of(data)}")).status == 404
    assert (await world.anna.upload(data, "x.png", expires_in="59")).status == 422
    form = aiohttp.FormData()
    form.add_field("file_path", "x.png", content_type="text/plain")
    for more in ({"json": {"x": 1}}, {"data": form}, {"data": b"", "headers": {"Content-Type": "multipart/form-data"}}):
        answer = await world.anna("POST", "/assets", **more)
        assert (answer.status, answer.body["error"]["code"]) == (422, "invalid_request"), answer.body
    # It was read line by line: 10 MB took the gateway 10 s.
    more = {"headers": {"Content-Type": "multipart/form-data; boundary=x"}, "data": b"\n" * 2**13 + FORM}
    answer = await world.anna("POST", "/assets", **more)
    assert (answer.status, answer.body["error"]["code"]) == (422, "invalid_request"), answer.body
    # A part that nobody keeps.
    unused = b'--x\r\nContent-Disposition: form-data; name="y"\r\n\r\n' + bytes(2**20 + 1) + b"\r\n--x--\r\n"
    answer = await world.anna("POST", "/assets", **more | {"data": io.BytesIO(unused)})
    assert (answer.status, answer.body["error"]["code"]) == (413, "payload_too_large"), answer.body
    for body, status in (({"file_path": "x"}, 422), ({"hash": "nonsense"}, 404), ({"hash": 5}, 422), ([], 400)):
        assert (await world.anna("POST", "/assets/from-hash", json=body)).status == status
    # A playlist may open another tenant's files.
    names_others = await world.anna.upload(HLS, "list.m3u8")
    assert (names_others.status, names_others.body["error"]["code"]) == (422, "invalid_request")
    # FFmpeg opens the .sub beside any file of such a name. The bytes may come under another name first.
    harmless = (await world.anna.upload(b"anything", "list.bin")).body
    for minted in (
        await world.anna.upload(b"anything", "list.idx"),
        await world.anna("POST", "/assets/from-hash", json={"hash": harmless["hash"], "file_path": "list.idx"}),
    ):
        assert (minted.status, minted.body["error"]["code"]) == (422, "invalid_request"), minted.body
    deep = await world.anna.upload(data, "input/sub/deep.png")
    assert (deep.status, deep.body["file_path"]) == (201, "input/sub/deep.png")


async def test_parts_that_nobody_wants_have_a_bound(world: V2World) -> None:
    """A body in chunks tells no length, so an unknown part went on for ever."""

    async def endless() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\n'
        for _ in range(17):
            yield bytes(2**16)
        yield b"\r\n" + FORM

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = await world.anna("POST", "/assets", headers=headers, data=endless())
    assert (answer.status, answer.body["error"]["code"]) == (413, "payload_too_large"), answer.body


async def test_codings_of_parts(world: V2World) -> None:
    """A coding for the transfer is removed, however the bytes come; a packed file stays packed, and counts so."""
    data, packed = bytes([255]) * 200_000, gzip.compress(bytes(2**20))
    for coding, sent, expected in (
        (b"Content-Transfer-Encoding: quoted-printable", b"=FF" * len(data), data),
        (b"Content-Transfer-Encoding: base64", base64.encodebytes(data), data),
        (b"Content-Encoding: gzip", packed, packed),
    ):
        body = FORM.replace(b"\r\n\r\nDATA", b"\r\n%b\r\n\r\n%b" % (coding, sent))
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = await world.anna("POST", "/assets", headers=headers, data=body)
        assert answer.body["hash"] == hash_of(expected), (coding, answer.body)
        assert answer.body["size_bytes"] == len(expected)


async def test_a_page_in_an_asset_does_not_run(world: V2World) -> None:
    asset = (await world.anna.upload(b"<script>1</script>", "a.html", content_type="text/html")).body
    shown = await world.anna.content(asset)
    assert shown.headers["Content-Type"] == "application/octet-stream"
    assert "sandbox" in shown.headers["Content-Security-Policy"]


async def test_references_become_names(world: V2World) -> None:
    data = png(BLUE)
    asset = (await world.anna.upload(data, "ref.png")).body
    job = await world.anna.run(load(reference(asset["id"], hash=asset["hash"], file_path="other.png")))
    assert job["status"] == "succeeded", job
    assert colour((await world.anna.content(job["outputs"][0])).raw) == BLUE
    graph = (await world.anna("GET", f"/jobs/{job['id']}/workflow")).body["workflow"]
    assert graph["1"]["inputs"]["image"] == "ref.png"
    unknown = "11111111-2222-4333-8444-555555555555"
    for given in (reference(None, hash=asset["hash"]), reference(unknown, hash=asset["hash"])):
        await world.anna.submit(load(given))
    body = json.dumps({"workflow": load(reference(asset["id"]))}).replace("core/ASSET", "core\\/ASSET")
    assert (await world.anna("POST", "/jobs", data=body)).status == 201
    for given, missing in (
        (reference(unknown), unknown),
        ({"__type": "core/ASSET"}, "<malformed core/ASSET: missing info>"),
        (reference(None), "<no id>"),
    ):
        answer = await world.anna("POST", "/jobs", json={"workflow": load(given)})
        assert (answer.status, answer.body["error"]["code"]) == (422, "missing_asset")
        assert answer.body["error"]["details"] == {"missing_ids": [missing]}
    # A long graph is kept as it was written.
    long = {**load(reference(unknown)), "9": {"class_type": "PrimitiveString", "inputs": {"value": "x" * 40_000}}}
    body = json.dumps({"workflow": long}).replace("core/ASSET", "\\u0063ore\\u002FASSET")
    answer = await world.anna("POST", "/jobs", data=body)
    assert (answer.status, answer.body["error"]["code"]) == (422, "missing_asset")
    # Another tenant's asset is as missing as none, by its id and by its hash.
    for given in (reference(asset["id"]), reference(asset["id"], hash=asset["hash"])):
        answer = await world.ben("POST", "/jobs", json={"workflow": load(given)})
        assert (answer.status, answer.body["error"]["code"]) == (422, "missing_asset")


async def test_outputs_are_inputs_on_any_backend(world: V2World) -> None:
    first = await world.anna.run(slow(33, steps=1, prefix="sub/made"))
    (output,) = first["outputs"]
    expected = colour((await world.anna.content(output)).raw)
    for _ in range(4):
        job = await world.anna.run(load(reference(output["id"])))
        assert job["status"] == "succeeded", job
        assert colour((await world.anna.content(job["outputs"][0])).raw) == expected
    answer = await world.ben("POST", "/jobs", json={"workflow": load(reference(output["id"]))})
    assert (answer.status, answer.body["error"]["code"]) == (422, "missing_asset")


async def test_a_text_output_is_an_input(world: V2World) -> None:
    source = {"1": {"class_type": "PrimitiveInt", "inputs": {"value": 4711}}}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    (text,) = (await world.anna.run({**source, "2": shown}))["outputs"]
    taken = {"class_type": "PrimitiveString", "inputs": {"value": reference(text["id"])}}
    (again,) = (await world.anna.run({"1": taken, "2": shown}))["outputs"]
    assert (await world.anna.content(again)).raw == b"4711"


async def test_an_asset_in_use_stays(world: V2World) -> None:
    asset = (await world.anna.upload(png((1, 2, 3)), "used.png")).body
    theirs = (await world.ben.upload(png((1, 2, 3)), "used.png")).body
    graph = {**load(reference(asset["id"])), **{f"{n}0": node for n, node in slow(steps=300, step_seconds=0.1).items()}}
    graph["20"]["inputs"]["images"] = ["10", 0]
    job = await world.anna.submit(graph)
    held = await world.anna("DELETE", f"/assets/{asset['id']}")
    assert (held.status, held.body["error"]["code"]) == (409, "asset_in_use")
    # The same bytes of another tenant are in no use.
    assert (await world.ben("DELETE", f"/assets/{theirs['id']}")).status == 204
    await world.anna("POST", job["urls"]["cancel"])
    await world.anna.reaches(job["id"])
    assert (await world.anna("DELETE", f"/assets/{asset['id']}")).status == 204
    for method, path in (("DELETE", ""), ("GET", ""), ("GET", "/content")):
        assert (await world.anna(method, f"/assets/{asset['id']}{path}")).status == 404
    assert (await world.anna("HEAD", f"/assets/by-hash/{asset['hash']}")).status == 404
    assert (await world.anna.upload(png((1, 2, 3)), "used.png")).status == 201


async def test_an_asset_of_a_native_upload_leaves_the_upload(world: V2World) -> None:
    native, data = caller(world.lab, world.gateway, "anna"), png((4, 5, 6))
    status, stored = await native_upload(native, data, "mine.png")
    assert status == 200
    asset = (await world.anna.upload(data, "mine.png")).body
    assert (await world.anna("DELETE", f"/assets/{asset['id']}")).status == 204
    assert await native.view({"filename": stored["name"], "type": "input"}) == data
    # And one that is deleted there is gone here.
    other = (await world.anna.upload(png((7, 8, 9)), "own.png")).body
    url = f"{world.gateway.url}/gateway/api/v1/me/uploads?filename=own.png&type=input"
    async with world.lab.http.delete(url, headers=world.anna.headers) as answer:
        assert answer.status == 200, await answer.text()
    assert (await world.anna("GET", f"/assets/{other['id']}")).status == 404


async def test_assets_outlive_a_restart_and_expire(shared_lab: Lab) -> None:
    world = await start_v2(shared_lab, data="restarted")
    lasting = (await world.anna.upload(png(RED), "a.png")).body
    short = (await world.anna.upload(png(GREEN), "b.png", expires_in="60")).body
    assert lasting["expires_at"] is None
    assert short["expires_at"] is not None
    longer = (await world.anna.upload(png(GREEN), "b.png", expires_in="604800")).body
    assert (longer["id"], longer["expires_at"] > short["expires_at"]) == (short["id"], True)
    again = (await world.anna.upload(png(GREEN), "b.png", expires_in="60")).body
    assert again["expires_at"] == longer["expires_at"]
    await world.gateway.kill()
    await world.gateway.start()
    await shared_lab.backends_up(world.gateway, 1)
    for asset in (lasting, longer):
        seen: Any = (await world.anna("GET", f"/assets/{asset['id']}")).body
        assert {**seen, "url": "", "url_expires_at": ""} == {
            **{name: value for name, value in asset.items() if name != "created_new"},
            "url": "",
            "url_expires_at": "",
        }
    assert (await world.anna("HEAD", f"/assets/by-hash/{lasting['hash']}")).status == 200

    async def loads() -> bool:
        job = await world.anna.run(load(reference(lasting["id"])))
        return bool(job["status"] == "succeeded")

    await until(loads)
