"""Journals of earlier versions come up with all that is in them."""

from __future__ import annotations

import re
import sqlite3
import zlib
from pathlib import Path

import pytest

from gateway.store.forgotten_records import ForgottenRecord
from gateway.store.protocol import (
    BackendRecord,
    DeletedRecord,
    FileRecord,
    KeyRecord,
    PlacementRecord,
    SignInRecord,
    StoreError,
    UploadRecord,
)
from gateway.store.sqlite import FILE_NAME, SqliteStore
from gateway.store.statements import migrations

LATEST = migrations()[-1][0]


def journal_of(version: int, directory: Path) -> None:
    """A journal as the gateway of that version left it: three jobs, two ended ones, a file, and what else it knew."""
    directory.mkdir()
    connection = sqlite3.connect(directory / FILE_NAME, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    for number, script in migrations():
        if number <= version:
            connection.executescript(script)
    connection.execute(f"PRAGMA user_version={version}")
    connection.execute("INSERT INTO meta VALUES ('client_id', 'mine')")
    for n in range(3):
        more = ", 'm', x'5b5d'" if version >= 7 else ""
        more += ", x''" if version >= 12 else ""
        job = ("t", f"open{n}", "mine", n, 1.5, "pending", "b1", f"open{n}", 5, None, 1, b"d", b"{}", b"prompt")
        connection.execute(f"INSERT INTO jobs VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?{more})", job)
    for n in range(2):
        entry = (None, "t", f"ended{n}", "b1", f"ended{n}", n, "success", None, None, b"{}", zlib.compress(b"{}"))
        connection.execute("INSERT INTO history VALUES (?,?,?,?,?,?,?,?,?,?,?)", entry)
    more = ", 'e', 1, 7" if version >= 6 else ""
    more += ", 'o/s/f'" if version >= 8 else ""
    connection.execute(f"INSERT INTO files VALUES ('t', 'output', '', 'x.png', 'b1', 'x.png'{more})")
    if version >= 2:
        more = ", 6, 1" if version >= 9 else ""
        connection.execute(f"INSERT INTO uploads VALUES ('t', 'input', '', 'u.png', 'aa', 3, 7{more})")
        connection.execute("INSERT INTO placements VALUES ('b1', 'input', '', 'u.png', 'u.png', 'aa', 'etag')")
    if version >= 3:
        connection.execute("INSERT INTO marks VALUES (7, 2)")
    if version >= 4:
        connection.execute("INSERT INTO backends VALUES ('b1', 'bad', x'5b5d', 2, 9, 1)")
    if version >= 5:
        connection.execute("INSERT INTO keys VALUES ('k', 'aa', 'user', '', 1, NULL, 'bb', 9, NULL)")
        connection.execute("INSERT INTO meta VALUES ('had_keys', '1')")
        connection.execute("INSERT INTO sign_ins VALUES ('cc', 'aa', 5)")
    if version >= 9:
        connection.execute("INSERT INTO deleted VALUES ('b1', 'output', '', 'd.png', 't', 'etag', 8)")
    if version >= 14:
        connection.execute("INSERT INTO forgotten VALUES ('b1', 'output', '', 'f.png', 'etag', 9)")
    if version >= 15:
        connection.execute("INSERT INTO learned VALUES (1, x'5b5d')")
    connection.close()


@pytest.mark.parametrize("version", range(1, LATEST + 1))
async def test_a_journal_of_each_version_keeps_its_data(tmp_path: Path, version: int) -> None:
    journal_of(version, tmp_path / "data")
    for _ in range(2):
        store = SqliteStore(tmp_path / "data")
        await store.open()
        assert await store.identity() == "mine"
        jobs = await store.open_jobs()
        assert [(job.prompt_id, job.tag, job.submission) for job in jobs] == [
            (f"open{n}", 1.5, b"prompt") for n in range(3)
        ]
        assert {(job.mark, job.given_up) for job in jobs} == {("m" if version >= 7 else "", b"[]")}
        assert [ended.prompt_id for ended in await store.history()] == ["ended0", "ended1"]
        assert await store.history_entry("t", "ended1") == b"{}"
        known_by = ("e", 1, 7) if version >= 6 else ("", 0, 0)
        folder = "o/s/f" if version >= 8 else None
        file = FileRecord("t", "output", "", "x.png", "b1", "x.png", *known_by, folder)
        assert await store.files() == [file]
        known = version >= 2
        brought = (6, 1) if version >= 9 else (0, 0)
        assert await store.uploads() == [UploadRecord("t", "input", "", "u.png", "aa", 3, 7, *brought)] * known
        placed = PlacementRecord("b1", "input", "", "u.png", "u.png", "aa", "etag")
        assert await store.placements() == [placed] * known
        assert await store.backends() == [BackendRecord("b1", "bad", b"[]", 2, 9, 1)] * (version >= 4)
        gone = DeletedRecord("b1", "output", "", "d.png", "t", "etag", 8)
        assert await store.deleted() == [gone] * (version >= 9)
        assert await store.forgotten() == [ForgottenRecord("b1", "output", "", "f.png", "etag", 9)] * (version >= 14)
        assert await store.learned() == b"[]" * (version >= 15)
        known = version >= 5
        assert await store.keys() == [KeyRecord("k", "aa", "user", "", 1, None, "bb", 9)] * known
        assert await store.had_keys() == known
        assert await store.sign_ins() == [SignInRecord("cc", "aa", 5)] * known
        await store.close()
    connection = sqlite3.connect(tmp_path / "data" / FILE_NAME)
    assert connection.execute("PRAGMA user_version").fetchone() == (LATEST,)
    connection.close()


async def test_a_migration_that_stops_half_way_is_done_again(tmp_path: Path) -> None:
    """Each version is a transaction: the file is of one version or of the next."""
    changes = {number: re.findall(r"ALTER TABLE (\w+) ADD COLUMN (\w+)", script) for number, script in migrations()}
    # The latest one of several changes: the last change fails, and the others must be undone.
    version = max(number for number, added in changes.items() if len(added) > 1)
    journal_of(version - 1, tmp_path / "data")
    connection = sqlite3.connect(tmp_path / "data" / FILE_NAME)
    added = changes[version]
    table, column = added[-1]
    connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    connection.commit()
    with pytest.raises(StoreError, match="can't be opened"):
        await SqliteStore(tmp_path / "data").open()
    assert connection.execute("PRAGMA user_version").fetchone() == (version - 1,)
    assert added[0][1] not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    connection.close()
    store = SqliteStore(tmp_path / "data")
    await store.open()
    assert len(await store.open_jobs()) == 3
    await store.close()
