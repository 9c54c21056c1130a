"""Find the damage in a journal, and recover the rows that can still be read."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from gateway.store import sqlite_errors
from gateway.store.directory import take
from gateway.store.durable_rename import replace
from gateway.store.protocol import StoreDamaged, StoreError
from gateway.store.row_checks import JudgeJob, fault, judge_json
from gateway.store.sqlite import FILE_NAME, HAD_KEYS
from gateway.store.statements import migrate, refuse_newer
from gateway.store.version_check import open_unchanged

# Those with a rowid are read on both sides of what is damaged, and in between row by row; the others from both ends.
_WITH_ROWID = (
    "jobs",
    "history",
    "marks",
    "webhook_endpoints",
    "workflows",
    "webhook_events",
    "webhook_deliveries",
    "v2_keys",
    "v2_notes",
    "v2_canceled",
    "v2_assets",
    "forgotten",
    "artifacts",
    "learned",
)
_WITHOUT = (
    "meta",
    "files",
    "deleted",
    "uploads",
    "placements",
    "backends",
    "keys",
    "sign_ins",
    "poisonous",
    "restarts",
)
TABLES = _WITH_ROWID + _WITHOUT
# Sentences about damaged rows of a table; more are counted.
_MAX_FAULTS = 20
# How far to look behind the last row that can be read, where the end of a table can't be.
_FURTHER = 100_000

_Row = tuple[object, ...]


@dataclass(slots=True)
class Saved:
    """Result of the recovery of a table: rows saved, rows damaged in themselves, and if all could be read."""

    table: str
    rows: int = 0
    spoilt: int = 0
    is_whole: bool = True
    # What is wrong with the first of those rows.
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = f"{self.table}: {self.rows} saved"
        if self.spoilt:
            what += f", {self.spoilt} damaged in themselves and left out"
        return what if self.is_whole else f"{what}, others can't be read"


def examine(directory: Path, judge_job: JudgeJob = judge_json) -> list[str]:
    """Read the whole file, and return one sentence for each fault. A gateway may be using the file.

    Each row that `recover` would leave out counts as a fault.

    Args:
        directory: the data directory.
        judge_job: judges open jobs.

    Raises:
        StoreError: there is none, a newer gateway wrote it, or it can't be read at all.
    """
    problems: list[str] = []
    with closing(_open(directory)) as connection:
        try:
            there = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        except sqlite3.Error as error:
            raise _unreadable(directory, error) from error
        # Before anything else is said: what a newer gateway wrote may not be what this one takes it for.
        _refuse_newer(directory, connection)
        if "history" not in there:
            return ["it is no journal of this gateway"]
        try:
            problems += [str(row[0]) for row in connection.execute("PRAGMA quick_check(20)")]
        except sqlite3.Error as error:
            problems.append(str(error))
        for table in TABLES:
            problems += _examine_table(connection, table, judge_job)
    return [problem for problem in problems if problem != "ok"]


def _examine_table(connection: sqlite3.Connection, table: str, judge_job: JudgeJob) -> list[str]:
    found, names = Saved(table), _columns(connection, table)
    for _ in _sound_rows(connection, found, names, judge_job) if names else ():
        pass
    if found.spoilt > len(found.faults):
        found.faults.append(f"{table}: {found.spoilt - len(found.faults)} more rows are damaged")
    return found.faults if found.is_whole else [*found.faults, f"{table}: some rows can't be read"]


def had_keys(directory: Path) -> bool:
    """Return True if the journal tells that a key was ever made over the admin API; False if it can't be read."""
    try:
        with closing(_open(directory)) as connection:
            return connection.execute(HAD_KEYS).fetchone() is not None
    except (StoreError, sqlite3.Error, OSError):
        return False


def recover(directory: Path, judge_job: JudgeJob = judge_json) -> tuple[list[Saved], Path]:
    """Write each row that can be read to a new file, and put the new file in the damaged one's place.

    Returns the result for each table, and the damaged file's new path.

    Args:
        directory: the data directory.
        judge_job: judges open jobs.

    Raises:
        StoreError: a gateway is using it, there is none, a newer gateway wrote it, nothing in it can be read, or the
            disk takes nothing.
    """
    lock = take(directory)
    try:
        with closing(_open(directory)) as source:
            try:
                columns = {table: _columns(source, table) for table in TABLES}
            except sqlite3.Error as error:
                raise _unreadable(directory, error) from error
            _refuse_newer(directory, source)
            if not columns["history"]:
                raise StoreDamaged(f"{directory / FILE_NAME}: there are no tables of a journal in it")
            fresh = directory / f"{FILE_NAME}.recovered"
            fresh.unlink(missing_ok=True)
            try:
                saved = _copy(source, fresh, columns, judge_job)
            except (sqlite3.Error, OSError) as error:
                fresh.unlink(missing_ok=True)
                raise StoreError(sqlite_errors.sentence(f"{fresh} can't be written", error)) from error
        return saved, _put_in_place(directory, fresh)
    finally:
        lock.close()


def _open(directory: Path) -> sqlite3.Connection:
    path = directory / FILE_NAME
    if not path.is_file():
        raise StoreError(f"there is no journal in {directory}")
    connection = open_unchanged(path)
    # Nothing is written; but so SQLite reads what is left of a file that was cut (btree.c, lockBtree).
    connection.execute("PRAGMA writable_schema=ON")
    return connection


def _refuse_newer(directory: Path, connection: sqlite3.Connection) -> None:
    try:
        refuse_newer(connection)
    except sqlite3.Error as error:
        raise _unreadable(directory, error) from error


def _unreadable(directory: Path, error: sqlite3.Error) -> StoreError:
    if not sqlite_errors.is_damage(error):
        return StoreError(sqlite_errors.sentence(f"{directory / FILE_NAME} can't be read", error))
    return StoreDamaged(
        f"{directory / FILE_NAME}: nothing in it can be read ({error}); put back a copy of it, or move it away: the "
        "gateway then starts with an empty journal, and runs on what clients send again"
    )


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})")]


def _copy(source: sqlite3.Connection, fresh: Path, columns: dict[str, list[str]], judge_job: JudgeJob) -> list[Saved]:
    saved = []
    with closing(sqlite3.connect(fresh, isolation_level=None)) as target:
        migrate(target)
        for table in TABLES:
            # One of an older version has fewer columns, or not the table.
            names = [name for name in _columns(target, table) if name in columns[table]]
            if names:
                target.execute("BEGIN")
                saved.append(_copy_table(source, target, table, names, judge_job))
                target.execute("COMMIT")
    return saved


def _copy_table(
    source: sqlite3.Connection, target: sqlite3.Connection, table: str, names: list[str], judge_job: JudgeJob
) -> Saved:
    saved = Saved(table)
    put = f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    for row in _sound_rows(source, saved, names, judge_job):
        saved.rows += target.execute(put, row).rowcount
    return saved


def _sound_rows(source: sqlite3.Connection, saved: Saved, names: list[str], judge_job: JudgeJob) -> Iterator[_Row]:
    """Give each row that can be read and is sound, and note the others: a page can be readable, its bytes others'."""
    table, listed = saved.table, ", ".join(names)
    rows = _by_rowid(source, table, listed, saved) if table in _WITH_ROWID else _by_key(source, table, listed, saved)
    for row in rows:
        wrong = fault(table, dict(zip(names, row, strict=True)), judge_job)
        if not wrong:
            yield row
            continue
        saved.spoilt += 1
        if len(saved.faults) < _MAX_FAULTS:
            saved.faults.append(wrong)


def _by_rowid(source: sqlite3.Connection, table: str, listed: str, saved: Saved) -> Iterator[_Row]:
    select = f"SELECT rowid, {listed} FROM {table}"
    low, high = 0, None
    for row in _until_damage(source, f"{select} ORDER BY rowid", saved):
        low = int(str(row[0]))
        yield row[1:]
    if saved.is_whole:
        return
    for row in _until_damage(source, f"{select} WHERE rowid > {low} ORDER BY rowid DESC", saved):
        high = int(str(row[0]))
        yield row[1:]
    for rowid in range(low + 1, high if high is not None else low + _FURTHER):
        for row in _until_damage(source, f"{select} WHERE rowid = {rowid}", saved):
            yield row[1:]


def _by_key(source: sqlite3.Connection, table: str, listed: str, saved: Saved) -> Iterator[_Row]:
    yield from _until_damage(source, f"SELECT {listed} FROM {table}", saved)
    if not saved.is_whole:
        key = [row for row in source.execute(f"PRAGMA table_info({table})") if row[5]]
        order = ", ".join(f"{row[1]} DESC" for row in sorted(key, key=lambda row: int(row[5])))
        yield from _until_damage(source, f"SELECT {listed} FROM {table} ORDER BY {order}", saved)


def _until_damage(source: sqlite3.Connection, sql: str, saved: Saved) -> Iterator[_Row]:
    try:
        yield from source.execute(sql)
    except sqlite3.Error:
        saved.is_whole = False


def _put_in_place(directory: Path, fresh: Path) -> Path:
    """Keep the damaged file beside the new one. Move its log first, because it must never meet the new file."""
    path = directory / FILE_NAME
    aside = directory / f"{FILE_NAME}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in ("-wal", "-shm"):
        log = Path(f"{path}{suffix}")
        if log.exists():
            log.rename(f"{aside}{suffix}")
    os.link(path, aside)
    replace(fresh, path)
    return aside
