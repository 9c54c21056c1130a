"""The embedded journal."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
from pathlib import Path

import pytest

from gateway.store.directory import take
from gateway.store.protocol import (
    FileRecord,
    HistoryRemoval,
    JobRemoval,
    JobUpdate,
    StoreError,
)
from gateway.store.sqlite import FILE_NAME, SqliteStore
from tests.support.store_records import ENTRY, ended, job


async def test_what_is_written_is_there_after_a_restart(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    identity = await store.identity()
    await store.write([job("a"), job("b", 1), job("c", 2)])
    await store.write([JobUpdate("t", "b", "running", "b2", "up", 9, 1, b"{}")])
    await store.write([ended("a"), JobRemoval("t", "c"), FileRecord("t", "output", "", "x.png", "b1", "x.png")])
    older = FileRecord("t", "output", "", "y.png", "b1", "y.png", made_at=-1)
    await store.write([older])
    await store.close()
    again = SqliteStore(tmp_path)
    await again.open()
    assert await again.identity() == identity
    (left,) = await again.open_jobs()
    assert (left.prompt_id, left.state, left.backend, left.upstream_id, left.start_time) == (
        "b",
        "running",
        "b2",
        "up",
        9,
    )
    assert [record.prompt_id for record in await again.history()] == ["a"]
    assert await again.history_entry("t", "a") == ENTRY
    assert await again.history_entry("other", "a") is None
    assert await again.files() == [older, FileRecord("t", "output", "", "x.png", "b1", "x.png")]
    await again.write([HistoryRemoval("t", "a")])
    assert await again.history() == []
    await again.close()


async def test_many_writers_share_commits(tmp_path: Path) -> None:
    commits: list[float] = []
    store = SqliteStore(tmp_path, observe_commit=commits.append)
    await store.open()
    await asyncio.gather(*(store.write([job(str(n))]) for n in range(500)))
    assert len(await store.open_jobs()) == 500
    assert len(commits) < 50
    await store.close()


async def test_what_nobody_waited_for_is_written_before_it_closes(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    for n in range(50):
        store.write([job(str(n))])
    await store.close()
    rows = sqlite3.connect(tmp_path / FILE_NAME).execute("SELECT count(*) FROM jobs").fetchone()
    assert rows == (50,)


async def test_a_second_one_on_the_directory_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    with pytest.raises(StoreError, match="in use by another gateway"):
        await SqliteStore(tmp_path).open()
    await store.close()
    other = SqliteStore(tmp_path)
    await other.open()
    await other.close()


def test_a_directory_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    """As systemd makes it: StateDirectory has mode 0755."""
    tmp_path.chmod(0o755)
    take(tmp_path).close()
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a folder to another user")
def test_an_open_directory_of_another_user_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o777)
        os.seteuid(65534)
        try:
            with pytest.raises(StoreError) as caught:
                take(directory)
        finally:
            os.seteuid(0)
    assert f"{directory} (data_dir) may be read by other users of this machine (mode 0777)" in str(caught.value)
    assert "chmod 700" in str(caught.value)


async def test_a_damaged_file_and_a_newer_schema_are_said_so(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"this is not a database, and long enough to be looked at" * 100)
    with pytest.raises(StoreError, match="can't be opened"):
        await SqliteStore(tmp_path).open()
    (tmp_path / FILE_NAME).unlink()
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreError, match="schema version 99"):
        await SqliteStore(tmp_path).open()


async def test_a_failed_commit_fails_its_writers_alone(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("ALTER TABLE files RENAME TO hidden")
    with pytest.raises(StoreError, match="can't be written"):
        await store.write([FileRecord("t", "output", "", "x", "b", "x")])
    connection.execute("ALTER TABLE hidden RENAME TO files")
    connection.close()
    await store.write([FileRecord("t", "output", "", "x", "b", "x")])
    assert len(await store.files()) == 1
    await store.close()


async def test_what_cannot_be_written_takes_nothing_with_it(tmp_path: Path) -> None:
    """A file name that is no text, in one commit with others: they are written, and so is what comes after."""
    store = SqliteStore(tmp_path)
    await store.open()
    good = [FileRecord("t", "output", "", f"{n}.png", "b1", f"{n}.png") for n in range(3)]
    bad = FileRecord("t", "output", "", "\udcff.png", "b1", "\udcff.png")
    first, refused, second = store.write([good[0]]), store.write([bad]), store.write([good[1]])
    await asyncio.gather(first, second)
    with pytest.raises(StoreError):
        await refused
    await store.write([good[2]])
    assert await store.files() == good
    await store.close()
