"""Secret names in the texts of PNG files, written over with the names that a tenant knows (`outputs.hide_names`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from gateway.comfy.file_refs import FileRef, view_path
from gateway.comfy.png_texts import Patch, holds_texts, patched_part, text_patches
from gateway.fleet.backend import Backend
from gateway.telemetry.tasks import in_turns

# Sizes of the part of a PNG file that is searched for texts. They come before the picture's data.
USUAL_HEAD, MAX_HEAD = 2**17, 2**21
_CHUNK = 2**18
Rewrite = Callable[[bytes], bytes]


def may_hold_texts(there: FileRef) -> bool:
    """Return True if a file is a PNG file by its name."""
    return there.filename.lower().endswith(".png")


async def patches_for(backend: Backend, there: FileRef, rewrite: Rewrite) -> list[Patch]:
    """Return the patches for a PNG file on a backend.

    Args:
        rewrite: returns a text as the tenant is to see it.

    Raises:
        BackendError: the backend can't be reached.
    """
    head = b""
    for size in (USUAL_HEAD, MAX_HEAD):
        first = {"Range": f"bytes=0-{size - 1}"}
        async with backend.client.open("GET", view_path(there), headers=first) as found:
            if found.status in (200, 206):
                head, _ = await _up_to(found.content.iter_chunked(_CHUNK), size)
            else:
                head = b""
        if len(head) < size or size == MAX_HEAD or holds_texts(head):
            break
    return await in_turns(text_patches(head, rewrite))


async def patched(chunks: AsyncIterator[bytes], rewrite: Rewrite) -> AsyncIterator[bytes]:
    """Yield a whole PNG file as `patches_for` would have it."""
    head, rest = await _up_to(chunks, USUAL_HEAD)
    if len(head) == USUAL_HEAD and not holds_texts(head):
        more, after = await _up_to(_behind(rest, chunks), MAX_HEAD - USUAL_HEAD)
        head, rest = head + more, after
    told = patched_part(await in_turns(text_patches(head, rewrite)), head, 0)
    for start in range(0, len(told), _CHUNK):
        yield told[start : start + _CHUNK]
    async for chunk in _behind(rest, chunks):
        yield chunk


async def _up_to(chunks: AsyncIterator[bytes], size: int) -> tuple[bytes, bytes]:
    """Return the next `size` bytes of a stream, and what was read beyond them."""
    head = bytearray()
    async for chunk in chunks:
        head += chunk
        if len(head) >= size:
            break
    return bytes(head[:size]), bytes(head[size:])


async def _behind(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in chunks:
        yield chunk
