"""The bucket's comparison with the journal at a real S3 server (SeaweedFS), below a path of the bucket."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.artifacts.bucket_sweep import DAY, BucketSweep, Swept
from gateway.artifacts.object_store import ObjectStore
from gateway.comfy.file_refs import FileRef
from gateway.files.index import FileIndex, Holder, Stored
from gateway.store.artifact_records import ArtifactRecord
from gateway.store.sqlite import SqliteStore
from tests.support.seaweedfs import BUCKET, seaweed


def key(number: int) -> str:
    """The key of an object."""
    return f"{'0a' * 16}/6f1c2a52-7c55-4c2e-9a0b-5a7a40f1b6de/{number:032x}.png"


async def chunks() -> AsyncIterator[bytes]:
    yield b"pixels"


async def test_objects_without_a_row_and_rows_without_an_object_go(tmp_path: Path) -> None:
    journal, files = SqliteStore(tmp_path / "data"), FileIndex()
    await journal.open()
    async with seaweed(tmp_path / "seaweed") as server:
        store = ObjectStore.of(server.settings(url=f"s3://{BUCKET}/below/it"))
        beside = ObjectStore.of(server.settings(url=f"s3://{BUCKET}"))
        for number in range(4):
            name = FileRef("output", "", f"{number}.png")
            files.restore("anna", name, Holder("b1", name, '"17ab-10"'))
            files.restore_stored("anna", name, Stored(key(number), 6, "digest"))
            place = ("anna", "output", "", name.filename, "p", "b1", "", name.filename, '"17ab-10"')
            await journal.write([ArtifactRecord(key(number), *place, "stored", 6, stored_at=1)])
        # The object of row 3 is missing. That of row 9 has none, nor has one beside the path.
        for number in (0, 1, 2, 9):
            await store.put(key(number), chunks())
        await beside.put(key(8), chunks())
        sweep, now = BucketSweep(store, files, journal, DAY), time.time() + 2 * DAY
        assert await sweep.sweep(now) == Swept(4, rows_dropped=1)
        assert await sweep.sweep(now) == Swept(4, objects_deleted=1)
        assert [name async for page in store.list() for name, _, _ in page] == [key(0), key(1), key(2)]
        assert await beside.head(key(8)) == 6
    assert files.find("anna", FileRef("output", "", "3.png")) == Holder(
        "b1", FileRef("output", "", "3.png"), '"17ab-10"'
    )
    await journal.close()
