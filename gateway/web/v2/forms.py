"""The form of POST /api/v2/assets, read as a stream and within bounds. Fields may come before or behind the file."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from blake3 import blake3

from gateway.comfy.file_refs import ANNOTATED, FileRef, file_ref
from gateway.store.blobs import BlobStore, BlobWriter
from gateway.web.http.form_reader import FormReader, TooMuchUnread, decoded
from gateway.web.http.v2_errors import V2Error
from gateway.web.v2.outputs import UNKNOWN_TYPE, type_of

MAX_FIELD, MAX_PARTS = 8 * 1024, 64
CHUNK = 2**18
# Bytes of a form beside its file.
MAX_BESIDE = 2**20
# A file's name, and a part of its folder, in bytes (web/routes/forms.py has the same).
MAX_NAME, MAX_FOLDER = 200, 255
MIN_LIFE, MAX_LIFE = 60, 604_800
_ROOT = "input"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,60}(?:; ?[A-Za-z0-9=_\"-]{1,60})?")
_FIELDS = frozenset({"content_type", "file_path", "expected_hash", "expires_in", "tags"})


@dataclass(slots=True)
class AssetForm:
    """A received form: its fields, the file's bytes in `writer`, and their BLAKE3."""

    fields: dict[str, str] = field(default_factory=dict)
    writer: BlobWriter | None = None
    part_type: str = ""
    hash: Any = field(default_factory=blake3)


async def receive(
    request: web.Request, stack: AsyncExitStack, blobs: BlobStore, limit: int, check: Callable[[int], None]
) -> AssetForm:
    """Read the form of a request.

    Args:
        stack: the writer of the file's bytes ends with it.
        limit: the bytes that a file may have.
        check: told of the bytes of the file that have come; raises if they are too many for the tenant.

    Raises:
        V2Error: it is no form, or too large.
    """
    if request.content_type != "multipart/form-data":
        raise V2Error(422, "invalid_request", "Expected multipart/form-data.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise V2Error(415, "invalid_request", "A form must not be compressed.")
    if (request.content_length or 0) > limit + MAX_BESIDE:
        raise V2Error(413, "payload_too_large", f"Upload exceeds {limit} bytes.")
    form = AssetForm()
    try:
        reader = FormReader.of(request)
        for _ in range(MAX_PARTS):
            part = await reader.next()
            if part is None:
                return form
            if not isinstance(part, BodyPartReader):
                raise V2Error(422, "invalid_request", "Malformed multipart body.")
            if not await _take(part, form, stack, blobs, limit, check):
                await reader.skip(part, MAX_BESIDE)
            # Many parts may have come at once: others are served meanwhile.
            await asyncio.sleep(0)
    except TooMuchUnread as error:
        said = f"The parts beside the file have more than {MAX_BESIDE} bytes."
        raise V2Error(413, "payload_too_large", said) from error
    except (HttpProcessingError, ValueError, AssertionError, LookupError, RuntimeError) as error:
        raise V2Error(422, "invalid_request", "Malformed multipart body.") from error
    raise V2Error(413, "payload_too_large", f"A form has at most {MAX_PARTS} parts.")


async def _take(
    part: BodyPartReader,
    form: AssetForm,
    stack: AsyncExitStack,
    blobs: BlobStore,
    limit: int,
    check: Callable[[int], None],
) -> bool:
    """Take a part of a form. Return False if nobody wants it."""
    if part.name == "file" and form.writer is None:
        form.part_type = part.headers.get("Content-Type", "")
        form.writer = await stack.enter_async_context(blobs.writer())
        async for data in decoded(part, CHUNK):
            form.hash.update(data)
            await form.writer.write(data)
            check(form.writer.size)
            if form.writer.size > limit:
                raise V2Error(413, "payload_too_large", f"Upload exceeds {limit} bytes.")
    elif part.name in _FIELDS:
        form.fields.setdefault(part.name, await _text(part))
    else:
        return False
    return True


async def _text(part: BodyPartReader) -> str:
    data = bytearray()
    while chunk := await part.read_chunk(MAX_FIELD):
        data += chunk
        if len(data) > MAX_FIELD:
            raise V2Error(413, "payload_too_large", f"A field has at most {MAX_FIELD} bytes.")
    return part.decode(bytes(data)).decode("utf-8")


def checked_path(path: Any) -> FileRef:
    """Return the name in the upload store that a file_path asks for.

    Raises:
        V2Error: it is missing, malformed, or leads elsewhere than below input.
    """
    if not isinstance(path, str) or not path:
        raise V2Error(422, "invalid_request", "Missing 'file_path'.")
    shown = repr(path[:100])
    parts = path.replace("\\", "/").split("/")
    if path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", path):
        raise V2Error(422, "invalid_request", f"file_path must be relative: {shown}")
    if ".." in parts:
        raise V2Error(422, "invalid_request", f"file_path must not contain '..': {shown}")
    if _CONTROL.search(path):
        raise V2Error(422, "invalid_request", "file_path must not contain control characters.")
    if len(parts) > 1 and parts[0] != _ROOT:
        said = f"{parts[0][:100]!r} is not an allowlisted placement root (allowed: ['{_ROOT}'])."
        raise V2Error(422, "invalid_request", said)
    ref = file_ref(_ROOT, "", "/".join(parts[1:] if len(parts) > 1 else parts))
    if ref is None:
        raise V2Error(422, "invalid_request", f"file_path names no file: {shown}")
    if ANNOTATED.match(ref.filename):
        # A graph that names such a file means one of another folder.
        raise V2Error(422, "invalid_request", f"file_path must not end with a folder in brackets: {shown}")
    longest = max(len(each.encode()) for each in ref.subfolder.split("/"))
    if len(ref.filename.encode()) > MAX_NAME or longest > MAX_FOLDER or len(path) > 1_000:
        said = f"A file's name has at most {MAX_NAME} bytes, and a folder's {MAX_FOLDER}."
        raise V2Error(422, "invalid_request", said)
    return ref


def checked_type(given: str, filename: str) -> str:
    """Return the content type that a client gave if it is one, else the one that the file's name tells."""
    return given if _TYPE.fullmatch(given) and given != UNKNOWN_TYPE else type_of(filename)


def checked_life(given: Any) -> int | None:
    """Return the seconds after which an asset is to be deleted; None if it is to stay.

    Raises:
        V2Error: it is no number, or out of bounds.
    """
    if given is None or given == "":
        return None
    is_number = isinstance(given, int) and not isinstance(given, bool)
    seconds = int(given) if is_number or (isinstance(given, str) and re.fullmatch(r"[0-9]{1,9}", given)) else -1
    if not MIN_LIFE <= seconds <= MAX_LIFE:
        raise V2Error(422, "invalid_request", f"'expires_in' must be {MIN_LIFE} to {MAX_LIFE} seconds.")
    return seconds
