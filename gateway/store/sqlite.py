"""The embedded store: one SQLite file in WAL mode, one writer thread, many changes a commit.

Group commit: while one commit waits for the disk, the changes of all other requests gather, and the next commit takes
them all, so that the number of fsyncs does not grow with the number of prompts.
"""

from __future__ import annotations

import asyncio
import fcntl
import queue
import sqlite3
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import IO, TypeVar

from gateway.store.protocol import (
    Change,
    FileRecord,
    FileRemoval,
    HistoryRecord,
    HistoryRemoval,
    JobRecord,
    JobRemoval,
    JobUpdate,
    PlacementRecord,
    StoreError,
    UploadRecord,
    UploadRemoval,
)

_T = TypeVar("_T")

FILE_NAME = "gateway.sqlite3"
LOCK_NAME = "gateway.lock"
MAX_GATHERED = 100_000

_PUT_JOB = "INSERT OR REPLACE INTO jobs VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_UPDATE_JOB = """UPDATE jobs SET state=?, backend=?, upstream_id=?, start_time=?, attempts=?, node_errors=?
WHERE tenant=? AND prompt_id=?"""
_DROP_JOB = "DELETE FROM jobs WHERE tenant=? AND prompt_id=?"
_PUT_HISTORY = """INSERT OR REPLACE INTO history
(tenant, prompt_id, backend, upstream_id, number, outcome, digest, node_errors, summary, entry)
VALUES (?,?,?,?,?,?,?,?,?,?)"""
_DROP_HISTORY = "DELETE FROM history WHERE tenant=? AND prompt_id=?"
_PUT_FILE = "INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?)"
_DROP_FILE = "DELETE FROM files WHERE tenant=? AND kind=? AND subfolder=? AND filename=?"
_PUT_UPLOAD = "INSERT OR REPLACE INTO uploads VALUES (?,?,?,?,?,?,?)"
_DROP_UPLOAD = "DELETE FROM uploads WHERE tenant=? AND kind=? AND subfolder=? AND filename=?"
_PUT_PLACEMENT = "INSERT OR REPLACE INTO placements VALUES (?,?,?,?,?,?,?)"
_HISTORY = """SELECT tenant, prompt_id, backend, upstream_id, number, outcome, digest, node_errors, summary
FROM history ORDER BY position"""

# Getters rather than dataclasses.astuple, which copies deeply and would hold the interpreter from the event loop.
_job = attrgetter(*(field.name for field in fields(JobRecord)))
_file = attrgetter(*(field.name for field in fields(FileRecord)))
_file_key = attrgetter(*(field.name for field in fields(FileRemoval)))
_upload = attrgetter(*(field.name for field in fields(UploadRecord)))
_upload_key = attrgetter(*(field.name for field in fields(UploadRemoval)))
_placement = attrgetter(*(field.name for field in fields(PlacementRecord)))
_ended = attrgetter(*(field.name for field in fields(HistoryRecord) if field.name != "entry"))
_job_update = attrgetter(
    "state", "backend", "upstream_id", "start_time", "attempts", "node_errors", "tenant", "prompt_id"
)


@dataclass(slots=True)
class _Batch:
    changes: Sequence[Change]
    done: asyncio.Future[None]


class SqliteStore:
    """`Store` in a directory of its own.

    Args:
        directory: made if it is not there; one gateway at a time.
        synchronous: ``FULL`` (a commit survives a power failure) or ``NORMAL`` (it survives the process alone).
        observe_commit: called with the seconds of each commit, from the writer thread.
    """

    def __init__(
        self, directory: Path, synchronous: str = "FULL", observe_commit: Callable[[float], None] = lambda _: None
    ) -> None:
        self._directory = directory
        self._synchronous = synchronous
        self._observe = observe_commit
        self._gathered: list[_Batch] = []
        self._committing = False
        self._queue: queue.SimpleQueue[list[_Batch] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-reader")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock: IO[str] | None = None
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Take the directory, bring the schema up to date, start the writer."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._read(self._open)
        except StoreError:
            await self.close()
            raise
        self._thread = threading.Thread(target=self._write_loop, name="store-writer", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = (self._directory / LOCK_NAME).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"{self._directory} is in use by another gateway; give each gateway a data directory of its own"
            ) from error
        except OSError as error:
            raise StoreError(f"{self._directory} can't be used as data directory: {error.strerror}") from error
        try:
            self._connection = self._connect()
            _migrate(self._connection)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self._directory / FILE_NAME} can't be opened: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._directory / FILE_NAME, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        connection.execute("PRAGMA busy_timeout=5000")
        return connection

    async def close(self) -> None:
        """Write what is queued, close the file, give the directory back."""
        if self._thread is not None:
            if self._gathered or self._committing:
                await asyncio.wait([self.write([])])
            self._queue.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
            self._thread = None
        await self._read(self._close)
        self._reader.shutdown()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write(self, changes: Sequence[Change]) -> asyncio.Future[None]:
        """Queue changes for the next commit."""
        assert self._loop is not None
        done = self._loop.create_future()
        # Not every writer waits; what nobody waits for must not end as "exception was never retrieved".
        done.add_done_callback(_retrieve)
        if len(self._gathered) >= MAX_GATHERED:
            done.set_exception(StoreError("the journal can't keep up: the disk is too slow"))
            return done
        self._gathered.append(_Batch(changes, done))
        if not self._committing:
            # At the end of this turn of the loop, so that all requests of the turn share a commit.
            self._committing = True
            self._loop.call_soon(self._hand_over)
        return done

    def _hand_over(self) -> None:
        """Give the writer all that has gathered; while it commits, the next batch gathers."""
        if not self._gathered:
            self._committing = False
            return
        batches, self._gathered = self._gathered, []
        self._queue.put(batches)

    def _settle(self, batches: list[_Batch], error: StoreError | None) -> None:
        for batch in batches:
            if batch.done.done():
                continue
            if error is None:
                batch.done.set_result(None)
            else:
                batch.done.set_exception(error)
        self._hand_over()

    def _write_loop(self) -> None:
        connection = self._connect()
        while (batches := self._queue.get()) is not None:
            self._commit(connection, batches)
        connection.close()

    def _commit(self, connection: sqlite3.Connection, batches: list[_Batch]) -> None:
        began = time.perf_counter()
        error: StoreError | None = None
        try:
            connection.execute("BEGIN IMMEDIATE")
            for batch in batches:
                for change in batch.changes:
                    _apply(connection, change)
            connection.execute("COMMIT")
        except Exception as failure:  # noqa: BLE001 - whatever it is, the thread must live, or nothing is ever written again
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if len(batches) > 1 and not isinstance(failure, sqlite3.Error):
                # One of them can't be written at all (a text that is none, a number too large); the others can.
                for batch in batches:
                    self._commit(connection, [batch])
                return
            error = StoreError(f"the journal can't be written: {failure}; free disk space or mend the disk")
        self._observe(time.perf_counter() - began)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._settle, batches, error)

    async def _read(self, read: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, read)

    async def _rows(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        def read() -> list[tuple[object, ...]]:
            if self._connection is None:
                raise StoreError("the journal is closed")
            try:
                return self._connection.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                raise StoreError(f"the journal can't be read: {error}") from error

        return await self._read(read)

    async def identity(self) -> str:
        """The stored client_id, made at the first start."""

        def read() -> str:
            assert self._connection is not None
            fresh = uuid.uuid4().hex
            self._connection.execute("INSERT OR IGNORE INTO meta VALUES ('client_id', ?)", (fresh,))
            row = self._connection.execute("SELECT value FROM meta WHERE key='client_id'").fetchone()
            return str(row[0])

        return await self._read(read)

    async def open_jobs(self) -> list[JobRecord]:
        """All open jobs, oldest first."""
        rows = await self._rows("SELECT * FROM jobs ORDER BY number, create_time")
        return [JobRecord(*row) for row in rows]  # type: ignore[arg-type]

    async def history(self) -> list[HistoryRecord]:
        """All ended jobs without their entries, in the order in which they ended."""
        return [HistoryRecord(*row) for row in await self._rows(_HISTORY)]  # type: ignore[arg-type]

    async def history_entry(self, tenant: str, prompt_id: str) -> bytes | None:
        """One history entry, decompressed."""
        rows = await self._rows("SELECT entry FROM history WHERE tenant=? AND prompt_id=?", (tenant, prompt_id))
        return zlib.decompress(rows[0][0]) if rows else None  # type: ignore[arg-type]

    async def files(self) -> list[FileRecord]:
        """All known files."""
        return [FileRecord(*row) for row in await self._rows("SELECT * FROM files")]  # type: ignore[arg-type]

    async def uploads(self) -> list[UploadRecord]:
        """All uploads."""
        return [UploadRecord(*row) for row in await self._rows("SELECT * FROM uploads")]  # type: ignore[arg-type]

    async def placements(self) -> list[PlacementRecord]:
        """What was put on which backend."""
        rows = await self._rows("SELECT * FROM placements")
        return [PlacementRecord(*row) for row in rows]  # type: ignore[arg-type]


def _apply(connection: sqlite3.Connection, change: Change) -> None:
    match change:
        case JobRecord():
            connection.execute(_PUT_JOB, _job(change))
        case JobUpdate():
            connection.execute(_UPDATE_JOB, _job_update(change))
        case JobRemoval(tenant, prompt_id):
            connection.execute(_DROP_JOB, (tenant, prompt_id))
        case HistoryRecord():
            connection.execute(_PUT_HISTORY, (*_ended(change), zlib.compress(change.entry, 3)))
            connection.execute(_DROP_JOB, (change.tenant, change.prompt_id))
        case HistoryRemoval(tenant, prompt_id):
            connection.execute(_DROP_HISTORY, (tenant, prompt_id))
        case FileRecord():
            connection.execute(_PUT_FILE, _file(change))
        case FileRemoval():
            connection.execute(_DROP_FILE, _file_key(change))
        case UploadRecord():
            connection.execute(_PUT_UPLOAD, _upload(change))
        case UploadRemoval():
            connection.execute(_DROP_UPLOAD, _upload_key(change))
        case PlacementRecord():
            connection.execute(_PUT_PLACEMENT, _placement(change))


def _retrieve(done: asyncio.Future[None]) -> None:
    if not done.cancelled():
        done.exception()


def migrations() -> list[tuple[int, str]]:
    """The numbered scripts in ``store/sql``, as (version, SQL), in order."""
    folder = resources.files("gateway.store") / "sql"
    scripts = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return [(int(name.split("_")[0]), (folder / name).read_text("utf-8")) for name in scripts]


def _migrate(connection: sqlite3.Connection) -> None:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    scripts = migrations()
    if version > scripts[-1][0]:
        raise StoreError(
            f"the journal has schema version {version}, this gateway knows up to {scripts[-1][0]}; "
            "start the newer gateway again, or use another data directory"
        )
    for number, script in scripts:
        if number > version:
            connection.executescript(f"BEGIN;\n{script}\nPRAGMA user_version={number};\nCOMMIT;")
