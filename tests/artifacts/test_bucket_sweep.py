"""Comparison of the bucket with the journal: what is deleted, what is dropped, and when nothing is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.artifacts import bucket_sweep
from gateway.artifacts.bucket_sweep import DAY, BucketSweep, ObjectNames, Swept, are_too_many, folder_of
from gateway.artifacts.object_store import ObjectStore
from gateway.comfy.file_refs import FileRef
from gateway.files.index import FileIndex, Holder, Stored
from gateway.settings.storage import StorageSettings
from gateway.store.artifact_records import ArtifactRecord
from gateway.store.sqlite import SqliteStore

FOLDER, OTHERS = "0a" * 16, "0b" * 16
JOB = "6f1c2a52-7c55-4c2e-9a0b-5a7a40f1b6de"
ETAG = '"17ab-10"'


def key(number: int, folder: str = FOLDER) -> str:
    """The key of an object."""
    return f"{folder}/{JOB}/{number:032x}.png"


class World:
    """A bucket, a journal and an index that agree on `count` files."""

    def __init__(self, store: ObjectStore, journal: SqliteStore) -> None:
        self.store, self.journal, self.files = store, journal, FileIndex()
        self.sweep = BucketSweep(store, self.files, journal, DAY)

    async def put(self, *keys: str) -> None:
        """Write objects."""

        async def chunks() -> AsyncIterator[bytes]:
            yield b"pixels"

        for each in keys:
            await self.store.put(each, chunks())

    async def add(self, number: int, *, alone: bool = False, state: str = "stored", shared: str = "") -> None:
        """Give a tenant a file with its row; on backend b1, too, unless it is `alone` in the store."""
        name = FileRef("output", "", f"{number}.png")
        if not alone:
            self.files.restore("anna", name, Holder("b1", name, ETAG))
        if state == "stored":
            self.files.restore_stored("anna", name, Stored(key(number), 6, "digest", 1, shared))
        place = ("anna", "output", "", name.filename, "p", "b1", "", name.filename, ETAG)
        row = ArtifactRecord(key(number), *place, state, 6, shared_key=shared, stored_at=1)
        await self.journal.write([row])

    async def keys(self) -> set[str]:
        """The objects in the bucket."""
        return {each for page in [page async for page in self.store.list()] for each, _, _ in page}

    async def swept(self, days: float = 2) -> Swept:
        """Sweep when all objects are so old."""
        return await self.sweep.sweep(time.time() + days * DAY)

    def place(self, number: int) -> object:
        """Where a file is."""
        return self.files.find("anna", FileRef("output", "", f"{number}.png"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    journal = SqliteStore(tmp_path)
    await journal.open()
    found = World(ObjectStore.of(StorageSettings(url="memory:")), journal)
    for number in range(30):
        await found.add(number)
        await found.put(key(number))
    yield found
    await journal.close()


async def test_objects_without_a_row_go_at_the_second_sweep(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials do, too; not those that are young, of another gateway, of another's making, or without metadata."""
    monkeypatch.setattr(bucket_sweep, "PAGE", 7)
    await world.add(30, shared=key(301))
    await world.add(31, state="pending")
    trial = f"probe/{7:032x}"
    kept = {key(30), key(301), key(31), key(1, OTHERS), "reports/2026.csv", f"{FOLDER}/notes.txt", "probe/mine.txt"}
    await world.put(*kept, key(40), key(41), trial)
    everything = await world.keys()
    assert await world.swept(0.5) == Swept(40)
    assert await world.swept() == Swept(40)
    # A row comes meanwhile.
    await world.add(41)
    assert await world.swept() == Swept(40, objects_deleted=2)
    assert await world.keys() == everything - {key(40), trial}
    assert await world.swept() == Swept(38)


async def test_a_row_without_an_object_goes_and_its_name_leads_to_its_backend(world: World) -> None:
    """Or nowhere, if its file was in the store alone."""
    await world.add(30, alone=True)
    await world.put(key(30))
    await world.store.delete([key(3), key(30)])
    assert await world.swept() == Swept(29, rows_dropped=2)
    assert world.place(3) == Holder("b1", FileRef("output", "", "3.png"), ETAG)
    assert world.place(30) is None
    states = {each.key: each.state for each in await world.journal.artifacts()}
    assert {each: state for each, state in states.items() if state != "stored"} == {
        key(3): "deleting",
        key(30): "deleting",
    }


async def test_an_object_that_came_while_the_bucket_was_listed_stays(world: World) -> None:
    """It is not in the list, and its row is old: a restart lets an object be written once more under its key."""
    assert await world.sweep._drop(bucket_sweep.ObjectNames(), 1_000, time.time()) == 0
    await world.store.delete([key(3)])
    assert await world.sweep._drop(bucket_sweep.ObjectNames(), 1_000, time.time()) == 1


async def test_another_bucket_or_an_older_journal_costs_nothing(world: World) -> None:
    """Many objects that are missing, or many that nobody knows, are told and left alone."""
    await world.store.delete([key(number) for number in range(25)])
    assert await world.swept() == Swept(5)
    assert isinstance(holder := world.place(3), Holder)
    assert holder.stored is not None
    await world.put(*(key(number) for number in range(25)), *(key(100 + number) for number in range(25)))
    everything = await world.keys()
    for _ in range(3):
        assert await world.swept() == Swept(55)
    assert await world.keys() == everything


def test_names_are_sorted_in_short_steps() -> None:
    names = ObjectNames()
    names.add(map(key, range(20_000)))
    assert len(names) == 20_000
    assert len(list(names.sorting())) > 1000
    assert all(key(number) in names for number in range(20_000))
    assert not any(key(number) in names for number in range(20_000, 21_000))


async def test_a_bucket_that_can_not_be_listed_whole_is_left_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.store.delete([key(3)])
    monkeypatch.setattr(bucket_sweep, "MAX_OBJECTS", 28)
    assert (await world.swept()).rows_dropped == 0
    assert isinstance(holder := world.place(3), Holder)
    assert holder.stored is not None


@pytest.mark.parametrize(
    ("found", "of", "too_many"),
    [(0, 0, False), (20, 20, False), (21, 100, True), (100, 1000, False), (101, 1000, True)],
)
def test_few_findings_are_accidents(found: int, of: int, too_many: bool) -> None:
    assert are_too_many(found, of) is too_many


def test_only_keys_of_a_gateways_making_have_a_folder() -> None:
    assert folder_of(key(1)) == FOLDER
    assert folder_of(f"{FOLDER}/{JOB}/{1:032x}") == FOLDER
    assert {folder_of(each) for each in ("", "a/b/c", f"x/{key(1)}", key(1).upper(), f"{FOLDER}/{JOB}/1.png")} == {""}
