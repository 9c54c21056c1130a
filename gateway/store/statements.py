"""SQL of each change, and the schema's migrations."""

from __future__ import annotations

import sqlite3
import zlib
from dataclasses import fields
from importlib import resources
from operator import attrgetter

from gateway.store.artifact_records import ArtifactChange
from gateway.store.artifact_statements import apply as apply_artifact
from gateway.store.backend_records import PoisonousRecord, PoisonousRemoval, RestartRecord
from gateway.store.forgotten_records import ForgottenChange
from gateway.store.forgotten_records import apply as apply_forgotten
from gateway.store.known_backends import PUT_ADDRESSES
from gateway.store.learned_records import LearnedRecord
from gateway.store.learned_records import apply as apply_learned
from gateway.store.protocol import (
    BackendRecord,
    BackendUrls,
    Change,
    ClockReading,
    DeletedRecord,
    DeletedRemoval,
    FileRecord,
    FileRemoval,
    HistoryRecord,
    HistoryRemoval,
    JobRecord,
    JobRemoval,
    JobUpdate,
    KeyRecord,
    KeyRemoval,
    KeyUse,
    ModelNames,
    PlacementRecord,
    SignInRecord,
    SignInRemoval,
    StoreError,
    TimeMark,
    UploadEnd,
    UploadRecord,
    UploadRemoval,
)
from gateway.store.v2_records import V2Change
from gateway.store.v2_statements import apply as apply_v2
from gateway.store.webhook_records import WebhookChange
from gateway.store.webhook_statements import apply as apply_webhook
from gateway.store.workflow_records import WorkflowChange
from gateway.store.workflow_statements import apply as apply_workflow
from gateway.telemetry.times import was_set

_PUT_JOB = "INSERT OR REPLACE INTO jobs VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_UPDATE_JOB = """UPDATE jobs SET state=?, backend=?, upstream_id=?, start_time=?, attempts=?, node_errors=?, mark=?,
given_up=?, tag=? WHERE tenant=? AND prompt_id=?"""
_DROP_JOB = "DELETE FROM jobs WHERE tenant=? AND prompt_id=?"
_PUT_HISTORY = """INSERT OR REPLACE INTO history
(tenant, prompt_id, backend, upstream_id, number, outcome, digest, node_errors, summary, entry)
VALUES (?,?,?,?,?,?,?,?,?,?)"""
_DROP_HISTORY = "DELETE FROM history WHERE tenant=? AND prompt_id=?"
_PUT_FILE = "INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?,?)"
_DROP_FILE = "DELETE FROM files WHERE tenant=? AND kind=? AND subfolder=? AND filename=?"
_PUT_DELETED = "INSERT OR REPLACE INTO deleted VALUES (?,?,?,?,?,?,?)"
_DROP_DELETED = "DELETE FROM deleted WHERE backend=? AND kind=? AND subfolder=? AND filename=?"
_PUT_UPLOAD = "INSERT OR REPLACE INTO uploads VALUES (?,?,?,?,?,?,?,?,?)"
_END_UPLOAD = "UPDATE uploads SET ended=1 WHERE tenant=? AND kind=? AND subfolder=? AND filename=?"
_DROP_UPLOAD = "DELETE FROM uploads WHERE tenant=? AND kind=? AND subfolder=? AND filename=?"
_PUT_PLACEMENT = "INSERT OR REPLACE INTO placements VALUES (?,?,?,?,?,?,?)"
_PUT_BACKEND = "INSERT OR REPLACE INTO backends VALUES (?,?,?,?,?,?)"
_PUT_POISONOUS = "INSERT OR REPLACE INTO poisonous VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
_DROP_POISONOUS = "DELETE FROM poisonous WHERE id=?"
_PUT_RESTART = "INSERT OR REPLACE INTO restarts VALUES (?,?,?,?)"
_CLOCK = "SELECT value FROM meta WHERE key='clock'"
_PUT_CLOCK = "INSERT OR REPLACE INTO meta VALUES ('clock', ?)"
# Twice, for while they are moved one by one no two may be at the same time.
_MOVE_MARKS = ("UPDATE marks SET time = time + (1 << 60)", "UPDATE marks SET time = time - (1 << 60) + ?")
# Clocks that are kept right go apart too, by little.
_PUT_MARK = "INSERT OR REPLACE INTO marks SELECT ?, coalesce(max(position), 0) FROM history"
# A mark is of use until all that it tells of is gone, and the next one then tells as much.
_DROP_MARKS = "DELETE FROM marks WHERE position < (SELECT min(position) FROM history)"
_PUT_MODELS = "INSERT OR REPLACE INTO meta VALUES ('model_names', ?)"
_PUT_KEY = "INSERT OR REPLACE INTO keys VALUES (?,?,?,?,?,?,?,?,?)"
_KEEP_CLOSED = "INSERT OR IGNORE INTO meta VALUES ('had_keys', '1')"
_USE_KEY = "UPDATE keys SET used_at=? WHERE name=?"
_DROP_KEY = "DELETE FROM keys WHERE name=?"
_PUT_SIGN_IN = "INSERT OR REPLACE INTO sign_ins VALUES (?,?,?)"
_DROP_SIGN_IN = "DELETE FROM sign_ins WHERE digest=?"

# Getters rather than dataclasses.astuple, which copies deeply and would hold the interpreter from the event loop.
_job = attrgetter(*(field.name for field in fields(JobRecord)))
_file = attrgetter(*(field.name for field in fields(FileRecord)))
_file_key = attrgetter(*(field.name for field in fields(FileRemoval)))
_deleted = attrgetter(*(field.name for field in fields(DeletedRecord)))
_deleted_key = attrgetter(*(field.name for field in fields(DeletedRemoval)))
_upload = attrgetter(*(field.name for field in fields(UploadRecord)))
_upload_key = attrgetter(*(field.name for field in fields(UploadRemoval)))
_placement = attrgetter(*(field.name for field in fields(PlacementRecord)))
_backend = attrgetter(*(field.name for field in fields(BackendRecord)))
_poisonous = attrgetter(*(field.name for field in fields(PoisonousRecord)))
_key = attrgetter(*(field.name for field in fields(KeyRecord)))
_ended = attrgetter(*(field.name for field in fields(HistoryRecord) if field.name not in ("entry", "kept", "packed")))
_job_update = attrgetter(
    "state",
    "backend",
    "upstream_id",
    "start_time",
    "attempts",
    "node_errors",
    "mark",
    "given_up",
    "tag",
    "tenant",
    "prompt_id",
)


_FileChange = (
    FileRecord
    | FileRemoval
    | DeletedRecord
    | DeletedRemoval
    | UploadRecord
    | UploadEnd
    | UploadRemoval
    | PlacementRecord
)


def apply(connection: sqlite3.Connection, change: Change) -> None:
    """Make a change, within the transaction that is open."""
    match change:
        case JobRecord():
            connection.execute(_PUT_JOB, _job(change))
        case JobUpdate():
            connection.execute(_UPDATE_JOB, _job_update(change))
        case JobRemoval(tenant, prompt_id):
            connection.execute(_DROP_JOB, (tenant, prompt_id))
        case HistoryRecord():
            packed = change.packed or zlib.compress(change.entry, 3)
            connection.execute(_PUT_HISTORY, (*_ended(change), packed))
            change.kept.bytes = len(packed) + len(change.summary) + len(change.node_errors or b"")
            connection.execute(_DROP_JOB, (change.tenant, change.prompt_id))
        case HistoryRemoval(tenant, prompt_id):
            connection.execute(_DROP_HISTORY, (tenant, prompt_id))
        case BackendRecord():
            connection.execute(_PUT_BACKEND, _backend(change))
        case BackendUrls() | ModelNames() | ClockReading() | TimeMark() | LearnedRecord():
            _apply_note(connection, change)
        case PoisonousRecord() | PoisonousRemoval() | RestartRecord():
            _apply_healing(connection, change)
        case KeyRecord() | KeyUse() | KeyRemoval() | SignInRecord() | SignInRemoval():
            _apply_access(connection, change)
        case _:
            _apply_more(connection, change)


def _apply_more(
    connection: sqlite3.Connection,
    change: _FileChange | WebhookChange | V2Change | WorkflowChange | ArtifactChange | ForgottenChange,
) -> None:
    if isinstance(change, WebhookChange):
        apply_webhook(connection, change)
    elif isinstance(change, V2Change):
        apply_v2(connection, change)
    elif isinstance(change, WorkflowChange):
        apply_workflow(connection, change)
    elif isinstance(change, ArtifactChange):
        apply_artifact(connection, change)
    elif isinstance(change, ForgottenChange):
        apply_forgotten(connection, change)
    else:
        _apply_file(connection, change)


def _apply_file(connection: sqlite3.Connection, change: _FileChange) -> None:
    match change:
        case FileRecord():
            connection.execute(_PUT_FILE, _file(change))
        case FileRemoval():
            connection.execute(_DROP_FILE, _file_key(change))
        case DeletedRecord():
            connection.execute(_PUT_DELETED, _deleted(change))
        case DeletedRemoval():
            connection.execute(_DROP_DELETED, _deleted_key(change))
        case UploadRecord():
            connection.execute(_PUT_UPLOAD, _upload(change))
        case UploadEnd():
            connection.execute(_END_UPLOAD, _upload_key(change))
        case UploadRemoval():
            connection.execute(_DROP_UPLOAD, _upload_key(change))
        case PlacementRecord():
            connection.execute(_PUT_PLACEMENT, _placement(change))


def _apply_note(
    connection: sqlite3.Connection, change: BackendUrls | ModelNames | ClockReading | TimeMark | LearnedRecord
) -> None:
    match change:
        case BackendUrls(text):
            connection.execute(PUT_ADDRESSES, (text,))
        case ModelNames(text):
            connection.execute(_PUT_MODELS, (text,))
        case ClockReading():
            _read_clock(connection, change)
        case TimeMark(time):
            connection.execute(_DROP_MARKS)
            connection.execute(_PUT_MARK, (time,))
        case LearnedRecord():
            apply_learned(connection, change)


def _apply_healing(connection: sqlite3.Connection, change: PoisonousRecord | PoisonousRemoval | RestartRecord) -> None:
    match change:
        case PoisonousRecord():
            connection.execute(_PUT_POISONOUS, _poisonous(change))
        case PoisonousRemoval(id_):
            connection.execute(_DROP_POISONOUS, (id_,))
        case RestartRecord(backend, attempts, reason, outcome):
            connection.execute(_PUT_RESTART, (backend, attempts, reason, outcome))


def _apply_access(
    connection: sqlite3.Connection, change: KeyRecord | KeyUse | KeyRemoval | SignInRecord | SignInRemoval
) -> None:
    match change:
        case KeyRecord():
            connection.execute(_PUT_KEY, _key(change))
            connection.execute(_KEEP_CLOSED)
        case KeyUse(name, used_at):
            connection.execute(_USE_KEY, (used_at, name))
        case KeyRemoval(name):
            connection.execute(_DROP_KEY, (name,))
        case SignInRecord(digest, key_digest, expires):
            connection.execute(_PUT_SIGN_IN, (digest, key_digest, expires))
        case SignInRemoval(digest):
            connection.execute(_DROP_SIGN_IN, (digest,))


def _read_clock(connection: sqlite3.Connection, reading: ClockReading) -> None:
    row, offset = connection.execute(_CLOCK).fetchone(), reading.time - reading.uptime
    boot, _, before = str(row[0]).rpartition(" ") if row else ("", "", "0")
    if boot == reading.boot and was_set(int(before) / 1000, offset / 1000):
        connection.execute(_MOVE_MARKS[0])
        connection.execute(_MOVE_MARKS[1], (offset - int(before),))
    connection.execute(_PUT_CLOCK, (f"{reading.boot} {offset}",))


def migrations() -> list[tuple[int, str]]:
    """Return the numbered scripts in ``store/sql``, as (version, SQL), in order."""
    folder = resources.files("gateway.store") / "sql"
    scripts = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return [(int(name.split("_")[0]), (folder / name).read_text("utf-8")) for name in scripts]


def refuse_newer(connection: sqlite3.Connection) -> int:
    """Return the version of the schema.

    Raises:
        StoreError: a newer gateway wrote it.
        sqlite3.Error: the file can't be read.
    """
    version, known = int(connection.execute("PRAGMA user_version").fetchone()[0]), migrations()[-1][0]
    if version > known:
        raise StoreError(
            f"the journal has schema version {version}, this gateway knows up to {known}; "
            "start the newer gateway again, or use another data directory"
        )
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date, each version in a transaction of its own.

    Raises:
        StoreError: a newer gateway wrote it.
        sqlite3.Error: the file can't be read or written.
    """
    version = refuse_newer(connection)
    for number, script in migrations():
        if number > version:
            connection.executescript(f"BEGIN;\n{script}\nPRAGMA user_version={number};\nCOMMIT;")
