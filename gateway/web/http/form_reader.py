"""Reader of forms (multipart/form-data), with a bound for what comes before the first part.

A part's Content-Encoding means nothing (RFC 7578, section 4.8): its bytes are kept as they came, and counted so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import BodyPartReader, MultipartReader, StreamReader, web
from multidict import CIMultiDictProxy

# Bytes before the first part. aiohttp reads them line by line: 100 MB of empty lines would take 100 s of CPU time.
MAX_PREAMBLE = 4 * 1024
# Parameters of a part's Content-Disposition. aiohttp reads each empty one in a microsecond, three times.
MAX_PARAMETERS = 50
# Bytes of a part that are thrown away at a time.
SKIP = 64 * 1024


class TooMuchUnread(Exception):
    """Refusal of a form whose unknown parts have too many bytes."""


class FormReader(MultipartReader):
    """Reader of a form's parts. `skipped` is the number of bytes in parts that nobody wanted."""

    skipped = 0

    @classmethod
    def of(cls, request: web.Request, content: StreamReader | None = None) -> FormReader:
        """Return a reader of a request's form; `content` is the body if it is not as it came."""
        protocol = request.protocol
        return cls(
            request.headers,
            request.content if content is None else content,
            max_field_size=protocol.max_field_size,
            max_headers=protocol.max_headers,
        )

    async def skip(self, part: BodyPartReader, maximum: int) -> None:
        """Throw a part away.

        Raises:
            TooMuchUnread: all such parts have more than `maximum` bytes together. A body in chunks has no other bound.
        """
        while chunk := await part.read_chunk(SKIP):
            self.skipped += len(chunk)
            if self.skipped > maximum:
                raise TooMuchUnread

    async def _read_headers(self) -> CIMultiDictProxy[str]:
        """Read the headers of a part.

        Raises:
            ValueError: a Content-Disposition has too many parameters.
        """
        headers = await super()._read_headers()
        if any(each.count(";") > MAX_PARAMETERS for each in headers.getall("Content-Disposition", ())):
            raise ValueError(f"a Content-Disposition has more than {MAX_PARAMETERS} parameters")
        return headers

    async def _read_until_first_boundary(self) -> None:
        """Skip what comes before the first part (RFC 2046, section 5.1.1).

        Raises:
            ValueError: it is too long, or there is no part.
        """
        size = 0
        while line := await self._readline():
            stripped = line.rstrip()
            if stripped == self._boundary:
                return
            if stripped == self._boundary + b"--":
                self._at_eof = True
                return
            size += len(line)
            if size > MAX_PREAMBLE:
                raise ValueError(f"more than {MAX_PREAMBLE} bytes come before its first part")
        raise ValueError("its boundary does not come")


async def decoded(part: BodyPartReader, size: int) -> AsyncIterator[bytes]:
    """Yield the bytes of a part as they come, without its Content-Transfer-Encoding.

    Args:
        size: maximum number of bytes that are read at a time.

    Raises:
        RuntimeError, ValueError: the coding is unknown, or the bytes are not in it.
    """
    is_quoted = part.headers.get("Content-Transfer-Encoding", "").lower() == "quoted-printable"
    held = b""
    while chunk := await part.read_chunk(size):
        if is_quoted:
            # An equals sign and the two characters behind it belong together.
            chunk = held + chunk
            at = chunk.rfind(b"=", -2)
            chunk, held = (chunk[:at], chunk[at:]) if at >= 0 else (chunk, b"")
        yield bytes(part.decode(chunk))
    if held:
        yield bytes(part.decode(held))
