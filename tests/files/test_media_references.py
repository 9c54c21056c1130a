"""Files that name other files: not put on a backend for a tenant whose files are judged."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.comfy.client import ComfyClient
from gateway.comfy.file_refs import FileRef
from gateway.comfy.media_references import HEAD_BYTES
from gateway.files.index import Upload
from gateway.files.media_references import MAX_REMEMBERED, References
from gateway.files.placements import Placements
from gateway.files.transfer import FileMissing, FileTransfer
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Pulse
from gateway.settings import Settings
from gateway.store.blobs import BlobStore
from gateway.store.protocol import StoreError
from gateway.store.sqlite import SqliteStore
from gateway.telemetry.metrics import Metrics
from tests.support.lab import Lab, Simulator
from tests.support.media import CONCAT, HLS, tag
from tests.support.pictures import png
from tests.support.uploads import folder

WANTED = FileRef("input", "", "film.mp4")
OUTPUT = FileRef("output", "", "film.txt")


async def kept(blobs: BlobStore, data: bytes) -> Upload:
    """Bytes in the store."""
    async with blobs.writer() as writer:
        await writer.write(data)
        blob = await writer.seal()
        await writer.keep(blob)
    return Upload(blob.digest, blob.size)


@dataclass
class World:
    """A placer between two backends."""

    transfer: FileTransfer
    blobs: BlobStore
    backends: list[Backend]
    simulators: list[Simulator]
    bases: list[Path]


@pytest.fixture
async def world(lab: Lab, tmp_path: Path) -> AsyncIterator[World]:
    bases = [tmp_path / "first", tmp_path / "second"]
    simulators = [await lab.simulator("--base-dir", str(base)) for base in bases]
    backends = [
        Backend(f"b{n}", simulator.url, 16, False, ComfyClient(simulator.url, lab.http), Pulse(30.0, time.monotonic()))
        for n, simulator in enumerate(simulators, start=1)
    ]
    async with AsyncExitStack() as stack:
        data = tmp_path / "data"
        store, blobs, metrics = SqliteStore(data), BlobStore(data / "uploads"), Metrics()
        await store.open()
        stack.push_async_callback(store.close)
        await blobs.open()
        fleet = Fleet(Settings(data_dir=data), metrics, "client", store)
        transfer = FileTransfer(fleet, blobs, Placements(), store, metrics, 1 << 24)
        stack.push_async_callback(transfer.close)
        yield World(transfer, blobs, backends, simulators, bases)


async def test_an_upload_that_names_others_is_put_nowhere(lab: Lab, world: World) -> None:
    for data in (CONCAT, tag(2 * HEAD_BYTES) + HLS):
        upload = await kept(world.blobs, data)
        with pytest.raises(FileMissing, match=r"'film\.mp4' names other files"):
            await world.transfer.ensure(world.backends[0], WANTED, upload, judged=True)
        assert await folder(lab, world.simulators[0]) == set()
        # Also where it lies there already, put there for somebody whose files are not judged.
        there = await world.transfer.ensure(world.backends[1], WANTED, upload)
        with pytest.raises(FileMissing):
            await world.transfer.ensure(world.backends[1], WANTED, upload, judged=True)
        assert there.filename in await folder(lab, world.simulators[1])


async def test_an_ordinary_upload_is_put_where_it_is_needed(lab: Lab, world: World) -> None:
    for data in (png((1, 2, 3)), tag(2 * HEAD_BYTES) + b"\xff\xfb\x90\x00" + bytes(100)):
        upload = await kept(world.blobs, data)
        there = await world.transfer.ensure(world.backends[0], WANTED, upload, judged=True)
        assert there.filename in await folder(lab, world.simulators[0])


async def test_an_output_that_names_others_is_brought_to_nobody_who_is_judged(lab: Lab, world: World) -> None:
    """SaveText writes what a tenant says; LoadVideo would play it."""
    first, second = world.backends
    (world.bases[0] / "output" / "film.txt").write_bytes(CONCAT)
    for _ in range(2):
        with pytest.raises(FileMissing, match=r"'film\.txt' names other files"):
            await world.transfer.copy(first, OUTPUT, second, judged=True)
        assert await folder(lab, world.simulators[1], "output") == set()
    # Brought for somebody else, it stays that one's.
    assert (await world.transfer.copy(first, OUTPUT, second)).filename in await folder(
        lab, world.simulators[1], "output"
    )
    with pytest.raises(FileMissing):
        await world.transfer.copy(first, OUTPUT, second, judged=True)
    (world.bases[0] / "output" / "film.txt").write_text("an ordinary text, of another length")
    assert await world.transfer.copy(first, OUTPUT, second, judged=True)


async def test_what_was_found_is_remembered_and_bounded(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    await blobs.open()
    references = References(blobs)
    upload = await kept(blobs, CONCAT)
    assert await references.of_upload("a.mp4", upload.digest)
    await blobs.remove(upload.digest)
    assert await references.of_upload("a.mp4", upload.digest)
    with pytest.raises(StoreError):
        await references.of_upload("a.mp4", "0" * 64)
    references._found.update({str(n): None for n in range(MAX_REMEMBERED)})
    assert await references.of_upload("a.png", (await kept(blobs, png((1, 1, 1)))).digest) is None
    assert await references.of_upload("a.IDX", upload.digest) == "a VobSub index"
    assert len(references._found) == MAX_REMEMBERED
