"""Placements: the name of each upload on each backend. Pure bookkeeping.

A name here is never given up. A ComfyUI has no route that deletes an input file, so a placed file may still be read,
and no other tenant may name it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count

from gateway.comfy.file_refs import FileRef
from gateway.files.free_names import marked

# The number that ComfyUI puts before the suffix of an upload whose name is taken (server.py, image_upload).
_NUMBER = re.compile(r" \(\d+\)(?=\.[^.]*$|$)")

# Seconds for which a file that was seen on a backend is taken to be there without another look.
TRUST_SECONDS = 30.0
# Seconds after which a sweep that was told to delete a file has deleted it or will not (`gateway/cli/sweep.py`).
LEAVING_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Placement:
    """Bytes on a backend: under `ref` there, with the ETag that its /view gave them (empty if it gave none)."""

    ref: FileRef
    etag: str


class Placements:
    """All placements."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, FileRef], Placement] = {}
        self._digests: dict[tuple[str, FileRef], str] = {}
        # The digests of all bytes that a backend got under a wanted name, whatever it called them.
        self._wanted: dict[tuple[str, FileRef], dict[str, None]] = {}
        self._names: set[FileRef] = set()
        # By kind and folder, in the spelling of `spelled_alike`: the files in it, and below it.
        self._below: dict[tuple[str, str], dict[FileRef, None]] = {}
        self._trusted: dict[str, dict[FileRef, float]] = {}
        # The ETag of each placed file, and the time at which a prompt last needed it. Times are seconds of one clock.
        self._etags: dict[tuple[str, FileRef], str] = {}
        self._used: dict[tuple[str, FileRef], float] = {}
        self._leaving: dict[tuple[str, FileRef], float] = {}
        self._arriving: Counter[FileRef] = Counter()
        # The time at which a backend last got a file that it had lost.
        self._again: dict[str, float] = {}

    def put(
        self, backend: str, wanted: FileRef, digest: str, placement: Placement, *, now: float | None = None
    ) -> None:
        """Note that bytes with the wanted name `wanted` are on a backend `now`, or since an earlier run (None)."""
        if now is not None and (backend, digest, wanted) in self._known:
            self._again[backend] = now
        self._wanted.setdefault((backend, wanted), {})[digest] = None
        self._known[backend, digest, wanted] = placement
        self._digests[backend, placement.ref] = digest
        self._etags[backend, placement.ref] = placement.etag
        if now is not None:
            self._use(backend, placement.ref, now)
        key = spelled_alike(placement.ref)
        self._names.add(key)
        folder = key.subfolder
        self._below.setdefault((key.kind, ""), {})[placement.ref] = None
        while folder:
            self._names.add(FileRef(key.kind, folder, ""))
            self._below.setdefault((key.kind, folder), {})[placement.ref] = None
            folder = folder.rpartition("/")[0]

    @contextmanager
    def arriving(self, asked: FileRef) -> Iterator[None]:
        """Note a file that is being sent. Until the context ends, each name that it may get counts as somebody's."""
        key = spelled_alike(asked)
        self._arriving[key] += 1
        try:
            yield
        finally:
            self._arriving[key] -= 1
            if not self._arriving[key]:
                del self._arriving[key]

    def trust(self, backend: str, placement: Placement, now: float) -> None:
        """Note that a file was seen on a backend. `now` is in seconds, by any clock that only goes on."""
        self._trusted.setdefault(backend, {})[placement.ref] = now
        self._use(backend, placement.ref, now)

    def _use(self, backend: str, ref: FileRef, now: float) -> None:
        self._used[backend, ref] = now
        self._leaving.pop((backend, ref), None)

    def placed(self, backend: str, ref: FileRef) -> tuple[str, float] | None:
        """Return the ETag of a file that the gateway put on a backend, and the time of its last use.

        The time is minus infinity if the file was not used since an earlier run. Return None if the gateway put no file
        there.
        """
        etag = self._etags.get((backend, ref))
        return None if etag is None else (etag, self._used.get((backend, ref), -math.inf))

    def leave(self, backend: str, ref: FileRef, now: float) -> None:
        """Note that a file may be deleted on its backend from now on.

        If a prompt needs the file meanwhile, put it there under another name, because the bytes that lie there still
        may be gone before the prompt runs.
        """
        self._trusted.get(backend, {}).pop(ref, None)
        self._leaving.pop((backend, ref), None)
        self._leaving[backend, ref] = now
        while self._leaving and now - self._leaving[oldest := next(iter(self._leaving))] >= LEAVING_SECONDS:
            del self._leaving[oldest]

    def is_leaving(self, backend: str, ref: FileRef, now: float) -> bool:
        """Return True if a sweep may delete a file at any moment."""
        return now - self._leaving.get((backend, ref), -math.inf) < LEAVING_SECONDS

    def is_trusted(self, backend: str, placement: Placement, now: float, seconds: float = TRUST_SECONDS) -> bool:
        """Return True if the file was seen there in the last `seconds`, and since the last `doubt`.

        A folder may be emptied while its backend runs.
        """
        seen = self._trusted.get(backend, {}).get(placement.ref)
        return seen is not None and now - seen < seconds

    def was_put_again(self, backend: str, since: float) -> bool:
        """Return True if the backend got back a lost file `since` then, because what it said before may be over."""
        return self._again.get(backend, -math.inf) >= since

    def staying(self, backend: str, asked: FileRef, now: float) -> FileRef:
        """Return a name for a file. If a sweep may delete what lies under the asked name, return another name."""
        name = asked
        for attempt in count(1):
            if not self.is_leaving(backend, name, now):
                break
            name = replace(asked, filename=marked(asked.filename, f"again-{attempt}"))
        return name

    def doubt(self, backend: str) -> None:
        """Trust no placement on a backend before a new look, because the backend may have come back empty."""
        self._trusted.pop(backend, None)

    def find(self, backend: str, wanted: FileRef, digest: str) -> Placement | None:
        """Return the placement of these bytes on a backend; None if there is none, or it was overwritten since."""
        placement = self._known.get((backend, digest, wanted))
        return placement if placement and self._digests.get((backend, placement.ref)) == digest else None

    def digest_at(self, backend: str, ref: FileRef) -> str | None:
        """Return the digest of the gateway's own bytes under a name on a backend; None if there are none."""
        return self._digests.get((backend, ref))

    def digests_of(self, backend: str, wanted: FileRef) -> list[str]:
        """Return the digests of all bytes that a backend got under a wanted name, whatever it called them."""
        return list(self._wanted.get((backend, wanted), ()))

    def below(self, folder: FileRef) -> Collection[FileRef]:
        """Return all tenants' uploads in or below a folder, on any backend. Don't keep them over an await."""
        return self._below.get((folder.kind, spelled_alike(folder).subfolder), {}).keys()

    def is_name(self, ref: FileRef) -> bool:
        """Return True if a backend has a tenant's upload under this name; without a filename, in or below this folder.

        An upload that is on its way to a backend counts, too.
        """
        key = spelled_alike(ref)
        return key in self._names or bool(
            self._arriving
            and (key in self._arriving or replace(key, filename=_NUMBER.sub("", key.filename)) in self._arriving)
        )


def spelled_alike(ref: FileRef) -> FileRef:
    """Return the common spelling of all names that a file system may take for this one.

    Windows and macOS ignore case. macOS ignores how an accent is composed. Windows ignores dots and blanks at the end
    of each part.
    """
    folder = "/".join(_part(part) for part in ref.subfolder.split("/"))
    return FileRef(ref.kind, folder, _part(ref.filename))


def _part(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold()).rstrip(" .")
