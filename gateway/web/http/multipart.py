"""Multipart bodies (RFC 2046) within bounds: the bytes before the first part, and the parts that nobody keeps."""

from __future__ import annotations

from aiohttp import BodyPartReader, MultipartReader, StreamReader, web

# Bytes before the first part. aiohttp reads them line by line, and 50 MB of empty lines take 37 s of processor time.
MAX_PREAMBLE = 64 * 1024
_CHUNK = 2**16


class BoundedMultipartReader(MultipartReader):
    """aiohttp's reader, with a bound on the bytes before the first part."""

    async def _read_until_first_boundary(self) -> None:
        left = MAX_PREAMBLE
        while left > 0:
            line = await self._readline()
            if not line:
                raise ValueError("it ends before its first part")
            left -= len(line)
            if (stripped := line.rstrip()) in (self._boundary, self._boundary + b"--"):
                self._at_eof = stripped != self._boundary
                return
        raise ValueError(f"it has more than {MAX_PREAMBLE} bytes before its first part")


def reader_of(request: web.BaseRequest, content: StreamReader | None = None) -> BoundedMultipartReader:
    """Return the reader of a multipart request.

    Args:
        content: its unpacked body; None: the body as it comes.

    Raises:
        ValueError: the Content-Type has no boundary.
        AssertionError: it is not multipart.
    """
    return BoundedMultipartReader(request.headers, content or request.content)


async def skip(part: BodyPartReader, maximum: int) -> int | None:
    """Read a part that nobody keeps. Return its bytes; None, without the rest, once it has more than the maximum."""
    size = 0
    while chunk := await part.read_chunk(_CHUNK):
        size += len(chunk)
        if size > maximum:
            return None
    return size
