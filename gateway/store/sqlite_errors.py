"""Sentences for SQLite's errors: each names the fault of the journal, and the remedy."""

from __future__ import annotations

import sqlite3

_FULL = sqlite3.SQLITE_FULL
_READ_ONLY = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})
_UNWILLING = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

RECOVER = (
    "stop the gateway and run 'comfyui-gateway journal recover': it saves each entry that can be read, says how many, "
    "and keeps the damaged file"
)


def _code(failure: BaseException) -> int:
    """Return the primary result code of an SQLite error; 0 for anything else (https://sqlite.org/rescode.html)."""
    return int(getattr(failure, "sqlite_errorcode", 0) or 0) & 0xFF


def may_pass(failure: BaseException) -> bool:
    """Return True if the same write may succeed later: the disk, the memory or a lock is at fault, not the change."""
    return _code(failure) in {_FULL, *_READ_ONLY, *_UNWILLING}


def is_damage(failure: BaseException) -> bool:
    """Return True if the file itself is damaged, or is no database."""
    return _code(failure) in _DAMAGED


def is_interrupted(failure: BaseException) -> bool:
    """Return True if a read was interrupted: it reached its own time limit."""
    return _code(failure) == sqlite3.SQLITE_INTERRUPT


def sentence(what: str, failure: BaseException) -> str:
    """Return a sentence: `what` went wrong, the reason, and the remedy."""
    code = _code(failure)
    if code == _FULL:
        return f"{what}: the disk is full; free some space, nothing needs to be restarted"
    if code in _READ_ONLY:
        return f"{what}: the disk is read-only, or the file is ({failure}); make it writable"
    if code in _UNWILLING:
        return f"{what}: the disk takes nothing ({failure}); free some space or mend it"
    if code in _DAMAGED:
        return f"{what}: it is damaged ({failure}); {RECOVER}"
    return f"{what}: {failure}"
