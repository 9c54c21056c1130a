"""Look into files for references to other files, and remember the findings by the digest of their bytes."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from gateway.comfy.media_references import HEAD_BYTES, content_start, reference_by_name, reference_in
from gateway.store.blobs import BlobStore
from gateway.store.protocol import StoreError

MAX_REMEMBERED = 10_000
# A tag may be followed by another one: how often the file is read anew behind a tag.
_MAX_READS = 8


def sentence(filename: str, found: str) -> str:
    """Return the error for a file that names other files."""
    return f"The file '{filename}' names other files ({found}): it can't be used here. Use the files that it names."


class References:
    """Findings about files that name other files, by the digest of their bytes.

    A file is looked into in a thread, and at most `MAX_REMEMBERED` results are kept.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._found: OrderedDict[str, str | None] = OrderedDict()

    async def of_upload(self, filename: str, digest: str) -> str | None:
        """Return the kind of an upload that names other files, in words; None for one that names none.

        Raises:
            StoreError: the gateway's copy can't be read.
        """
        if (by_name := reference_by_name(filename)) is not None:
            return by_name
        if digest in self._found:
            self._found.move_to_end(digest)
            return self._found[digest]
        found = await self.of_file(filename, self._blobs.path(digest))
        self._found[digest] = found
        while len(self._found) > MAX_REMEMBERED:
            self._found.popitem(last=False)
        return found

    async def of_file(self, filename: str, path: Path) -> str | None:
        """Return the same of a file on the gateway's disk, which a backend is to know as `filename`.

        Raises:
            StoreError: it can't be read.
        """
        if (by_name := reference_by_name(filename)) is not None:
            return by_name
        try:
            return await asyncio.to_thread(_look_into, path)
        except OSError as error:
            raise StoreError(f"the gateway's copy of a file can't be read: {error.strerror}") from error


def _look_into(path: Path) -> str | None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return _reference_in(file, size)


def _reference_in(file: BinaryIO, size: int) -> str | None:
    offset = 0
    found: str | None = None
    for _ in range(_MAX_READS):
        file.seek(offset)
        head = file.read(HEAD_BYTES)
        found = reference_in(head)
        start = content_start(head)
        if found is None or start is None or not len(head) <= start < size - offset:
            return found
        # A film's cover may be larger than what is read. FFmpeg reads on behind the tag, and so does this.
        offset += start
    return found
