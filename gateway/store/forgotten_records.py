"""Records of files that the gateway knows no more, and their SQL. PostgreSQL takes the same statements."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from operator import attrgetter


@dataclass(frozen=True, slots=True)
class ForgottenRecord:
    """A file of a backend that the gateway forgot, by its name and ETag there.

    `forgotten_at` is in milliseconds since 1970.
    """

    backend: str
    kind: str
    subfolder: str
    filename: str
    etag: str
    forgotten_at: int


@dataclass(frozen=True, slots=True)
class ForgottenRemoval:
    """A forgotten file that is remembered no more: it was deleted, or too many are remembered."""

    backend: str
    kind: str
    subfolder: str
    filename: str


ForgottenChange = ForgottenRecord | ForgottenRemoval

_NAMES = [field.name for field in fields(ForgottenRecord)]
_KEY = [field.name for field in fields(ForgottenRemoval)]
FORGOTTEN = f"SELECT {', '.join(_NAMES)} FROM forgotten ORDER BY forgotten_at"
_PUT = f"""INSERT INTO forgotten ({", ".join(_NAMES)}) VALUES ({", ".join("?" * len(_NAMES))})
ON CONFLICT ({", ".join(_KEY)}) DO UPDATE SET etag=excluded.etag, forgotten_at=excluded.forgotten_at"""
_DROP = f"DELETE FROM forgotten WHERE {' AND '.join(f'{name}=?' for name in _KEY)}"

_record = attrgetter(*_NAMES)
_removal = attrgetter(*_KEY)


def apply(connection: sqlite3.Connection, change: ForgottenChange) -> None:
    """Make a change, within the transaction that is open."""
    match change:
        case ForgottenRecord():
            connection.execute(_PUT, _record(change))
        case ForgottenRemoval():
            connection.execute(_DROP, _removal(change))
