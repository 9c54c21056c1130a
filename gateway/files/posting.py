"""POST of a file to a backend, as a form."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from gateway.comfy.client import BackendError, whole
from gateway.fleet.backend import Backend

# A file may take a minute, and a second more for each megabyte.
PATIENCE_SECONDS = 60.0
BYTES_A_SECOND = 1_000_000


class FileMissing(Exception):
    """A file is not where it was said to be."""


async def post_file(
    backend: Backend, path: str, file: Path, size: int, filename: str, fields: dict[str, str]
) -> tuple[int, bytes]:
    """POST a file as a form, streamed. Return (status, body).

    Raises:
        BackendError: the backend can't be reached.
        FileMissing: the file is not there.
    """
    form = aiohttp.FormData(quote_fields=False)
    for name, value in fields.items():
        form.add_field(name, value)
    try:
        source = await asyncio.to_thread(file.open, "rb")
    except OSError as error:
        raise FileMissing(f"'{filename}' can't be read: {error.strerror}") from error
    try:
        form.add_field("image", source, filename=filename, content_type="application/octet-stream")
        async with (
            asyncio.timeout(PATIENCE_SECONDS + size / BYTES_A_SECOND),
            backend.client.open("POST", path, data=form) as answer,
        ):
            return answer.status, await whole(answer)
    except TimeoutError as error:
        raise BackendError(f"backend '{backend.name}' did not take '{filename}' in time") from error
    finally:
        await asyncio.to_thread(source.close)
