"""Record of what routing learned, and its SQL. PostgreSQL takes the same statements."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

LEARNED = "SELECT record FROM learned WHERE id=1"
_PUT = "INSERT INTO learned (id, record) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET record=excluded.record"


@dataclass(frozen=True, slots=True)
class LearnedRecord:
    """All that routing learned from runs, as lines of JSON. A new one replaces the old one."""

    record: bytes


def apply(connection: sqlite3.Connection, change: LearnedRecord) -> None:
    """Make a change, within the transaction that is open."""
    connection.execute(_PUT, (change.record,))
