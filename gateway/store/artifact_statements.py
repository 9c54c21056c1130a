"""SQL of files in object storage. PostgreSQL takes the same statements, with its own marks for parameters."""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from operator import attrgetter

from gateway.store.artifact_records import ArtifactChange, ArtifactDeletion, ArtifactRecord, ArtifactRemoval

_NAMES = [field.name for field in fields(ArtifactRecord)]
_COLUMNS = ", ".join(_NAMES)
ARTIFACTS = f"SELECT {_COLUMNS} FROM artifacts ORDER BY created_at, key"
PAGE = f"SELECT {_COLUMNS} FROM artifacts WHERE key > ? ORDER BY key LIMIT ?"
OBJECTS = "SELECT key FROM artifacts WHERE key IN (?)"
SHARED_OBJECTS = "SELECT shared_key FROM artifacts WHERE shared_key IN (?)"
_PUT_ARTIFACT = f"""INSERT INTO artifacts ({_COLUMNS}) VALUES ({", ".join("?" * len(_NAMES))})
ON CONFLICT (key) DO UPDATE SET {", ".join(f"{name}=excluded.{name}" for name in _NAMES if name != "key")}"""
_DROP_ARTIFACT = "DELETE FROM artifacts WHERE key=?"
_DELETE_ARTIFACT = "UPDATE artifacts SET state='deleting', kind='', subfolder='', filename='' WHERE key=?"

_artifact = attrgetter(*_NAMES)


def apply(connection: sqlite3.Connection, change: ArtifactChange) -> None:
    """Make a change, within the transaction that is open."""
    match change:
        case ArtifactRecord():
            connection.execute(_PUT_ARTIFACT, _artifact(change))
        case ArtifactRemoval(key):
            connection.execute(_DROP_ARTIFACT, (key,))
        case ArtifactDeletion(key):
            connection.execute(_DELETE_ARTIFACT, (key,))
