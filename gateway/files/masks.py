"""Masks: a picture whose transparency is drawn by a client, put together by the backend that has the picture."""

from __future__ import annotations

import uuid
from pathlib import Path

from gateway.comfy import json_codec
from gateway.comfy.client import MAX_ANSWER, BadAnswer, pieces
from gateway.comfy.file_refs import FileRef, view_path
from gateway.files.posting import post_file
from gateway.fleet.backend import Backend
from gateway.store.blobs import BlobWriter


async def compose(backend: Backend, original: FileRef, mask: Path, size: int, suffix: str, into: BlobWriter) -> bool:
    """Have a backend put a mask into a picture of its own; the result goes into a blob.

    Args:
        original: the picture, by its name on that backend.
        mask: the mask's file, of `size` bytes.
        suffix: that of the result, which decides its format.

    Returns:
        Whether there was such a picture. ComfyUI answers 200 and writes nothing if not (server.py, upload_mask).

    Raises:
        BackendError: the backend can't be reached, or does not take it.
        FileMissing, StoreError: the mask can't be read, or the result not be written.
    """
    reference = {"filename": original.filename, "subfolder": original.subfolder, "type": original.kind}
    fields = {"original_ref": json_codec.dumps(reference).decode(), "type": "temp"}
    # In the folder that is emptied at each start, under a name that nobody can guess.
    name = f"mask-{uuid.uuid4().hex}{suffix}"
    status, _ = await post_file(backend, "/upload/mask", mask, size, name, fields)
    if status != 200:
        raise BadAnswer(f"backend '{backend.name}' answered {status} to a mask", status)
    async with backend.client.open("GET", view_path(FileRef("temp", "", name))) as answer:
        if answer.status != 200:
            return False
        async for chunk in pieces(answer, MAX_ANSWER):
            await into.write(chunk)
    return True
