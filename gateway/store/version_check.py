"""Check if a gateway of this version could start on a journal. The check is short and changes nothing."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from gateway.store import sqlite_errors
from gateway.store.known_backends import KnownBackends, read_known
from gateway.store.learned_records import LEARNED
from gateway.store.protocol import StoreDamaged, StoreError
from gateway.store.row_checks import JudgeJob, judge_json
from gateway.store.sqlite import FILE_NAME, HISTORY, OPEN_JOBS
from gateway.store.statements import refuse_newer

# A look takes no longer. SQLite asks after so many of its steps whether it is over.
LOOK_SECONDS = 3.0
_STEPS = 20_000
# What a start reads whole, beside open jobs and the list of the history.
_TABLES = (
    "meta",
    "files",
    "uploads",
    "placements",
    "backends",
    "keys",
    "sign_ins",
    "poisonous",
    "restarts",
    "forgotten",
    "artifacts",
    "learned",
    "webhook_endpoints",
    "webhook_deliveries",
)


@dataclass(frozen=True, slots=True)
class Look:
    """Result of a look at a journal: warnings that do not prevent a start, and the backends that it knows."""

    warnings: list[str] = field(default_factory=list)
    known: KnownBackends = field(default_factory=KnownBackends)


def look(directory: Path, judge_job: JudgeJob = judge_json, seconds: float = LOOK_SECONDS) -> Look:
    """Read the rows of a journal that a start reads, if there is a journal, and then check the rest of it.

    Args:
        directory: the data directory.
        judge_job: judges open jobs.
        seconds: the maximum duration. The look leaves out what is left by then, and a warning says so.

    Raises:
        StoreError: a gateway could not start on it.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        return Look()
    with closing(open_unchanged(path)) as connection:
        try:
            refuse_newer(connection)
        except sqlite3.Error as error:
            raise _refusal(f"{path} can't be opened", error) from error
        deadline = time.monotonic() + seconds
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
        warnings, known = [], KnownBackends()
        try:
            there = _tables(connection)
            known = read_known(connection, there)
            _read_as_a_start(connection, there, judge_job, deadline)
            warnings = _damage_elsewhere(directory, connection)
        except TimeoutError:
            warnings.append(_unfinished(directory, seconds))
        except sqlite3.Error as error:
            if sqlite_errors.is_interrupted(error):
                warnings.append(_unfinished(directory, seconds))
            else:
                raise _refusal("the journal can't be read", error) from error
        return Look(warnings, known)


def look_at_backends(directory: Path) -> KnownBackends:
    """Return the backends that a journal knows, also while a gateway uses it; none if it can't be read."""
    path = directory / FILE_NAME
    try:
        with closing(open_unchanged(path)) as connection:
            return read_known(connection, _tables(connection))
    except (sqlite3.Error, OSError):
        return KnownBackends()


def look_at_learned(directory: Path) -> bytes:
    """Return what routing learned, also while a gateway uses the journal; empty if it can't be read."""
    path = directory / FILE_NAME
    try:
        if not path.is_file():
            return b""
        with closing(open_unchanged(path)) as connection:
            row = connection.execute(LEARNED).fetchone()
    except (sqlite3.Error, OSError):
        return b""
    return row[0] if row and isinstance(row[0], bytes) else b""


def open_unchanged(path: Path) -> sqlite3.Connection:
    """Open a journal for reading alone, and make no files beside it.

    If there is no log beside it, nobody uses it, because a gateway's log is there from its start to its stop. SQLite
    is then told that the file stays as it is: it would make a log and an index of it otherwise, and leave both.
    """
    is_at_rest = not path.with_name(f"{path.name}-wal").exists()
    uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_at_rest else ''}"
    return sqlite3.connect(uri, uri=True, isolation_level=None)


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}


def _read_as_a_start(connection: sqlite3.Connection, there: set[str], judge_job: JudgeJob, deadline: float) -> None:
    """Read the rows that a start reads.

    Raises:
        StoreDamaged: a start would refuse an open job.
        TimeoutError: it takes too long.
        sqlite3.Error: something can't be read.
    """
    if "jobs" in there:
        rows = connection.execute(OPEN_JOBS)
        names = [column[0] for column in rows.description]
        for row in rows:
            job = dict(zip(names, row, strict=True))
            if judge_job(job):
                raise StoreDamaged(f"the journal's open job {job['prompt_id']} is damaged; {sqlite_errors.RECOVER}")
            if time.monotonic() > deadline:
                raise TimeoutError
    if "history" in there:
        _read(connection, HISTORY)
    for table in _TABLES:
        if table in there:
            _read(connection, f"SELECT * FROM {table}")


def _read(connection: sqlite3.Connection, sql: str) -> None:
    for _ in connection.execute(sql):
        pass


def _damage_elsewhere(directory: Path, connection: sqlite3.Connection) -> list[str]:
    """Return a warning if there is damage where a start does not read.

    Raises:
        sqlite3.Error: it can't be looked at, or takes too long.
    """
    try:
        found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.Error as error:
        if not sqlite_errors.is_damage(error):
            raise
        found = str(error)
    if found == "ok":
        return []
    reason = " ".join(found.split())
    return [
        f"data_dir: the journal in {directory.resolve()} is damaged where a start does not read ({reason}); "
        "'comfyui-gateway journal check' says what of it"
    ]


def _unfinished(directory: Path, seconds: float) -> str:
    return (
        f"data_dir: the journal in {directory.resolve()} is large, and was not read to its end within {seconds:g} s; "
        "'comfyui-gateway journal check' reads all of it"
    )


def _refusal(what: str, error: sqlite3.Error) -> StoreError:
    kind = StoreDamaged if sqlite_errors.is_damage(error) else StoreError
    return kind(sqlite_errors.sentence(what, error))
