"""Retention of stored files: which are deleted, and what is written of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.artifacts import retention as module
from gateway.artifacts.retention import BATCH, ArtifactRetention, KeptFile, past_bytes, too_old
from gateway.comfy.file_refs import FileRef, finished
from gateway.files.index import FileIndex, Holder, Stored
from gateway.settings.storage import StorageRetention
from gateway.store.artifact_records import ArtifactRecord
from gateway.store.protocol import FileRecord
from gateway.store.sqlite import SqliteStore

ETAG = '"17ab-10"'
HOUR, DAY = 3600.0, 86_400.0
NOW = 1_800_000_000.0


def kept(tenant: str, number: int, size: int, stored_at: int) -> KeptFile:
    """A file of a tenant."""
    return KeptFile(tenant, ref(number), f"{tenant}/{number}", size, stored_at)


def ref(number: int) -> FileRef:
    """A tenant's name for a file."""
    return FileRef("output", "", f"{number}.png")


files = st.lists(st.builds(kept, st.sampled_from("ab"), st.integers(0, 99), st.integers(0, 50), st.integers(0, 9)))


@given(files, st.integers(0, 200))
def test_each_tenant_keeps_its_newest_files_within_the_maximum(all_files: list[KeptFile], maximum: int) -> None:
    gone = finished(past_bytes(all_files, maximum))
    for tenant in "ab":
        own, lost = ([each for each in some if each.tenant == tenant] for some in (all_files, gone))
        left = sum(each.size for each in own) - sum(each.size for each in lost)
        assert left <= maximum
        # No more than needed: the newest of the lost ones would not fit.
        assert not lost or left + lost[-1].size > maximum
        rest = sorted((each.stored_at, each.key) for each in own)[len(lost) :]
        assert all((each.stored_at, each.key) <= first for each in lost for first in rest[:1])


def test_many_files_are_looked_at_in_short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 10)
    monkeypatch.setattr(module, "MAX_EXPIRING", 30)
    seen: list[int] = []

    def counted() -> Iterator[KeptFile]:
        for number in range(100):
            seen.append(number)
            yield kept("a", number, 1, number)

    steps = past_bytes(counted(), 5)
    for step in range(1, 11):
        next(steps)
        assert len(seen) == 10 * step
    assert len(list(steps)) == 10 + 10
    assert [len(seen) for _ in too_old(counted(), 50)] == [100 + 10 * step for step in range(1, 11)]
    assert finished(too_old(counted(), 20)) == {f"a/{number}": number for number in range(20)}
    assert finished(too_old(counted(), 50)) == {f"a/{number}": number for number in range(30)}


class World:
    """A journal and an index with stored files of two tenants."""

    def __init__(self, journal: SqliteStore) -> None:
        self.journal = journal
        self.files = FileIndex()
        self.deleted: list[str] = []
        self.files.on_dropped = lambda stored: self.deleted.append(stored.key)
        self.named: set[tuple[str, FileRef]] = set()

    async def store(self, tenant: str, number: int, age: float, *, alone: bool = False) -> None:
        """Let a tenant have a file of 10 bytes in the store; also on backend b1, if it is not `alone` in the store."""
        name, at = ref(number), int((NOW - age) * 1000)
        stored = Stored(f"{tenant}/{number}", 10, "digest", at)
        if not alone:
            self.files.restore(tenant, name, Holder("b1", name, ETAG))
            self.journal.write([FileRecord(tenant, "output", "", name.filename, "b1", name.filename, ETAG)])
        self.files.restore_stored(tenant, name, stored)
        place = (tenant, "output", "", name.filename, "p", "b1", "", name.filename, ETAG)
        await self.journal.write([ArtifactRecord(stored.key, *place, "stored", 10, stored_at=at)])

    def retention(self, **settings: float) -> ArtifactRetention:
        """The retention with these settings."""
        chosen = StorageRetention.model_validate(settings)
        return ArtifactRetention(chosen, self.files, self.journal, lambda *name: name in self.named)

    async def states(self) -> dict[str, str]:
        """The state of each row."""
        return {each.key: each.state for each in await self.journal.artifacts()}


@pytest.fixture
async def world(tmp_path: Path):
    journal = SqliteStore(tmp_path)
    await journal.open()
    yield World(journal)
    await journal.close()


async def test_old_files_go_once_an_hour_has_confirmed_their_age(world: World) -> None:
    """Also one that is in the store alone; not one that an open job names."""
    for number, age in ((1, 2 * DAY), (2, 0.5 * DAY), (3, 3 * DAY), (4, 3 * DAY)):
        await world.store("anna", number, age, alone=number == 3)
    await world.store("ben", 1, 2 * DAY)
    world.named.add(("anna", ref(4)))
    retention = world.retention(max_age=DAY)
    await retention.turn(NOW, 0)
    await retention.turn(NOW + HOUR - 1, HOUR - 1)
    assert world.deleted == []
    await retention.turn(NOW + HOUR, HOUR)
    assert sorted(world.deleted) == ["anna/1", "anna/3", "ben/1"]
    assert {number: world.files.find("anna", ref(number)) is not None for number in (1, 2, 3, 4)} == {
        1: False,
        2: True,
        3: False,
        4: True,
    }
    states = {"anna/1": "deleting", "anna/2": "stored", "anna/3": "deleting", "anna/4": "stored", "ben/1": "deleting"}
    assert await world.states() == states
    assert [each.filename for each in await world.journal.files()] == ["2.png", "4.png"]
    # Nobody finds it on its backend, and a sweep may delete it there.
    deleted = world.files.deleted.find("b1", ref(1))
    assert deleted is not None
    assert deleted.is_surely(ETAG)
    assert [each.filename for each in await world.journal.deleted()] == ["1.png"]
    world.named.clear()
    await retention.turn(NOW + HOUR, HOUR)
    assert world.deleted[-1] == "anna/4"


async def test_the_oldest_files_past_the_bytes_go_in_batches(world: World) -> None:
    count = BATCH + 5
    for number in range(count):
        await world.store("anna", number, DAY - number)
    await world.store("ben", 1, DAY)
    await world.retention(max_bytes=30).turn(NOW, 0)
    assert world.deleted == [f"anna/{number}" for number in range(count - 3)]
    assert [key for key, state in (await world.states()).items() if state == "stored"] == [
        "anna/102",
        "anna/103",
        "anna/104",
        "ben/1",
    ]


async def test_a_clock_that_jumps_deletes_nothing(world: World) -> None:
    await world.store("anna", 1, 0.5 * DAY)
    retention = world.retention(max_age=DAY)
    for step in range(8):
        jumps = 40 * DAY if step % 2 else 0
        await retention.turn(NOW + jumps + step * HOUR / 2, step * HOUR / 2)
    assert world.deleted == []
