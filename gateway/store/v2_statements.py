"""SQL of the Comfy API v2. PostgreSQL takes the same statements, with its own marks for parameters."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from operator import attrgetter

from gateway.store.v2_records import (
    V2AssetRecord,
    V2AssetRemoval,
    V2CanceledRecord,
    V2CanceledRemoval,
    V2Change,
    V2KeyRecord,
    V2KeyRemoval,
    V2NoteRecord,
    V2NoteRemoval,
)

_CANCELED_COLUMNS = "tenant, prompt_id, created_at, started_at, ended_at"
_ASSET_COLUMNS = (
    "id, tenant, kind, subfolder, filename, digest, hash, size, content_type, file_path, created_at, expires_at, "
    "owns_upload"
)

V2_KEYS = "SELECT tenant, digest, taken_at FROM v2_keys ORDER BY taken_at"
V2_NOTES = "SELECT tenant, prompt_id, note FROM v2_notes"
V2_CANCELED = f"SELECT {_CANCELED_COLUMNS} FROM v2_canceled ORDER BY ended_at"
V2_ASSETS = f"SELECT {_ASSET_COLUMNS} FROM v2_assets ORDER BY created_at, id"

_PUT_KEY = """INSERT INTO v2_keys (tenant, digest, taken_at) VALUES (?,?,?)
ON CONFLICT (tenant, digest) DO UPDATE SET taken_at=excluded.taken_at"""
_DROP_KEY = "DELETE FROM v2_keys WHERE tenant=? AND digest=?"
_PUT_NOTE = """INSERT INTO v2_notes (tenant, prompt_id, note) VALUES (?,?,?)
ON CONFLICT (tenant, prompt_id) DO UPDATE SET note=excluded.note"""
_DROP_NOTE = "DELETE FROM v2_notes WHERE tenant=? AND prompt_id=?"
_PUT_CANCELED = f"""INSERT INTO v2_canceled ({_CANCELED_COLUMNS}) VALUES (?,?,?,?,?)
ON CONFLICT (tenant, prompt_id) DO UPDATE SET created_at=excluded.created_at, started_at=excluded.started_at,
ended_at=excluded.ended_at"""
_DROP_CANCELED = "DELETE FROM v2_canceled WHERE tenant=? AND prompt_id=?"
_PUT_ASSET = f"""INSERT INTO v2_assets ({_ASSET_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)
ON CONFLICT (id) DO UPDATE SET expires_at=excluded.expires_at, owns_upload=excluded.owns_upload"""
_DROP_ASSET = "DELETE FROM v2_assets WHERE id=?"

_asset = attrgetter(*_ASSET_COLUMNS.split(", "))
_canceled = attrgetter(*_CANCELED_COLUMNS.split(", "))


def apply(connection: sqlite3.Connection, change: V2Change) -> None:
    """Make a change, within the transaction that is open."""
    match change:
        case V2KeyRecord(tenant, digest, taken_at):
            connection.execute(_PUT_KEY, (tenant, digest, taken_at))
        case V2KeyRemoval(tenant, digest):
            connection.execute(_DROP_KEY, (tenant, digest))
        case V2NoteRecord(tenant, prompt_id, note):
            connection.execute(_PUT_NOTE, (tenant, prompt_id, note))
        case V2NoteRemoval(tenant, prompt_id):
            connection.execute(_DROP_NOTE, (tenant, prompt_id))
        case V2CanceledRecord():
            connection.execute(_PUT_CANCELED, _canceled(change))
        case V2CanceledRemoval(tenant, prompt_id):
            connection.execute(_DROP_CANCELED, (tenant, prompt_id))
        case V2AssetRecord():
            connection.execute(_PUT_ASSET, _asset(change))
        case V2AssetRemoval(id_):
            connection.execute(_DROP_ASSET, (id_,))


class V2Rows(ABC):
    """The reads of a store of SQL, for the Comfy API v2."""

    @abstractmethod
    async def _rows(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        """Return the rows of a query."""

    async def v2_keys(self) -> list[V2KeyRecord]:
        """Return all used Idempotency-Keys, the oldest first."""
        return [V2KeyRecord(*row) for row in await self._rows(V2_KEYS)]  # type: ignore[arg-type]

    async def v2_notes(self) -> list[V2NoteRecord]:
        """Return all notes about jobs."""
        return [V2NoteRecord(*row) for row in await self._rows(V2_NOTES)]  # type: ignore[arg-type]

    async def v2_canceled(self) -> list[V2CanceledRecord]:
        """Return all jobs that were cancelled without a history entry, the oldest first."""
        return [V2CanceledRecord(*row) for row in await self._rows(V2_CANCELED)]  # type: ignore[arg-type]

    async def v2_assets(self) -> list[V2AssetRecord]:
        """Return all assets, the oldest first."""
        return [V2AssetRecord(*row) for row in await self._rows(V2_ASSETS)]  # type: ignore[arg-type]
