"""The backends that a journal knows: how many files it knows on each alone, and the URL that each had last."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gateway.comfy import json_codec

COUNT_FILES = "SELECT backend, count(*) FROM files GROUP BY backend"
# If object storage has a file, its name leads there, whatever becomes of its backend. The states are those of
# `artifacts.model.State` in which the bytes are safe. Look the names up in `files`, because that has an index of them.
COUNT_STORED_FILES = """SELECT files.backend, count(*) FROM artifacts CROSS JOIN files
    USING (tenant, kind, subfolder, filename) WHERE state IN ('stored', 'spooled') GROUP BY files.backend"""
READ_ADDRESSES = "SELECT value FROM meta WHERE key='backend_urls'"
PUT_ADDRESSES = "INSERT OR REPLACE INTO meta VALUES ('backend_urls', ?)"


@dataclass(frozen=True, slots=True)
class KnownBackends:
    """The backends that a journal knows, by name.

    Attributes:
        files: the number of files of jobs that the journal knows on each, and that object storage does not have.
        urls: the URL that each backend had when a gateway last ran. Journals of earlier versions have none.
    """

    files: Mapping[str, int] = field(default_factory=dict)
    urls: Mapping[str, str] = field(default_factory=dict)


def read_known(
    connection: sqlite3.Connection, tables: Collection[str] = ("files", "meta", "artifacts")
) -> KnownBackends:
    """Read the backends that a journal with these tables knows.

    Raises:
        sqlite3.Error: it can't be read.
    """
    files = dict(connection.execute(COUNT_FILES)) if "files" in tables else {}
    stored = dict(connection.execute(COUNT_STORED_FILES)) if files and "artifacts" in tables else {}
    files = {name: count - stored.get(name, 0) for name, count in files.items() if count > stored.get(name, 0)}
    row = connection.execute(READ_ADDRESSES).fetchone() if "meta" in tables else None
    return KnownBackends(files, _addresses(row[0]) if row else {})


def _addresses(text: object) -> dict[str, str]:
    """Return the URLs by name; none if the row was not written by `written_urls`."""
    try:
        found = json_codec.loads(str(text).encode())
    except json_codec.MalformedJson:
        return {}
    return {str(name): str(url) for name, url in found.items()} if isinstance(found, dict) else {}


def written_urls(urls: Mapping[str, str]) -> str:
    """Return URLs by name as the journal holds them."""
    return json_codec.dumps(dict(urls)).decode()
