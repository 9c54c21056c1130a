"""The embedded store: one SQLite file in WAL mode, one writer thread, many changes a commit.

Group commit: while one commit waits for the disk, the changes of all other requests gather, and the next commit takes
them all, so that the number of fsyncs does not grow with the number of prompts.

While the disk takes nothing (full, read-only), changes that can be refused fail at once. Changes that have happened
already are owed: the writer keeps them, and tries again every `RETRY_SECONDS`, in order, until they are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar, cast

from gateway.store import sqlite_errors
from gateway.store.artifact_queries import ArtifactQueries
from gateway.store.backend_records import PoisonousRecord, RestartRecord
from gateway.store.directory import take
from gateway.store.forgotten_records import FORGOTTEN, ForgottenRecord
from gateway.store.journal_health import JournalHealth
from gateway.store.known_backends import KnownBackends, read_known
from gateway.store.learned_records import LEARNED
from gateway.store.protocol import (
    BackendRecord,
    Change,
    DeletedRecord,
    FileRecord,
    HistoryRecord,
    JobRecord,
    KeptSize,
    KeyRecord,
    PlacementRecord,
    SignInRecord,
    StoreDamaged,
    StoreError,
    UploadRecord,
)
from gateway.store.row_checks import Unsound, are_columns, unpack
from gateway.store.statements import apply, migrate
from gateway.store.v2_statements import V2Rows
from gateway.store.webhook_records import DeliveryRecord, EndpointRecord, EventRecord
from gateway.store.webhook_statements import DELIVERIES, ENDPOINTS, EVENTS, PAYLOAD
from gateway.store.workflow_statements import WorkflowRows
from gateway.telemetry import logs
from gateway.telemetry.tasks import Failures

_T = TypeVar("_T")
_log = logs.get("store")

FILE_NAME = "gateway.sqlite3"
COPY_HINT = (
    "this journal was copied or moved here, so this gateway has a new identity towards the backends; what ran is found"
    " by asking them. If the gateway that it was copied from still runs, both serve the same open jobs: stop one"
)
MAX_GATHERED = 100_000
RETRY_SECONDS = 0.5
MAX_LOG_BYTES = 8 * 1024**2

OPEN_JOBS = "SELECT * FROM jobs ORDER BY create_time, rowid"
# Without the entries: they are the last column, so that SQLite need not read their pages, not even for their length.
HISTORY = """SELECT tenant, prompt_id, backend, upstream_id, number, outcome, digest, node_errors, summary,
length(entry) + length(summary) + ifnull(length(node_errors), 0)
FROM history ORDER BY position"""
_ENTRY = "SELECT entry FROM history WHERE tenant=? AND prompt_id=?"
_OLDEST = "SELECT tenant, prompt_id FROM history ORDER BY position LIMIT ?"
_ENDED_BEFORE = """SELECT tenant, prompt_id FROM history
WHERE position <= (SELECT max(position) FROM marks WHERE time <= ?) ORDER BY position LIMIT ?"""
HAD_KEYS = "SELECT 1 FROM meta WHERE key='had_keys'"
MODEL_NAMES = "SELECT value FROM meta WHERE key='model_names'"
# Writes one page, whatever is in it: whether the disk takes anything again.
_PROBE = "UPDATE meta SET value=value WHERE key='client_id'"


@dataclass(slots=True)
class _Batch:
    changes: Sequence[Change]
    done: asyncio.Future[None]
    can_be_refused: bool


class SqliteStore(ArtifactQueries, V2Rows, WorkflowRows):
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
        # When the oldest batch was gathered, of the gathered ones and of those that the writer has (monotonic).
        self._gathered_at, self._handed_at = 0.0, 0.0
        self._committing = False
        self._queue: queue.SimpleQueue[list[_Batch] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-reader")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock: IO[str] | None = None
        self._connection: sqlite3.Connection | None = None
        self._writing: sqlite3.Connection | None = None
        self._trouble = ""
        self._trouble_log = JournalHealth(directory)
        self._owed = 0
        self._failures = Failures()

    @property
    def trouble(self) -> str:
        """Return the reason why the journal can't be written now; empty while it can."""
        return self._trouble

    @property
    def owed(self) -> int:
        """Return the number of writes that are kept until the disk takes them."""
        return self._owed

    def lag(self, now: float) -> float:
        """Return the age of the oldest write that waits, in seconds; 0 if none does. `now` is the monotonic clock."""
        oldest = self._handed_at or (self._gathered_at if self._gathered else now)
        return now - oldest

    def size(self) -> int:
        """Return the bytes of the journal's files on the disk."""
        paths = [self._directory / f"{FILE_NAME}{suffix}" for suffix in ("", "-wal")]
        return sum(path.stat().st_size for path in paths if path.exists())

    async def open(self) -> None:
        """Take the directory, bring the schema up to date, start the writer."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._read(self._open, f"{self._directory / FILE_NAME} can't be opened")
        except StoreError:
            await self.close()
            raise
        self._thread = threading.Thread(target=self._write_loop, name="store-writer", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        self._lock = take(self._directory)
        self._connection = self._connect()
        migrate(self._connection)
        self._writing = self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._directory / FILE_NAME, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        connection.execute("PRAGMA busy_timeout=5000")
        # A log that one large commit made long is cut again; 4 MB of it are used between two checkpoints.
        connection.execute(f"PRAGMA journal_size_limit={MAX_LOG_BYTES}")
        return connection

    async def close(self) -> None:
        """Write the queued changes, close the file, give the directory back."""
        if self._thread is not None:
            if self._gathered:
                self._queue.put(self._gathered)
                self._gathered = []
            self._queue.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
            self._thread = None
        self._trouble_log.close()
        await self._read(self._close, "the journal can't be closed")
        self._reader.shutdown()

    def _close(self) -> None:
        for connection in (self._writing, self._connection):
            if connection is not None:
                connection.close()
        self._connection = self._writing = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- writing -------------------------------------------------------------------------------------------------

    def write(self, changes: Sequence[Change]) -> asyncio.Future[None]:
        """Queue changes for the next commit that the disk takes."""
        return self._gather(changes, can_be_refused=False)

    def try_write(self, changes: Sequence[Change]) -> asyncio.Future[None]:
        """Queue changes for the next commit, or refuse them."""
        return self._gather(changes, can_be_refused=True)

    def _gather(self, changes: Sequence[Change], *, can_be_refused: bool) -> asyncio.Future[None]:
        assert self._loop is not None
        done = self._loop.create_future()
        # Not every writer waits; what nobody waits for must not end as "exception was never retrieved".
        done.add_done_callback(_retrieve)
        if can_be_refused and self._trouble:
            done.set_exception(StoreError(self._trouble))
            return done
        if len(self._gathered) + self._owed >= MAX_GATHERED:
            done.set_exception(StoreError(self._trouble or "the journal can't keep up: the disk is too slow"))
            return done
        if not self._gathered:
            self._gathered_at = time.monotonic()
        self._gathered.append(_Batch(changes, done, can_be_refused))
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
        self._handed_at = self._handed_at or self._gathered_at
        self._queue.put(batches)

    def _settle(self, settled: list[_Batch], error: StoreError | None, owed: int, trouble_: str) -> None:
        self._owed, self._trouble = owed, trouble_
        if not owed:
            self._handed_at = 0.0
        self._trouble_log.note(trouble_, is_written=error is None)
        for batch in settled:
            if batch.done.done():
                continue
            if error is None:
                batch.done.set_result(None)
            else:
                batch.done.set_exception(error)

    def _write_loop(self) -> None:
        """Run the writer: commit, refuse, or keep and retry each batch from the queue. None in the queue ends it."""
        assert self._loop is not None
        owed: list[_Batch] = []
        is_in_trouble = is_last = False
        while not is_last:
            try:
                given = self._queue.get(timeout=RETRY_SECONDS if is_in_trouble else None)
            except queue.Empty:
                owed, is_in_trouble = self._try_commit(owed)
                continue
            is_last = given is None
            owed, is_in_trouble = self._try_commit(owed + (given or []))
            self._loop.call_soon_threadsafe(self._hand_over)
        if owed:
            error = StoreError("the journal was closed before the disk took this")
            self._loop.call_soon_threadsafe(self._settle, owed, error, 0, "")

    def _try_commit(self, batches: list[_Batch]) -> tuple[list[_Batch], bool]:
        """Commit like `_commit`; an unexpected error leaves all of them owed, because nothing else writes."""
        try:
            return self._commit(batches)
        except Exception as error:  # noqa: BLE001
            self._failures.report("store:writer", error)
            return batches, True

    def _commit(self, batches: list[_Batch]) -> tuple[list[_Batch], bool]:
        """Write batches in one commit. Return the batches that are owed, and True if the disk takes nothing."""
        assert self._loop is not None
        began = time.perf_counter()
        try:
            self._execute([change for batch in batches for change in batch.changes])
        except Exception as failure:  # noqa: BLE001
            # If a change can't be written, for any reason, go on, because nothing is ever written without this thread.
            if sqlite_errors.may_pass(failure):
                return self._put_off(batches, sqlite_errors.sentence("the journal can't be written", failure))
            if len(batches) > 1:
                return self._commit_one_by_one(batches)
            error = StoreError(sqlite_errors.sentence("the journal can't be written", failure))
            self._loop.call_soon_threadsafe(self._settle, batches, error, 0, "")
        else:
            self._loop.call_soon_threadsafe(self._settle, batches, None, 0, "")
        self._observe(time.perf_counter() - began)
        return [], False

    def _execute(self, changes: Sequence[Change]) -> None:
        connection = self._writing
        assert connection is not None
        try:
            connection.execute("BEGIN IMMEDIATE")
            if not changes:
                connection.execute(_PROBE)
            for change in changes:
                apply(connection, change)
            connection.execute("COMMIT")
        finally:
            # If a change failed, take back those before it, because the next commit begins its own transaction.
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    def _put_off(self, batches: list[_Batch], reason: str) -> tuple[list[_Batch], bool]:
        assert self._loop is not None
        owed = [batch for batch in batches if not batch.can_be_refused]
        refused = [batch for batch in batches if batch.can_be_refused]
        self._loop.call_soon_threadsafe(self._settle, refused, StoreError(reason), len(owed), reason)
        return owed, True

    def _commit_one_by_one(self, batches: list[_Batch]) -> tuple[list[_Batch], bool]:
        """Commit each batch alone, because one can't be written at all (a text that is none, a number too large)."""
        for place, batch in enumerate(batches):
            owed, is_in_trouble = self._commit([batch])
            if is_in_trouble:
                return self._commit(owed + batches[place + 1 :])
        return [], False

    # -- reading -------------------------------------------------------------------------------------------------

    async def _read(self, read: Callable[[], _T], what: str) -> _T:
        def guarded() -> _T:
            try:
                return read()
            except sqlite3.Error as error:
                is_damaged = sqlite_errors.is_damage(error)
                raise (StoreDamaged if is_damaged else StoreError)(sqlite_errors.sentence(what, error)) from error

        return await asyncio.get_running_loop().run_in_executor(self._reader, guarded)

    async def _records(self, kind: Callable[..., _T], sql: str) -> list[_T]:
        """Return the rows of a query as records of a kind."""
        return [kind(*row) for row in await self._rows(sql)]

    async def _rows(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        def read() -> list[tuple[object, ...]]:
            if self._connection is None:
                raise StoreError("the journal is closed")
            return self._connection.execute(sql, parameters).fetchall()

        return await self._read(read, "the journal can't be read")

    async def identity(self) -> str:
        """Return the stored client_id. It is made at the first start, and anew for a copy of the file.

        A ComfyUI knows one socket by a client_id (server.py, websocket_handler): a gateway on a copy of the journal
        with the same one would take the events of the gateway that it was copied from.
        """

        def read() -> str:
            assert self._connection is not None
            file = (self._directory / FILE_NAME).stat()
            mark, fresh = f"{file.st_dev}:{file.st_ino}", uuid.uuid4().hex
            known = dict(self._connection.execute("SELECT key, value FROM meta WHERE key IN ('client_id', 'file')"))
            is_copy = known.get("file", mark) != mark
            client_id = fresh if is_copy else str(known.get("client_id", fresh))
            if known != {"client_id": client_id, "file": mark}:
                rows = [("client_id", client_id), ("file", mark)]
                self._connection.execute("BEGIN")
                self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
                self._connection.execute("COMMIT")
            if is_copy:
                _log.warning("journal_copied", data_dir=str(self._directory.resolve()), hint=COPY_HINT)
            return client_id

        return await self._read(read, "the journal can't be read")

    async def names_key(self) -> bytes:
        """Return the stored key of secret names, 32 bytes, made at the first start."""

        def read() -> bytes:
            assert self._connection is not None
            fresh = secrets.token_hex(32)
            self._connection.execute("INSERT OR IGNORE INTO meta VALUES ('names_key', ?)", (fresh,))
            row = self._connection.execute("SELECT value FROM meta WHERE key='names_key'").fetchone()
            return bytes.fromhex(row[0])

        return await self._read(read, "the journal can't be read")

    async def open_jobs(self) -> list[JobRecord]:
        """Return all open jobs, oldest first."""
        return [JobRecord(*row) for row in await self._rows(OPEN_JOBS)]  # type: ignore[arg-type]

    async def history(self) -> list[HistoryRecord]:
        """Return all ended jobs without their entries, in the order in which they ended. Leave damaged rows out."""
        found = await self._rows(HISTORY)
        rows = [row for row in found if are_columns(row)]
        if len(rows) < len(found):
            _log.error("history_rows_damaged", rows=len(found) - len(rows), hint=sqlite_errors.RECOVER)
        return [HistoryRecord(*row[:-1], kept=KeptSize(cast(int, row[-1]))) for row in rows]  # type: ignore[arg-type, misc]

    async def history_entry(self, tenant: str, prompt_id: str) -> bytes | None:
        """Return one history entry, decompressed."""

        def read() -> bytes | None:
            if self._connection is None:
                raise StoreError("the journal is closed")
            row = self._connection.execute(_ENTRY, (tenant, prompt_id)).fetchone()
            try:
                return unpack(row[0]) if row else None
            except Unsound as error:
                raise StoreDamaged(f"{what}: it is damaged ({error}); {sqlite_errors.RECOVER}") from error

        what = f"the history entry of {prompt_id} can't be read"
        return await self._read(read, what)

    async def oldest_history(self, limit: int, ended_before: int | None = None) -> list[tuple[str, str]]:
        """Return the jobs that ended first; with `ended_before`, of the jobs that had ended by then."""
        sql, values = (_OLDEST, (limit,)) if ended_before is None else (_ENDED_BEFORE, (ended_before, limit))
        return [(str(tenant), str(prompt_id)) for tenant, prompt_id in await self._rows(sql, values)]

    async def files(self) -> list[FileRecord]:
        """Return all known files, the oldest first."""
        return await self._records(FileRecord, "SELECT * FROM files ORDER BY made_at")

    async def deleted(self) -> list[DeletedRecord]:
        """Return all files that owners deleted, the first deleted first."""
        return await self._records(DeletedRecord, "SELECT * FROM deleted ORDER BY deleted_at")

    async def forgotten(self) -> list[ForgottenRecord]:
        """Return all forgotten files of backends, the first forgotten first."""
        return await self._records(ForgottenRecord, FORGOTTEN)

    async def uploads(self) -> list[UploadRecord]:
        """Return all uploads."""
        return await self._records(UploadRecord, "SELECT * FROM uploads")

    async def placements(self) -> list[PlacementRecord]:
        """Return all placements of uploads on backends."""
        return await self._records(PlacementRecord, "SELECT * FROM placements")

    async def backends(self) -> list[BackendRecord]:
        """Return the record of each backend."""
        return await self._records(BackendRecord, "SELECT * FROM backends")

    async def poisonous(self) -> list[PoisonousRecord]:
        """Return the poisonous graphs, the oldest first."""
        return await self._records(PoisonousRecord, "SELECT * FROM poisonous ORDER BY since, id")

    async def restarts(self) -> list[RestartRecord]:
        """Return the restarts of each backend that was ever restarted."""
        return await self._records(RestartRecord, "SELECT * FROM restarts")

    async def known_backends(self) -> KnownBackends:
        """Return the backends that the journal knows, by name."""

        def read() -> KnownBackends:
            assert self._connection is not None
            return read_known(self._connection)

        return await self._read(read, "the journal can't be read")

    async def model_names(self) -> str:
        """Return the models that metrics name."""
        rows = await self._rows(MODEL_NAMES)
        return str(rows[0][0]) if rows else ""

    async def learned(self) -> bytes:
        """Return what routing learned."""
        rows = await self._rows(LEARNED)
        return rows[0][0] if rows and isinstance(rows[0][0], bytes) else b""

    async def keys(self) -> list[KeyRecord]:
        """Return all keys that were made over the admin API and not revoked."""
        return await self._records(KeyRecord, "SELECT * FROM keys")

    async def had_keys(self) -> bool:
        """Return True if a key was ever made over the admin API."""
        return bool(await self._rows(HAD_KEYS))

    async def sign_ins(self) -> list[SignInRecord]:
        """Return all sign-ins, ordered by their end."""
        return await self._records(SignInRecord, "SELECT * FROM sign_ins ORDER BY expires")

    async def webhook_endpoints(self) -> list[EndpointRecord]:
        """Return all endpoints of webhooks, the oldest first."""
        return await self._records(EndpointRecord, ENDPOINTS)

    async def webhook_events(self) -> list[EventRecord]:
        """Return all events of webhooks without their payload, the oldest first."""
        return await self._records(lambda *row: EventRecord(*row[:-1], b"", row[-1]), EVENTS)  # type: ignore[call-arg]

    async def webhook_deliveries(self) -> list[DeliveryRecord]:
        """Return all deliveries of webhooks."""
        return await self._records(DeliveryRecord, DELIVERIES)

    async def webhook_payload(self, event_id: str) -> bytes | None:
        """Return the payload of an event; None if the event is gone."""
        rows = await self._rows(PAYLOAD, (event_id,))
        return cast(bytes, rows[0][0]) if rows else None


def _retrieve(done: asyncio.Future[None]) -> None:
    if not done.cancelled():
        done.exception()
