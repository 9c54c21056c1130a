"""Object storage at a real S3 server (SeaweedFS): bytes, parts, ranges, signed URLs, rights, failures."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import obstore
import psutil
import pytest
from obstore.exceptions import AlreadyExistsError

from gateway.artifacts.object_store import ObjectStore, StorageError
from gateway.settings.storage import StorageSettings
from tests.support.clock import Clock
from tests.support.commands import command
from tests.support.lab import until
from tests.support.seaweedfs import BUCKET, READER, Seaweed, seaweed

MIB = 1024 * 1024
TENANTS = ("0" * 32, "1" * 32)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Seaweed]:
    async with seaweed(tmp_path / "seaweed") as running:
        yield running


async def stream(content: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def read(store: ObjectStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.get(key, start, end)])


async def keys(store: ObjectStore) -> list[str]:
    return [key async for page in store.list() for key, *_ in page]


async def failure(call: Awaitable[object]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        await call
    for secret in ("secret", "X-Amz", "<", "Signature="):
        assert secret not in caught.value.message.replace("secret_access_key", "").replace("secret key", "")
    return caught.value


async def test_objects(server: Seaweed) -> None:
    store = ObjectStore.of(server.settings())
    small, large = os.urandom(1000), os.urandom(13 * MIB)
    first, second = (f"{tenant}/job/object" for tenant in TENANTS)
    await store.put(first, stream(small), content_type="image/png", disposition="inline")
    await store.put(second, stream(large))
    assert await read(store, first) == small
    assert await read(store, second) == large
    assert await read(store, second, 5 * MIB - 7, 10 * MIB + 7) == large[5 * MIB - 7 : 10 * MIB + 7]
    assert await read(store, second, 13 * MIB - 3) == large[-3:]
    assert [await store.head(key) for key in (first, second, "none")] == [1000, 13 * MIB, None]
    assert sorted(await keys(store)) == [first, second]
    assert await keys(ObjectStore.of(server.settings(url=f"s3://{BUCKET}/some/prefi"))) == []
    await store.delete([first, "none", second])
    assert await keys(store) == []
    assert (await failure(read(store, first))).kind == "missing"


async def test_only_a_put_if_absent_keeps_what_is_there(server: Seaweed) -> None:
    """A copy that is made again replaces the object of an attempt whose answer was lost, so copies use plain puts."""
    store, key = ObjectStore.of(server.settings()), f"{TENANTS[0]}/job/object"
    await store.put(key, stream(b"first"))
    await store.put(key, stream(b"second"))
    with pytest.raises(AlreadyExistsError):
        await obstore.put_async(store._store, key, b"third", mode="create")
    assert await read(store, key) == b"second"


async def test_a_large_object_takes_little_memory(server: Seaweed) -> None:
    store, process = ObjectStore.of(server.settings()), psutil.Process()
    block, sizes = os.urandom(MIB), []

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(200):
            sizes.append(process.memory_info().rss)
            yield bytearray(block)

    await store.put("large", blocks())
    read_bytes = 0
    async for chunk in store.get("large"):
        sizes.append(process.memory_info().rss)
        read_bytes += len(chunk)
    assert read_bytes == 200 * MIB
    assert max(sizes) - sizes[0] < 30 * MIB


async def test_signed_urls(server: Seaweed, http: aiohttp.ClientSession) -> None:
    # The same server at another address stands for the public one.
    public = server.url.replace("127.0.0.1", "localhost")
    store = ObjectStore.of(server.settings(public_endpoint=public))
    mine, other = os.urandom(1000), os.urandom(1000)
    await store.put("mine.png", stream(mine), content_type="image/png", disposition='attachment; filename="a.png"')
    await store.put("other.png", stream(other))
    signed, brief = (await store.sign(["mine.png"], 60))[0], (await store.sign(["mine.png"], 1))[0]
    assert urlsplit(signed).netloc == urlsplit(public).netloc
    async with http.get(signed) as answer:
        assert (answer.status, await answer.read()) == (200, mine)
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="a.png"'
    async with http.get(signed, headers={"Range": "bytes=10-19"}) as answer:
        assert (answer.status, await answer.read()) == (206, mine[10:20])

    for tampered in (
        signed.replace("mine.png", "other.png"),
        signed.replace("X-Amz-Expires=60", "X-Amz-Expires=600"),
        re.sub("Signature=.", "Signature=x", signed),
        signed.partition("?")[0],
    ):
        async with http.get(tampered) as answer:
            assert answer.status == 403, tampered
    async with http.put(signed, data=b"x") as answer:
        assert answer.status == 403
    async with asyncio.timeout(30):
        while True:
            async with http.get(brief) as answer:
                if answer.status == 403:
                    break


async def test_refusals(server: Seaweed) -> None:
    await ObjectStore.of(server.settings()).put("here", stream(b"x"))
    cases = {
        "bucket": {"url": "s3://absent"},
        "access key": {"access_key_id": "stranger"},
        "secret key": {"secret_access_key": "other-secret"},
        "lack the right": {"access_key_id": READER[0], "secret_access_key": READER[1]},
    }
    for word, given in cases.items():
        store = ObjectStore.of(server.settings(**given))
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda store=store: store.put("new", stream(b"x")),
            lambda store=store: store.put("new", stream(bytes(6 * MIB))),
            lambda store=store: store.delete(["here"]),
        ]
        if word != "lack the right":
            calls += [lambda store=store: read(store, "here"), lambda store=store: keys(store)]
            calls += [lambda store=store: store.head("here"), lambda store=store: store.head("none")]
        else:
            assert await read(store, "here") == b"x"
        for call in calls:
            found = await failure(call())
            assert word in found.message, found.message
            assert found.kind == ("bucket" if word == "bucket" else "denied")
    assert await keys(ObjectStore.of(server.settings())) == ["here"]


async def test_a_full_store(tmp_path: Path) -> None:
    """SeaweedFS tells no more than that it has failed, and takes objects again once there is room."""
    async with seaweed(tmp_path / "seaweed", "-volume.max=1", "-master.volumeSizeLimitMB=1") as server:
        store = ObjectStore.of(server.settings())
        await store.put("first", stream(bytes(100_000)))
        found = await failure(store.put("large", stream(bytes(40 * MIB))))
        assert found.kind == "unreachable"
        assert "its disk may be full" in found.message
        assert "large" not in await keys(store)
        assert await read(store, "first") == bytes(100_000)


async def test_a_put_that_breaks_off_leaves_no_parts(server: Seaweed, http: aiohttp.ClientSession) -> None:
    store = ObjectStore.of(server.settings())

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(11 * MIB)
        raise ConnectionResetError("the backend is gone")

    with pytest.raises(ConnectionResetError):
        await store.put("large", broken())

    async def cancelling(put: Callable[[], object], seconds: float) -> AsyncIterator[bytes]:
        yield bytes(3 * MIB)
        # With the next chunk the upload of parts begins. Whenever the put is cancelled from there, nothing stays.
        asyncio.get_running_loop().call_later(seconds, put)
        for _ in range(20):
            yield bytes(3 * MIB)

    for step in range(20):
        putting: list[asyncio.Task[None]] = []
        content = cancelling(lambda putting=putting: putting[0].cancel(), step * 0.0005)
        putting.append(asyncio.create_task(store.put("large", content)))
        with pytest.raises(asyncio.CancelledError):
            await putting[0]
    assert await keys(store) == []
    uploads, headers = f"http://127.0.0.1:{server.filer}/buckets/{BUCKET}/.uploads/", {"Accept": "application/json"}

    async def has_none() -> bool:
        async with http.get(uploads, headers=headers) as answer:
            return answer.status == 404 or not (await answer.json())["Entries"]

    # The server deletes the parts a moment after it has said so.
    await until(has_none)


async def test_a_server_that_dies_in_mid_copy(tmp_path: Path) -> None:
    """The put and the get fail in time; after a restart what was stored is there, and of the rest nothing."""
    kept = os.urandom(20 * MIB)
    async with seaweed(tmp_path / "seaweed") as server:
        store = ObjectStore.of(server.settings())
        await store.put("kept", stream(kept))

        async def deadly() -> AsyncIterator[bytes]:
            yield bytes(11 * MIB)
            await server.kill()
            yield bytes(11 * MIB)

        getting = store.get("kept")
        await anext(getting)
        assert (await failure(store.put("lost", deadly()))).kind == "unreachable"

        async def rest() -> None:
            async for _ in getting:
                pass

        assert (await failure(rest())).kind == "unreachable"
        for call in (store.head("kept"), keys(store), store.delete(["kept"]), read(store, "kept")):
            assert (await failure(call)).kind == "unreachable"
    async with seaweed(tmp_path / "seaweed") as server:
        store = ObjectStore.of(server.settings())
        assert await read(store, "kept") == kept
        assert await keys(store) == ["kept"]


async def checked(folder: Path, settings: StorageSettings, environment: dict[str, str] | None = None) -> str:
    """What ``check --storage`` prints, and its exit code."""
    given = json.loads(settings.model_dump_json(exclude_defaults=True))
    path = folder / "gateway.json"
    path.write_text(json.dumps({"backends": [{"url": "http://127.0.0.1:1"}], "storage": given}))
    arguments = ("check", "--storage", "--config", str(path))
    if environment is None:
        code, out, error = await command(*arguments, cwd=folder)
        out += error
    else:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        out, code = (await process.communicate())[0].decode(), process.returncode
    assert "Traceback" not in out
    for secret in ("writer-secret", "Signature=", "reader-secret"):
        assert secret not in out
    return f"{out}exit {code}"


async def test_check_says_what_is_wrong(server: Seaweed, tmp_path: Path) -> None:
    steps = [f"  {step}: ok" for step in ("put", "get", "range", "list", "sign", "delete")]
    signed = {"links": "signed"}
    found = await checked(tmp_path, server.settings(**signed))
    assert found.splitlines()[1:] == [*steps, "exit 0"]
    assert await keys(ObjectStore.of(server.settings())) == []

    unreachable = server.settings(**signed, public_endpoint="http://127.0.0.1:9")
    found = await checked(tmp_path, unreachable)
    assert "this machine can't reach http://127.0.0.1:9/outputs/some/prefix/" in found
    assert found.endswith("exit 0")
    # At this address something else answers.
    found = await checked(tmp_path, server.settings(**signed, public_endpoint=f"http://127.0.0.1:{server.filer}"))
    assert "storage.public_endpoint must be the address that clients use" in found
    assert found.endswith("exit 1")

    for word, given in {
        "the bucket does not exist (NoSuchBucket)": {"url": "s3://absent"},
        "lack the right (AccessDenied)": {"access_key_id": READER[0], "secret_access_key": READER[1]},
        "check storage.secret_access_key": {"secret_access_key": "other"},
        "check storage.access_key_id": {"access_key_id": "stranger"},
        "can't be reached": {"endpoint": "http://127.0.0.1:9"},
        "can't be resolved": {"endpoint": "http://store.invalid"},
    }.items():
        found = await checked(tmp_path, server.settings(**given))
        assert word in found
        assert found.endswith("exit 1")

    clock = Clock(tmp_path / "clock")
    clock.step("+2h")
    found = await checked(tmp_path, server.settings(), clock.environment)
    assert "put: writing an object at" in found
    assert "the clock of this machine differs too much from the store's (RequestTimeTooSkewed); set it right" in found


async def test_check_finds_a_public_bucket(tmp_path: Path) -> None:
    async with seaweed(tmp_path / "seaweed", is_public=True) as server:
        found = await checked(tmp_path, server.settings(links="signed"))
    assert "to everybody without a signature; make the bucket private" in found
    assert found.endswith("exit 1")


async def test_tls(tmp_path: Path) -> None:
    async with seaweed(tmp_path / "seaweed", is_tls=True) as server:
        found = await checked(tmp_path, server.settings(links="signed", allow_http=False))
        assert "its TLS certificate is not trusted; check storage.endpoint; storage.ca_file" in found
        trusting = server.settings(links="signed", allow_http=False, ca_file=tmp_path / "seaweed" / "ca.pem")
        assert (await checked(tmp_path, trusting)).endswith("delete: ok\nexit 0")
        plain = server.settings(endpoint=server.url.replace("https", "http"))
        assert (await checked(tmp_path, plain)).endswith("exit 1")
