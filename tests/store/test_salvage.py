"""Damaged journals: what is said of them, and what is saved."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.store import salvage
from gateway.store.protocol import FileRecord, HistoryRecord, StoreDamaged, StoreError, UploadRecord
from gateway.store.sqlite import FILE_NAME, SqliteStore
from gateway.store.statements import migrate
from gateway.store.version_check import look
from tests.support.store_records import job

ENDED, OPEN, FILES = 800, 50, 400
PAGE = 4096
SUMMARY = b'{"status": "completed"}'


def entry(n: int) -> bytes:
    """A history entry that does not become small."""
    return b'{"n": %d, "x": "%s"}' % (n, random.Random(n).randbytes(2000).hex().encode())


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A journal of some 4 MB."""
    store = SqliteStore(tmp_path)
    await store.open()
    await store.identity()
    await store.write([job(f"o{n}", n) for n in range(OPEN)])
    ends = (
        HistoryRecord("t", f"e{n}", "b1", f"e{n}", n, "success", None, None, SUMMARY, entry(n)) for n in range(ENDED)
    )
    await store.write(list(ends))
    await store.write([FileRecord("t", "output", "", f"{n:04}.png", "b1", f"{n:04}.png") for n in range(FILES)])
    await store.write([UploadRecord("t", "input", "", "u.png", "aa", 3, 7)])
    await store.close()
    return tmp_path / FILE_NAME


def spoil(path: Path, *pages: int) -> None:
    """Overwrite pages (counted from 0) with noise."""
    noise = random.Random(1)
    with path.open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE)
            file.write(noise.randbytes(PAGE))


def leaves(path: Path) -> list[int]:
    """The leaf pages of the history table, by the byte that says so (https://sqlite.org/fileformat.html#b_tree_pages)."""
    data = path.read_bytes()
    found = [page for page in range(1, len(data) // PAGE) if data[page * PAGE] == 0x0D]
    return [page for page in found if b"success" in data[page * PAGE : (page + 1) * PAGE]]


def content(path: Path) -> bytes:
    """The whole file."""
    return path.read_bytes()


async def start(path: Path) -> None:
    """Read what a gateway reads at its start."""
    store = SqliteStore(path.parent)
    await store.open()
    try:
        await store.history()
        await store.files()
        await store.open_jobs()
    finally:
        await store.close()


async def saved(directory: Path) -> tuple[int, int, int]:
    """How many entries, open jobs and files there are now; each entry as it was written."""
    store = SqliteStore(directory)
    await store.open()
    ended = await store.history()
    for record in ended:
        assert await store.history_entry("t", record.prompt_id) == entry(int(record.number))
    counts = len(ended), len(await store.open_jobs()), len(await store.files())
    await store.write([job("new")])
    await store.close()
    assert salvage.examine(directory) == []
    return counts


async def test_a_whole_journal_is_whole(path: Path) -> None:
    assert salvage.examine(path.parent) == []
    tables, aside = salvage.recover(path.parent)
    assert await saved(path.parent) == (ENDED, OPEN, FILES)
    assert all(table.is_whole and not table.spoilt for table in tables)
    assert aside.exists()


async def test_noise_in_the_middle(path: Path) -> None:
    """Three pages apart from each other: what is before, between and behind them is saved, and the old file kept."""
    there = leaves(path)
    spoil(path, *(there[len(there) * part // 4] for part in (1, 2, 3)))
    damaged = content(path)
    with pytest.raises(StoreDamaged, match=r"damaged .*journal recover"):
        await start(path)
    assert salvage.examine(path.parent)
    tables, aside = salvage.recover(path.parent)
    ended, jobs, files = await saved(path.parent)
    assert ENDED - 30 <= ended < ENDED
    assert (jobs, files) == (OPEN, FILES)
    assert [str(table) for table in tables if not table.is_whole] == [f"history: {ended} saved, others can't be read"]
    assert content(aside) == damaged


async def test_bytes_of_others_inside_an_entry(path: Path) -> None:
    """The page can be read, what is in it is no entry: only that one is left out, and reading it says so."""
    connection = sqlite3.connect(path)
    connection.execute("UPDATE history SET entry = ? WHERE prompt_id = 'e7'", (os.urandom(100),))
    connection.execute("UPDATE jobs SET submission = ? WHERE prompt_id = 'o3'", (os.urandom(100),))
    connection.commit()
    connection.close()
    store = SqliteStore(path.parent)
    await store.open()
    with pytest.raises(StoreDamaged, match="history entry of e7"):
        await store.history_entry("t", "e7")
    assert await store.history_entry("t", "e8") == entry(8)
    await store.close()
    tables, _ = salvage.recover(path.parent)
    assert await saved(path.parent) == (ENDED - 1, OPEN - 1, FILES)
    assert {table.table for table in tables if table.spoilt == 1} == {"history", "jobs"}


async def test_a_file_that_was_cut(path: Path) -> None:
    """What is before the cut is saved, as far as the pages that lead to it are there too."""
    os.truncate(path, len(content(path)) * 9 // 10)
    with pytest.raises(StoreDamaged):
        await start(path)
    tables, _ = salvage.recover(path.parent)
    ended, jobs, _ = await saved(path.parent)
    assert ENDED // 2 < ended < ENDED
    assert jobs == OPEN
    assert not next(table for table in tables if table.table == "history").is_whole


async def test_a_first_page_that_is_gone(path: Path) -> None:
    """Nothing can be found without it: that is said, and nothing is changed."""
    spoil(path, 0)
    before = content(path)
    with pytest.raises(StoreDamaged, match="can't be opened"):
        await SqliteStore(path.parent).open()
    for command in (salvage.examine, salvage.recover):
        with pytest.raises(StoreDamaged, match="nothing in it can be read"):
            command(path.parent)
    assert content(path) == before
    assert sorted(each.name for each in path.parent.iterdir()) == ["gateway.lock", FILE_NAME]


async def test_what_is_in_the_log_is_saved_too(path: Path) -> None:
    """A gateway that was killed leaves its newest commits there."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("DELETE FROM history WHERE prompt_id != 'e1'")
    connection.commit()
    copy = path.parent / "copy"
    copy.mkdir()
    for name in (FILE_NAME, f"{FILE_NAME}-wal"):
        (copy / name).write_bytes((path.parent / name).read_bytes())
    connection.close()
    salvage.recover(copy)
    assert await saved(copy) == (1, OPEN, FILES)


async def test_not_while_a_gateway_uses_it(path: Path) -> None:
    store = SqliteStore(path.parent)
    await store.open()
    assert salvage.examine(path.parent) == []
    with pytest.raises(StoreError, match="in use by another gateway"):
        salvage.recover(path.parent)
    await store.close()


def test_there_is_none(tmp_path: Path) -> None:
    for command in (salvage.examine, salvage.recover):
        with pytest.raises(StoreError, match="there is no journal"):
            command(tmp_path)


def test_a_database_of_another_program(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("CREATE TABLE other (x)")
    connection.close()
    assert salvage.examine(tmp_path) == ["it is no journal of this gateway"]
    with pytest.raises(StoreDamaged, match="no tables of a journal"):
        salvage.recover(tmp_path)


async def test_a_look_is_short_and_says_so(path: Path) -> None:
    """It ends by its bound, wherever it is; damage that a start does not read is a warning alone."""
    assert look(path.parent).warnings == []
    (unfinished,) = look(path.parent, seconds=0.0).warnings
    assert "was not read to its end within 0 s" in unfinished
    with closing(sqlite3.connect(path, isolation_level=None)) as journal:
        journal.execute("UPDATE history SET entry = randomblob(50000) WHERE prompt_id = 'e7'")
    # The entry's further pages, which the list of the history does not read, are the last of the file.
    spoil(path, len(content(path)) // PAGE - 5)
    (elsewhere,) = look(path.parent).warnings
    assert "is damaged where a start does not read" in elsewhere


def test_no_table_is_left_out() -> None:
    with closing(sqlite3.connect(":memory:")) as journal:
        migrate(journal)
        found = {str(row[0]) for row in journal.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    assert found - {"sqlite_sequence"} == set(salvage.TABLES)
