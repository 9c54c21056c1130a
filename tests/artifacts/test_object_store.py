"""Objects in memory and in a folder. Real servers are in tests/services."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.artifacts.object_store import ObjectStore, StorageError
from gateway.artifacts.storage_errors import storage_error
from gateway.settings.storage import StorageSettings
from tests.support.disk import small_disk
from tests.support.lab import until

TENANTS = ("0" * 32, "1" * 32)


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    url = "memory:" if request.param == "memory" else f"file://{tmp_path}/some%20folder/below"
    return ObjectStore.of(StorageSettings(url=url))


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def read(store: ObjectStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.get(key, start, end)])


async def keys(store: ObjectStore, prefix: str = "") -> Sequence[tuple[str, int]]:
    return sorted([(key, size) async for page in store.list(prefix) for key, size, _ in page])


def files(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_file()]


async def test_bytes_come_back(store: ObjectStore) -> None:
    content = os.urandom(100_000)
    first, second = (f"{tenant}/job/picture.png" for tenant in TENANTS)
    await store.put(first, stream(content[:7], b"", content[7:]), content_type="image/png", disposition="inline")
    await store.put(second, stream())
    assert await read(store, first) == content
    assert await read(store, first, 10) == content[10:]
    assert await read(store, first, 10, 20) == content[10:20]
    assert await read(store, first, 99_990, 200_000) == content[99_990:]
    assert await read(store, first, 5, 5) == await read(store, second) == b""
    assert (await store.head(first), await store.head(second), await store.head("none")) == (100_000, 0, None)
    assert await keys(store) == [(first, 100_000), (second, 0)]
    assert await keys(store, TENANTS[0]) == [(first, 100_000)]
    assert await keys(store, TENANTS[0][:5]) == []


async def test_a_missing_object(store: ObjectStore) -> None:
    with pytest.raises(StorageError) as caught:
        await read(store, "none")
    assert caught.value.kind == "missing"
    await store.put("one", stream(b"x"))
    await store.delete(["none", "one", "other"])
    assert await keys(store) == []


async def test_a_stream_that_breaks_off_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        for _ in range(7):
            yield bytes(1024 * 1024)
        raise ConnectionResetError("the backend is gone")

    with pytest.raises(ConnectionResetError):
        await store.put("tenant/large", broken())
    assert await keys(store) == []
    assert not await asyncio.to_thread(files, tmp_path)


async def test_a_cancelled_put_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    waits = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield bytes(6 * 1024 * 1024)
        waits.set()
        await asyncio.Event().wait()

    putting = asyncio.create_task(store.put("tenant/large", endless()))
    await waits.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert await keys(store) == []
    assert not await asyncio.to_thread(files, tmp_path)


async def test_writing_needs_no_thread_of_others(tmp_path: Path) -> None:
    """The event loop's threads may all be busy, for instance with a disk that hangs."""
    store, done = ObjectStore.of(StorageSettings(url=f"file://{tmp_path}/objects")), threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    busy = asyncio.create_task(asyncio.to_thread(done.wait, 60))
    try:
        await asyncio.wait_for(store.put("a/b", stream(b"1", b"2")), 10)
        assert not busy.done()
    finally:
        done.set()
        await busy
    assert (tmp_path / "objects/a/b").read_bytes() == b"12"


async def test_no_links_without_a_server(store: ObjectStore) -> None:
    assert not store.can_sign
    with pytest.raises(StorageError, match="takes no signed URLs"):
        await store.sign(["one"], 60)


def test_an_empty_folder_goes_with_its_last_object(tmp_path: Path) -> None:
    async def run() -> None:
        store = ObjectStore.of(StorageSettings(url=f"file://{tmp_path}/objects"))
        for key in ("tenant/job/one", "tenant/job/two"):
            await store.put(key, stream(b"x"))
        await store.delete(["tenant/job/one"])
        assert await keys(store) == [("tenant/job/two", 1)]
        await store.delete(["tenant/job/two"])

    asyncio.run(run())
    assert not [*(tmp_path / "objects").iterdir()]


async def test_a_folder_that_is_gone_is_no_missing_object(tmp_path: Path) -> None:
    store = ObjectStore.of(StorageSettings(url=f"file://{tmp_path}/objects"))
    (tmp_path / "objects").rmdir()
    for call in (store.head("one"), read(store, "one")):
        with pytest.raises(StorageError, match="the folder does not exist") as caught:
            await call
        assert caught.value.kind == "bucket"


def service_account() -> str:
    """A key file of Google's, with a key that nobody knows."""
    key = rsa.generate_private_key(65537, 2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return json.dumps(
        {
            "type": "service_account",
            "private_key": key.private_bytes(*form).decode(),
            "private_key_id": "one",
            "client_email": "who@example.com",
            "client_id": "1",
        }
    )


# Variables that the library would take, and that would turn signing off or send it elsewhere.
STRAY = {
    **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"), "stray"),
    **dict.fromkeys(("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "GOOGLE_BASE_URL"), "https://stray.invalid"),
    **dict.fromkeys(("AWS_SKIP_SIGNATURE", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AZURE_USE_EMULATOR"), "true"),
    **dict.fromkeys(("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_TOKEN"), "stray"),
    "AZURE_STORAGE_ENDPOINT": "https://stray.invalid",
    "GOOGLE_SERVICE_ACCOUNT": "stray.json",
}


async def test_signing_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The credentials are the settings'. Neither the environment nor the cloud's metadata address is asked."""
    for name, value in STRAY.items():
        monkeypatch.setenv(name, value)
    account = tmp_path / "account.json"
    account.write_text(await asyncio.to_thread(service_account))
    s3 = {"url": "s3://bucket/a/b", "access_key_id": "WHO", "secret_access_key": "secret"}
    inner, outer = {"endpoint": "https://store.invalid"}, {"public_endpoint": "https://files.example.com"}
    gs = {"url": "gs://bucket/a/b", "service_account": account}
    az = {"url": "az://container/a/b", "account_name": "who", "account_key": base64.b64encode(b"key" * 8).decode()}
    hosted = {"virtual_hosted_style": True, "session_token": "brief", "region": "eu-central-1"}
    cases: list[tuple[dict[str, object], str, str]] = [
        (s3, "https://s3.us-east-1.amazonaws.com/bucket/a/b/x.png?", "X-Amz-Credential=WHO"),
        (s3 | inner, "https://store.invalid/bucket/a/b/x.png?", "X-Amz-Credential=WHO"),
        (s3 | inner | outer, "https://files.example.com/bucket/a/b/x.png?", "X-Amz-Credential=WHO"),
        (s3 | outer | hosted, "https://bucket.files.example.com/a/b/x.png?", "X-Amz-Security-Token=brief"),
        (s3 | hosted, "https://bucket.s3.eu-central-1.amazonaws.com/a/b/x.png?", "eu-central-1"),
        (gs, "https://storage.googleapis.com/bucket/a/b/x.png?", "X-Goog-Credential=who"),
        (gs | inner | outer, "https://files.example.com/bucket/a/b/x.png?", "X-Goog-Credential=who"),
        (az, "https://who.blob.core.windows.net/container/a/b/x.png?", "sig="),
        (az | inner | outer, "https://files.example.com/container/a/b/x.png?", "sig="),
    ]
    for given, start, part in cases:
        store = ObjectStore.of(StorageSettings.model_validate(given))
        assert store.can_sign
        (url,) = await store.sign(["x.png"], 60)
        assert url.startswith(start), url
        assert part in url
        assert "stray" not in url
    assert STRAY.items() <= os.environ.items()


async def test_settings_that_make_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for settings in (
        StorageSettings(url=f"file://{tmp_path}/file/below"),
        StorageSettings(url="gs://bucket", service_account=tmp_path / "none.json"),
        StorageSettings(url="gs://bucket", service_account=tmp_path / "file"),
    ):
        with pytest.raises(StorageError, match="storage: "):
            ObjectStore.of(settings)


async def test_a_full_folder(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk(tmp_path / "disk", 8))
        except PermissionError:
            pytest.skip("this process may not mount")
        store = ObjectStore.of(StorageSettings(url=f"file://{disk}/objects"))
        await store.put("small", stream(b"x"))
        for size in (7, 20):
            with pytest.raises(StorageError, match="the store is full; free some space") as caught:
                await store.put("large", stream(bytes(size * 1024 * 1024), bytes(size * 1024 * 1024)))
            assert caught.value.kind == "full"
            assert await asyncio.to_thread(files, disk) == [disk / "objects" / "small"]

            async def has_room() -> bool:
                # A thread may still write to the file whose name is gone.
                return shutil.disk_usage(disk).free > 7 * 1024 * 1024

            await until(has_room)
            await store.put("small", stream(b"x"))


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("status code: 403 Forbidden: <Code>AccessDenied</Code>", "denied", "lack the right (AccessDenied)"),
        ("status code: 403 Forbidden: <Code>RequestTimeTooSkewed</Code>", "clock", "set it right (NTP)"),
        ("status code: 400 Bad Request: <Code>ExpiredToken</Code>", "expired", "credentials have expired"),
        ("status code: 404 Not Found: <Code>NoSuchBucket</Code>", "bucket", "the bucket does not exist"),
        ("status code: 404 Not Found", "missing", "the object does not exist (404 Not Found)"),
        ("status code: 400 Bad Request: odd; retry_timeout: 9s", "other", "the store failed (400 Bad Request)"),
        ("status code: 400: <Code>AuthorizationHeaderMalformed</Code>", "other", "check storage.region"),
        ("Received redirect without LOCATION, this normally indicates", "other", "check storage.region"),
        ("status code: 507 Insufficient Storage", "full", "the store is full"),
        ("status code: 403 Forbidden: <Code>QuotaExceeded</Code>", "full", "the store is full (QuotaExceeded)"),
        ("status code: 503 Service Unavailable", "unreachable", "an error of its own (503 Service Unavailable)"),
        ("Unable to copy data to file: No space left on device (os error 28)", "full", "the store is full"),
        ("error sending request: invalid peer certificate: UnknownIssuer", "unreachable", "certificate is not trusted"),
        ("error sending request: client error (Connect): dns error", "unreachable", "can't be resolved"),
        ("surprise", "other", "the store failed"),
    ],
)
def test_kinds_of_failures(text: str, kind: str, said: str) -> None:
    quoted = "at https://certificate.dns/404 Not Found/?X-Amz-Signature=hunter2 <Id>hunter2</Id>"
    error = storage_error("reading an object", "s3://bucket", OSError(f"Generic S3 error {quoted} - {text}"))
    assert error.kind == kind
    assert said in error.message
    assert "hunter2" not in error.message
    assert error.message.startswith("reading an object at s3://bucket: ")
