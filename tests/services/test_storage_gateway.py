"""A gateway with a real S3 server (SeaweedFS): signed URLs, a backend that is gone, a store that is killed."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from blake3 import blake3
from PIL import Image
from yarl import URL

from gateway.artifacts.object_store import ObjectStore
from gateway.artifacts.probe import FOLDER
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.seaweedfs import BUCKET, Seaweed, seaweed
from tests.support.security_world import caller, start
from tests.support.stored import spooled, until_rows, until_stored
from tests.support.workflows import slow


def settings_of(server: Seaweed, **given: Any) -> dict[str, str]:
    """The settings of a gateway that stores there, for environment variables."""
    known = json.loads(server.settings().model_dump_json(exclude_defaults=True)) | given
    return {
        f"storage__{name}": str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in known.items()
    }


async def ran(comfy: Comfy, seed: int) -> tuple[str, dict[str, str], bytes]:
    """Run a prompt to its end. Return its id, its picture, and the bytes of it."""
    prompt_id = await comfy.prompt(slow(seed=seed, steps=1))
    (image,) = comfy.images(await comfy.entry(prompt_id))
    return prompt_id, image, await comfy.view(image)


async def fetched(http: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    """Follow a link, without a key."""
    async with http.get(URL(url, encoded=True)) as answer:
        return answer.status, await answer.read()


async def contents(server: Seaweed) -> dict[str, bytes]:
    """The objects, by their keys, but for those of a trial at the gateway's start."""
    store = ObjectStore.of(server.settings())
    names = [key async for page in store.list() for key, *_ in page if not key.startswith(f"{FOLDER}/")]
    return {key: b"".join([chunk async for chunk in store.get(key)]) for key in names}


async def test_links_and_files_outlive_their_backend(lab: Lab, tmp_path: Path) -> None:
    async with seaweed(tmp_path / "seaweed") as server:
        public = server.url.replace("127.0.0.1", "localhost")
        given = settings_of(server, links="signed", strip_metadata=True, public_endpoint=public, when="before")
        simulator = await lab.simulator()
        gateway = await start(lab, simulator, **given)
        users = {name: caller(lab, gateway, name) for name in ("anna", "ben")}
        shown = {name: await ran(comfy, seed) for seed, (name, comfy) in enumerate(users.items())}
        found = {row.tenant: row for row in await until_stored(gateway, 2)}
        objects = await contents(server)
        assert sorted(objects) == sorted(key for row in found.values() for key in (row.key, row.shared_key))
        urls = {}
        for name, (prompt_id, _, data) in shown.items():
            assert objects[found[name].key] == data
            (told,) = (await users[name].get(f"/history/{prompt_id}"))[prompt_id]["gateway_files"]
            assert (told["size"], told["blake3"], told["stripped"]) == (len(data), blake3(data).hexdigest(), True)
            assert urlsplit(told["url"]).netloc == urlsplit(public).netloc
            assert urlsplit(told["url"]).path == f"/{BUCKET}/some/prefix/{found[name].shared_key}"
            status, copy = await fetched(lab.http, told["url"])
            assert (status, copy) == (200, objects[found[name].shared_key])
            assert Image.open(io.BytesIO(copy)).info.keys() <= {"dpi", "gamma"}
            assert Image.open(io.BytesIO(copy)).tobytes() == Image.open(io.BytesIO(data)).tobytes()
            urls[name] = told["url"]
            # The original can't be had with the link of the copy.
            original = told["url"].replace(found[name].shared_key, found[name].key)
            assert (await fetched(lab.http, original))[0] == 403
        assert urls["anna"] not in json.dumps(await users["ben"].get("/history"))

        await simulator.kill()
        await lab.backends_up(gateway, 0)
        for (name, comfy), other in zip(users.items(), reversed(users.values()), strict=True):
            _, image, data = shown[name]
            assert await comfy.view(image) == data
            async with lab.http.get(
                f"{gateway.url}/view", params=image, headers={**comfy.headers, "Range": "bytes=5-9"}
            ) as part:
                assert (part.status, await part.read()) == (206, data[5:10])
            unknown = {**image, "filename": "unknown_00001_.png"}
            for each in (image, unknown):
                async with lab.http.get(f"{gateway.url}/view", params=each, headers=other.headers) as answer:
                    body = await answer.read()
                    # Both may have a picture of this name; it is never the other's.
                    assert body != data
                    assert answer.status == 404 or each is image
            async with lab.http.get(
                f"{gateway.url}/view", params={**image, "redirect": "1"}, headers=comfy.headers, allow_redirects=False
            ) as answer:
                assert answer.status == 302
                assert await fetched(lab.http, answer.headers["Location"]) == (200, data)
        await gateway.stop()
        log = gateway.log.read_text()
        assert "X-Amz-Signature" not in log
        assert "writer-secret" not in log


async def test_a_store_that_is_killed_in_mid_copy(lab: Lab, tmp_path: Path) -> None:
    """Jobs end all the same, files wait on the disk, and all of them are stored once the store is back."""
    root = tmp_path / "seaweed"
    async with seaweed(root) as server:
        gateway = await start(lab, await lab.simulator(), **settings_of(server, timeout="5s"))
        users = [caller(lab, gateway, name) for name in ("anna", "ben")]
        running = [asyncio.create_task(ran(users[seed % 2], seed)) for seed in range(12)]
        await until_rows(gateway, lambda seen: any(row.state == "stored" for row in seen))
        await server.kill()
        shown = await asyncio.gather(*running)
        await until_rows(
            gateway, lambda seen: len(seen) == 12 and all(row.state in ("stored", "spooled") for row in seen)
        )
        assert "storage_unreachable" in gateway.log.read_text()
        await gateway.kill()
    async with seaweed(root) as server:
        await gateway.start()
        found = await until_stored(gateway, 12, limit=60)
        objects = await contents(server)
        assert sorted(objects[row.key] for row in found) == sorted(data for *_, data in shown)

    async def is_empty() -> bool:
        return not spooled(lab)

    await until(is_empty)
