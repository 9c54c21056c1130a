"""Bodies of a ComfyUI's answers: unpacked, and read within a bound."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator

import aiohttp

from gateway.comfy.backend_errors import BadAnswer

# Bytes of an answer that is read whole, unpacked, unless its kind says otherwise.
MAX_ANSWER = 32 * 2**20
UNPACKED_PIECE = 2**16


def checked(response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
    """Return an answer that has a status that a ComfyUI gives.

    Raises:
        BadAnswer: it is none, as 101 to what asked for no other protocol (RFC 9110, section 15).
    """
    if not 200 <= response.status < 600:
        response.close()
        raise BadAnswer(f"it answered {response.status}", response.status)
    return response


async def pieces(response: aiohttp.ClientResponse, maximum: int) -> AsyncIterator[bytes]:
    """Yield an answer, unpacked, as it comes.

    Raises:
        BadAnswer: it has more than `maximum` bytes, and may have no end, or can't be unpacked.
    """
    unpack = unpacker(response.headers.get("Content-Encoding", ""))
    size = 0 if response.method == "HEAD" or unpack else response.content_length or 0
    if size <= maximum:
        size = 0
        async for packed in response.content.iter_any():
            for piece in unpack(packed) if unpack else (packed,):
                size += len(piece)
                if size > maximum:
                    break
                yield piece
                if unpack:
                    # Little may unpack to much.
                    await asyncio.sleep(0)
            if size > maximum:
                break
    if size > maximum:
        raise _too_long(response, maximum)


def _too_long(response: aiohttp.ClientResponse, maximum: int) -> BadAnswer:
    response.close()
    return BadAnswer(f"an answer of more than {maximum} bytes", response.status)


def unpacker(coding: str) -> Callable[[bytes], Iterator[bytes]] | None:
    """Return a function that unpacks a body piece by piece; None if there is nothing to unpack.

    Raises:
        BadAnswer: the coding was not asked for.
    """
    coding = coding.strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return None
    if coding not in ("gzip", "deflate"):
        raise BadAnswer("an answer in a coding that was not asked for", 200)
    # To 32 it finds out by itself whether it is gzip or zlib's format.
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def unpack(packed: bytes) -> Iterator[bytes]:
        while packed and not inflate.eof:
            try:
                piece = inflate.decompress(packed, UNPACKED_PIECE)
            except zlib.error as error:
                raise BadAnswer(f"an answer that is not {coding}", 200) from error
            if piece:
                yield piece
            packed = inflate.unconsumed_tail

    return unpack


async def whole(response: aiohttp.ClientResponse, maximum: int = MAX_ANSWER) -> bytes:
    """Return all of an answer, unpacked.

    Raises:
        BadAnswer: it has more than `maximum` bytes.
    """
    if "Content-Encoding" in response.headers or (response.content_length or 0) > maximum:
        return b"".join([piece async for piece in pieces(response, maximum)])
    # Nearly all answers are a few bytes as they are: to read those takes less time than a generator does.
    body, size = [], 0
    while piece := await response.content.readany():
        size += len(piece)
        if size > maximum:
            raise _too_long(response, maximum)
        body.append(piece)
    return b"".join(body)
