"""Rule of the sweep: may a file that lies in a backend's folder be deleted there? Pure.

A file is known by its name, its size and the time of its last change together, because a name alone may mean another
file by now (`gateway.files.identity`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.comfy.file_refs import FileRef
from gateway.files.deleted import Deleted
from gateway.files.forgotten import Forgotten
from gateway.files.identity import CACHED, GONE, UNTOLD, are_same


class Verdict(StrEnum):
    """Answer about a file in a backend's folder.

    Deletable: STORED in object storage, DELETED by its owner, FORGOTTEN for long enough, UNUSED input of the gateway's.
    To be kept: IN_USE by an open job, NOT_STORED yet, used or forgotten RECENTly, CHANGED since the gateway saw a file
    of that name, UNKNOWN to the gateway.
    """

    STORED = "stored"
    DELETED = "deleted"
    FORGOTTEN = "forgotten"
    UNUSED = "unused"
    IN_USE = "in_use"
    NOT_STORED = "not_stored"
    RECENT = "recent"
    CHANGED = "changed"
    UNKNOWN = "unknown"

    @property
    def is_deletable(self) -> bool:
        """Return True if the file may be deleted."""
        return self in (Verdict.STORED, Verdict.DELETED, Verdict.FORGOTTEN, Verdict.UNUSED)


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it lies in a backend's folder. `mtime_ns` is the time of its last change, in nanoseconds since 1970."""

    ref: FileRef
    size: int
    mtime_ns: int

    @property
    def etag(self) -> str:
        """Return the ETag with which the backend serves the file (aiohttp, web_fileresponse.py)."""
        return f'"{self.mtime_ns:x}-{self.size:x}"'


@dataclass(frozen=True, slots=True)
class Claim:
    """A tenant's file of a name. `etag` is as in `Holder`, but the ETag of the stored bytes if no other is known."""

    etag: str | None
    is_stored: bool = False


@dataclass(frozen=True, slots=True)
class Placed:
    """A file that the gateway put on a backend under a name.

    `idle_seconds` is the time since its last use there. `is_read` tells if a job on that backend may read it.
    """

    etag: str
    idle_seconds: float
    is_read: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the gateway knows of a name on a backend. `is_named` tells if an open job may name it."""

    claims: Sequence[Claim] = ()
    deleted: Deleted | None = None
    forgotten: Forgotten | None = None
    placed: Placed | None = None
    is_named: bool = False


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds until a forgotten file may be deleted, and until an unused one may that the gateway put on a backend."""

    forgotten: float
    unused: float


def judge(seen: Seen, facts: Facts, now: int, delays: Delays) -> Verdict:
    """Return the verdict about a file. `now` is in milliseconds since 1970."""
    if facts.is_named:
        return Verdict.IN_USE
    found = [_of_claim(seen, claim) for claim in facts.claims]
    # Each tenant's claim must agree, because a file that one tenant has in the store may be another's only copy.
    for keeps in (Verdict.IN_USE, Verdict.UNKNOWN, Verdict.NOT_STORED):
        if keeps in found:
            return keeps
    if Verdict.STORED in found:
        return Verdict.STORED
    if facts.placed is not None and _is_it(seen, facts.placed.etag):
        return _of_placed(facts.placed, delays.unused)
    if facts.deleted is not None and facts.deleted.is_surely(seen.etag):
        return Verdict.DELETED
    if facts.forgotten is not None and _is_it(seen, facts.forgotten.etag):
        is_old = now - facts.forgotten.forgotten_at >= delays.forgotten * 1000
        return Verdict.FORGOTTEN if is_old else Verdict.RECENT
    is_known = facts.claims or facts.placed or facts.deleted or facts.forgotten
    return Verdict.CHANGED if is_known else Verdict.UNKNOWN


def _is_it(seen: Seen, etag: str) -> bool:
    return etag not in (UNTOLD, GONE, CACHED) and are_same(seen.etag, etag)


def _of_claim(seen: Seen, claim: Claim) -> Verdict:
    if claim.etag is None or claim.etag == CACHED:
        # Its job is not over.
        return Verdict.IN_USE
    if claim.etag == UNTOLD:
        return Verdict.UNKNOWN
    if not _is_it(seen, claim.etag):
        return Verdict.CHANGED
    return Verdict.STORED if claim.is_stored else Verdict.NOT_STORED


def _of_placed(placed: Placed, unused_after: float) -> Verdict:
    if placed.is_read:
        return Verdict.IN_USE
    return Verdict.UNUSED if placed.idle_seconds >= unused_after else Verdict.RECENT
