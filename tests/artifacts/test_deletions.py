"""Deletion of objects: nobody may have one from the order on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.artifacts import schedule
from gateway.artifacts.deletions import Deletions
from gateway.artifacts.object_store import ObjectStore
from gateway.artifacts.spool import ArtifactSpool
from gateway.artifacts.store_watch import StoreWatch
from gateway.settings.storage import StorageSettings
from gateway.store.sqlite import SqliteStore
from tests.support.lab import Lab
from tests.support.s3_server import BUCKET, S3Process


async def chunks() -> AsyncIterator[bytes]:
    """A small object."""
    yield b"pixels"


async def test_an_object_ends_with_the_order_to_delete_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    store, journal = ObjectStore.of(StorageSettings(url=bucket.as_uri())), SqliteStore(tmp_path)
    await journal.open()
    health = StoreWatch(store, lambda: None)
    deletions = Deletions(store, ArtifactSpool(tmp_path / "spool", 1), journal, health)
    monkeypatch.setattr(schedule, "FIRST_WAIT", 0.0)
    for key in ("a", "b", "c"):
        await store.put(key, chunks())
    deletions.add("a", "b")
    bucket.rename(tmp_path / "away")
    bucket.write_text("no folder")
    await deletions.round()
    assert [deletions.has(key) for key in ("a", "b", "c", "")] == [True, True, False, False]
    bucket.unlink()
    (tmp_path / "away").rename(bucket)
    health.probe_at = 0
    await deletions.round()
    assert [deletions.has(key) for key in ("a", "b")] == [False, False]
    assert [await store.head(key) for key in ("a", "b", "c")] == [None, None, 6]
    await journal.close()


async def test_a_store_that_may_not_delete_is_not_away(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = S3Process(tmp_path / "s3")
    lab.servers.append(server)
    await server.start()
    keys = {"access_key_id": "a", "secret_access_key": "b"}
    endpoint = f"http://127.0.0.1:{server.port}"
    store = ObjectStore.of(StorageSettings(url=f"s3://{BUCKET}", endpoint=endpoint, allow_http=True, **keys))
    journal = SqliteStore(tmp_path)
    await journal.open()
    health = StoreWatch(store, lambda: None)
    deletions = Deletions(store, ArtifactSpool(tmp_path / "spool", 1), journal, health)
    await store.put("a", chunks())
    server.keep()
    deletions.add("a")
    for _ in range(2):
        # The second comes too soon after the first, and asks for nothing.
        await deletions.round()
        assert health.is_up
        assert len(deletions) == 1
    assert capsys.readouterr().out.count("storage_deletion_denied") == 1
    (server.root / "kept").unlink()
    monkeypatch.setattr(deletions, "_again_at", 0.0)
    await deletions.round()
    assert (len(deletions), await store.head("a")) == (0, None)
    await journal.close()
