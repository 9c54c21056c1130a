"""A large journal does not slow the gateway down: what is asked while it serves is found by an index."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from gateway.store import (
    artifact_statements,
    forgotten_records,
    sqlite,
    statements,
    v2_statements,
    webhook_statements,
)
from gateway.store.sqlite import FILE_NAME, SqliteStore

SERVING = {
    name: sql
    for module in (
        sqlite,
        statements,
        v2_statements,
        webhook_statements,
        artifact_statements,
        forgotten_records,
    )
    for name, sql in vars(module).items()
    if name.isupper() and isinstance(sql, str) and sql.startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))
}
# Read once, at the start, and whole.
AT_START = {
    "OPEN_JOBS",
    "HISTORY",
    "ENDPOINTS",
    "EVENTS",
    "DELIVERIES",
    "V2_KEYS",
    "V2_NOTES",
    "V2_CANCELED",
    "V2_ASSETS",
    "ARTIFACTS",
    "FORGOTTEN",
}
# Now and then, of a table with a few thousand rows of two numbers.
OF_MARKS = {"_DROP_MARKS"}
# The first rows of a table that is in this order.
BY_POSITION = {"_OLDEST"}


@pytest.fixture
async def journal(tmp_path: Path) -> sqlite3.Connection:
    """A journal's schema."""
    store = SqliteStore(tmp_path)
    await store.open()
    await store.close()
    return sqlite3.connect(tmp_path / FILE_NAME)


def plan(journal: sqlite3.Connection, sql: str) -> list[str]:
    """How SQLite goes about it."""
    rows = journal.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * sql.count("?"))
    return [str(row[3]) for row in rows]


async def test_each_statement_is_looked_at(journal: sqlite3.Connection) -> None:
    assert len(SERVING) >= 16
    assert {"_ENTRY", "_ENDED_BEFORE", "_UPDATE_JOB", "_DROP_HISTORY", *AT_START, *BY_POSITION} <= set(SERVING)
    journal.close()


@pytest.mark.parametrize("name", sorted(set(SERVING) - AT_START - BY_POSITION - OF_MARKS))
async def test_no_table_is_read_through(journal: sqlite3.Connection, name: str) -> None:
    steps = plan(journal, SERVING[name])
    assert not [step for step in steps if "SCAN" in step and "CONSTANT ROW" not in step], steps
    assert not [step for step in steps if "TEMP B-TREE" in step], steps
    journal.close()


async def test_the_start_reads_no_entries(journal: sqlite3.Connection) -> None:
    """They are the last column and not asked for, so that the pages which they fill are passed over."""
    columns = [row[1] for row in journal.execute("PRAGMA table_info(history)")]
    assert columns[-1] == "entry"
    # SQLite tells the length of a blob from the beginning of its row.
    assert "entry" not in SERVING["HISTORY"].replace("length(entry)", "").replace("entry_", "")
    assert plan(journal, SERVING["HISTORY"]) == ["SCAN history"]
    journal.close()
