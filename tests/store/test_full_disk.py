"""A journal whose disk is full, or read-only, and then is not."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.store import sqlite_errors
from gateway.store.protocol import JobUpdate, StoreError
from gateway.store.sqlite import FILE_NAME, SqliteStore
from tests.support import disk
from tests.support.lab import until
from tests.support.store_records import ended, job


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """An open store with one job."""
    store = SqliteStore(tmp_path)
    await store.open()
    await store.write([job("first")])
    yield store
    await store.close()


def log_size(directory: Path) -> int:
    """Bytes of the write-ahead log: it can't grow where files can be no longer."""
    return (directory / f"{FILE_NAME}-wal").stat().st_size


async def well(store: SqliteStore) -> None:
    """Wait until the journal can be written."""

    async def look() -> bool:
        return not store.trouble

    await until(look, what="the journal is well")


async def test_new_jobs_are_refused_and_what_happened_is_owed(store: SqliteStore, tmp_path: Path) -> None:
    with disk.full(os.getpid(), log_size(tmp_path)):
        with pytest.raises(StoreError, match="takes nothing"):
            await store.try_write([job("refused")])
        assert store.trouble
        with pytest.raises(StoreError, match="free some space"):
            await store.try_write([job("refused at once")])
        owed = [store.write([JobUpdate("t", "first", "running", "b1", "first", 7, n, None)]) for n in range(3)]
        end = store.write([ended("first")])

        async def all_owed() -> bool:
            return store.owed == 4

        await until(all_owed, what="kept for later")
        assert not any(each.done() for each in [*owed, end])
        lag = store.lag(time.monotonic())
        assert lag > 0
        store.write([JobUpdate("t", "first", "running", "b1", "first", 7, 9, None)])
        assert store.lag(time.monotonic()) > lag, "the oldest write counts"
        assert [record.state for record in await store.open_jobs()] == ["sending"]
        assert await store.history() == []
    await asyncio.gather(*owed, end)
    await well(store)
    assert store.lag(time.monotonic()) == 0
    assert await store.open_jobs() == []
    assert [record.prompt_id for record in await store.history()] == ["first"]
    await well(store)
    await store.try_write([job("second")])
    assert [record.prompt_id for record in await store.open_jobs()] == ["second"]


async def test_it_is_well_again_though_nobody_writes(store: SqliteStore, tmp_path: Path) -> None:
    with disk.full(os.getpid(), log_size(tmp_path)), pytest.raises(StoreError):
        await store.try_write([job("refused")])
    await well(store)


async def test_what_cannot_be_written_at_all_is_not_owed(store: SqliteStore, tmp_path: Path) -> None:
    with disk.full(os.getpid(), log_size(tmp_path)):
        bad, good = store.write([job("\udcff")]), store.write([job("good")])
        with pytest.raises(StoreError):
            await bad
        assert not good.done()
    await good


async def test_it_closes_on_a_full_disk(tmp_path: Path) -> None:
    """What is owed then was not told to anybody; it fails, and nothing waits for ever."""
    store = SqliteStore(tmp_path)
    await store.open()
    with disk.full(os.getpid(), log_size(tmp_path)):
        end = store.write([ended("first")])
        await store.close()
        with pytest.raises(StoreError, match="closed before"):
            await end


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    with ExitStack() as stack:
        try:
            place = stack.enter_context(disk.small_disk(tmp_path / "disk", 4))
        except PermissionError as error:
            # If this process may not mount, skip the test, because the other tests show the same without a mount.
            pytest.skip(f"no file system can be mounted here: {error}")
        yield place


async def test_a_file_system_that_is_full(small_disk: Path) -> None:
    """The same on a real one, where this process may mount one."""
    store = SqliteStore(small_disk)
    await store.open()
    filler = disk.stuff(small_disk)
    with pytest.raises(StoreError, match="the disk is full"):
        await store.try_write([job("refused")])
    end = store.write([ended("first")])
    filler.unlink()
    await end
    await well(store)
    await store.close()


def test_a_read_only_file_is_said_so(tmp_path: Path) -> None:
    """What SQLite says of one, which is also what it says of a disk that was mounted so."""
    sqlite3.connect(tmp_path / "file").execute("CREATE TABLE t (x)").connection.close()
    connection = sqlite3.connect(f"file:{tmp_path / 'file'}?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError) as failure:
        connection.execute("INSERT INTO t VALUES (1)")
    connection.close()
    assert sqlite_errors.may_pass(failure.value)
    assert "read-only" in sqlite_errors.sentence("the journal can't be written", failure.value)


def test_an_error_of_ours_does_not_pass() -> None:
    with pytest.raises(sqlite3.OperationalError) as failure:
        sqlite3.connect(":memory:").execute("INSERT INTO nothing VALUES (1)")
    assert not sqlite_errors.may_pass(failure.value)
