"""What the Comfy API v2 keeps in the journal: keys, notes, cancelled jobs, assets, each within bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.files.index import FileIndex
from gateway.files.uploads import Uploads
from gateway.jobs.state.job_end import End
from gateway.settings import PolicySettings, TenantSettings, UploadSettings
from gateway.store.blobs import BlobStore
from gateway.store.protocol import StoreError
from gateway.store.sqlite import SqliteStore
from gateway.store.v2_records import V2AssetRecord, V2KeyRecord, V2NoteRecord
from gateway.tenants.limits import Limits
from gateway.tenants.policy import Policies
from gateway.web.v2 import kept_jobs
from gateway.web.v2.assets import Assets, NewAsset, TooManyAssets, name_of, ref_of
from gateway.web.v2.forms import checked_path
from gateway.web.v2.jobs import status_of
from gateway.web.v2.kept_jobs import KeptJobs
from gateway.web.v2.keys import LIFE_MS, IdempotencyKeys
from gateway.web.v2.labels import Note
from tests.support.ledgers import admit, new_ledger

NOW = 1_795_000_000_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """A journal."""
    store = SqliteStore(tmp_path)
    await store.open()
    yield store
    await store.close()


async def test_a_key_holds_for_a_day(store: SqliteStore) -> None:
    keys = IdempotencyKeys(store)
    assert keys.take("anna", "k", NOW)
    assert not keys.take("anna", "k", NOW + LIFE_MS - 1)
    assert keys.take("ben", "k", NOW)
    keys.free("ben", "k")
    assert keys.take("ben", "k", NOW)
    # One reading of the clock ends no day, because it may be wrong.
    assert not keys.take("anna", "k", NOW + 40 * LIFE_MS)
    assert keys.take("anna", "old", NOW)
    keys.sweep(NOW + LIFE_MS - 1)
    assert not keys.take("anna", "old", NOW)
    keys.sweep(NOW + LIFE_MS)
    assert keys.take("anna", "k", NOW + LIFE_MS)
    await store.write([])
    again = IdempotencyKeys(store)
    await again.restore()
    assert not again.take("anna", "k", NOW + LIFE_MS + 1)
    assert again.take("ben", "k", NOW + LIFE_MS)
    assert again.take("anna", "old", NOW + 1)


class Full:
    """A journal that refuses what can be refused, and owes the rest."""

    def __init__(self) -> None:
        self.owed: list[Any] = []

    def try_write(self, _: Any) -> asyncio.Future[None]:
        """Refuse."""
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refused.set_exception(StoreError("the disk is full"))
        return refused

    def write(self, changes: Any) -> None:
        """Owe."""
        self.owed += changes


async def test_what_the_disk_refused_is_owed_if_its_job_may_be_accepted() -> None:
    full: Any = Full()
    keys, kept = IdempotencyKeys(full), KeptJobs(full, 1_000)
    for key in ("lasting", "freed"):
        keys.take("t", key, NOW)
        kept.put_note("t", key, Note("a note", None))
    keys.free("t", "freed")
    kept.drop_note("t", "freed")
    full.owed.clear()
    await asyncio.sleep(0)
    assert [type(each) for each in full.owed] == [V2KeyRecord, V2NoteRecord]
    assert full.owed[1].prompt_id == "lasting"


async def test_cancelled_jobs_and_notes_within_bounds(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_jobs, "MAX_CANCELED", 3)
    kept, ledger = KeptJobs(store, 1_000), new_ledger()
    ledger.steps.at_end = (kept,)
    ids = []
    for n in range(5):
        job = admit(ledger)
        kept.put_note("t", job.prompt_id, Note(f"note {n}"))
        event = asyncio.Event()
        leave = kept.wait_for("t", job.prompt_id, event)
        changes = kept.changes(job, End("cancelled"))
        await store.write(changes)
        kept.ended(job)
        # Not told as its end before the journal has it.
        assert status_of(kept.canceled("t", job.prompt_id)) == "canceling"
        assert not event.is_set()
        await event.wait()
        assert status_of(kept.canceled("t", job.prompt_id)) == "canceled"
        leave()
        ids.append(job.prompt_id)
    await store.write([])
    again = KeptJobs(store, 1_000)
    await again.restore()
    for each in (kept, again):
        assert [record.prompt_id for record in each.canceled_of("t")] == ids[2:]
        assert each.canceled("u", ids[4]) is None
        assert each.canceled_any(ids[4]) is not None
        assert each.note("t", ids[0]).metadata == "note 0"
    for _ in range(3):
        again.sweep(int(time.time() * 1000), lambda *_: False)
    assert again.note("t", ids[0]).is_empty
    assert again.note("t", ids[4]).metadata == "note 4"
    later = int(time.time() * 1000) + 2_000
    for _ in range(3):
        again.sweep(later, lambda *_: False)
    assert list(again.canceled_of(None)) == []
    await store.write([])
    assert await store.v2_canceled() == []
    assert await store.v2_notes() == []


async def test_an_end_that_was_not_is_forgotten(store: SqliteStore) -> None:
    kept, job = KeptJobs(store, 1_000), admit(new_ledger())
    assert kept.changes(job, End("success")) == ()
    (record,) = kept.changes(job, End("cancelled"))
    (removal,) = kept.undone(job)
    await store.write([record, removal])
    kept.ended(job)
    assert kept.canceled("t", job.prompt_id) is None
    assert await store.v2_canceled() == []


async def test_the_oldest_notes_have_no_room(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_jobs, "MAX_NOTES", 3_000)
    kept = KeptJobs(store, 1_000)
    for n in range(20):
        kept.put_note("t", str(n), Note("x" * 100))
    kept.put_note("u", "0", Note("x"))
    assert kept.note("t", "0").is_empty
    assert kept.note("t", "19").metadata
    assert kept.note("u", "0").metadata == "x"
    await store.write([])
    left = await store.v2_notes()
    assert 3 < len(left) < 10


async def test_an_asset_whose_time_is_over_goes_with_its_upload(store: SqliteStore, tmp_path: Path) -> None:
    files = FileIndex()
    blobs = BlobStore(tmp_path / "uploads")
    limits = Limits(Policies(TenantSettings(default=PolicySettings()), []))
    named: set[object] = set()
    uploads = Uploads(UploadSettings(), files, blobs, store, limits, lambda tenant, ref: (tenant, ref) in named)
    await uploads.restore()
    assets = Assets(store, files, uploads)

    async def add(path: str, expires_at: int | None) -> V2AssetRecord:
        async with blobs.writer() as writer:
            await writer.write(b"bytes")
            new = NewAsset(checked_path(path), path, "image/png", expires_at)
            return (await assets.add("t", new, writer, "h" * 64))[0]

    lasting, over = await add("a.png", None), await add("b.png", int(time.time() * 1000) - 1)
    assert assets.find("t", over.id) is None
    assert assets.find("t", lasting.id) == lasting
    assert assets.find("u", lasting.id) is None
    assert [each.id for each in assets.by_hash("t", "h" * 64)] == [lasting.id]
    # While the clock may be wrong, nothing is deleted.
    await assets.sweep(0)
    assert files.find("t", ref_of(over)) is not None
    named.add(("t", ref_of(over)))
    await assets.sweep(int(time.time() * 1000))
    assert files.find("t", ref_of(over)) is not None
    named.clear()
    await assets.sweep(int(time.time() * 1000))
    await assets.sweep(int(time.time() * 1000))
    assert files.find("t", ref_of(over)) is None
    assert files.find("t", ref_of(lasting)) is not None
    assert [record.id for record in await store.v2_assets()] == [lasting.id]
    # An upload that is deleted elsewhere takes its asset along.
    await uploads.delete("t", ref_of(lasting))
    assert assets.find("t", lasting.id) is None
    await assets.sweep(int(time.time() * 1000))
    await assets.sweep(int(time.time() * 1000))
    await store.write([])
    assert await store.v2_assets() == []
    first = await add("c.png", None)
    assert name_of(first) == "c.png"
    for n in range(99):
        await assets.mint("t", NewAsset(checked_path(f"c{n}.png"), f"c{n}.png", "image/png", None), "h" * 64)
    with pytest.raises(TooManyAssets):
        await assets.mint("t", NewAsset(checked_path("more.png"), "more.png", "image/png", None), "h" * 64)
    await uploads.close()
