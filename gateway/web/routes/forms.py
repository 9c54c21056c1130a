"""Forms with a file, read as a stream and within bounds, by the rules of ComfyUI (aiohttp's request.post())."""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field

from aiohttp import BodyPartReader, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.comfy.file_refs import KINDS, FileRef, file_ref
from gateway.store.blobs import BlobWriter
from gateway.web.http.decompression import BadPacking, UnknownCoding
from gateway.web.http.form_reader import FormReader, TooMuchUnread, decoded
from gateway.web.http.request_body import pieces
from gateway.web.routes.proxying import CHUNK

MAX_FIELD = 64 * 1024
MAX_PARTS = 1_000
# Maximum number of unpacked bytes of a form beside its file.
MAX_BESIDES = 2**20
_MAX_FOLDER = 255
# Python's codecs that take time which grows with the square of the text. Nobody sends names in them.
_SLOW = frozenset({"idna", "punycode"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# The fields that ComfyUI knows; any other is read and thrown away.
_FIELDS = frozenset({"type", "subfolder", "overwrite", "original_ref"})
_FORM = "multipart/form-data"
_SEND = f"send {_FORM} with a boundary, and a part named 'image' that has a filename"
# Maximum number of characters of a form that a refusal repeats.
MAX_TOLD = 200


class FormTooLarge(Exception):
    """Refusal of a form that is too large; the text names the limit."""


class BadForm(Exception):
    """Refusal of a body that is no form with a file; the text gives the reason, and tells what to send."""


@dataclass(slots=True)
class Form:
    """A received form: the fields that ComfyUI knows, and the file, whose bytes `writer` keeps."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    writer: BlobWriter | None = None

    @property
    def kind(self) -> str:
        """Return the folder; ComfyUI's default is input."""
        return self.fields.get("type", "input")

    @property
    def overwrite(self) -> bool:
        """Return True if the upload may overwrite a file of its name."""
        return self.fields.get("overwrite") in ("true", "1")

    def wanted(self) -> FileRef:
        """Return the name that the form asks for.

        Raises:
            BadForm: the name is malformed, too long, or leads out of its folder.
        """
        subfolder = self.fields.get("subfolder", "")
        if self.kind not in KINDS:
            raise BadForm(f"the field 'type' must be one of {', '.join(KINDS)}")
        if _CONTROL.search(subfolder + self.filename):
            raise BadForm("filename and subfolder must not hold control characters")
        ref = file_ref(self.kind, subfolder, self.filename)
        if ref is None:
            raise BadForm("filename and subfolder must name a file below its folder")
        # File systems hold names of 255 bytes; the rest is for what ComfyUI or the gateway may put in.
        if len(ref.filename.encode()) > 200 or _longest(ref.subfolder) > _MAX_FOLDER:
            raise BadForm(f"a filename has at most 200 bytes, and a part of a subfolder {_MAX_FOLDER}")
        return ref


def _longest(folder: str) -> int:
    """Return the bytes of the longest name in a path."""
    return max(len(part.encode()) for part in folder.split("/"))


class _Unpacked(StreamReader):
    """A body, unpacked piece by piece as it is read, because aiohttp's reader of forms takes bytes as they are."""

    def __init__(self, request: web.Request, packed: AsyncIterator[bytes], limit: int) -> None:
        # No more than one piece is held, so that this never pauses the connection, which is the body's to do.
        super().__init__(request.protocol, 2**24, loop=asyncio.get_running_loop())
        self._packed = packed
        self._maximum = limit + MAX_BESIDES
        self._size_taken = 0

    def feed_eof(self) -> None:
        """Note that there is no more. Nobody else waits for it, and the connection is the body's to resume."""
        self._eof = True

    async def _wait(self, _: str) -> None:
        """Have more to read, or the end. The reader calls this where it has nothing left."""
        piece = await anext(self._packed, b"")
        if not piece:
            self.feed_eof()
            return
        self._size_taken += len(piece)
        if self._size_taken > self._maximum:
            raise FormTooLarge(f"at most {self._maximum} bytes are taken, unpacked")
        self.feed_data(piece)


async def receive(
    request: web.Request,
    stack: AsyncExitStack,
    new_writer: Callable[[], AbstractAsyncContextManager[BlobWriter]],
    limit: int,
    check: Callable[[int], None],
) -> Form:
    """Read the form of a request.

    Args:
        stack: what ends with the request; the writer of the file's bytes does.
        limit: the bytes that a file may have.
        check: told of the bytes of the file that have come; raises if they are too many.

    Raises:
        BadForm: it is no form with a file.
        FormTooLarge: it has more of something than is taken.
        UnknownCoding, BadPacking: see `bodies.pieces`.
    """
    if (request.content_length or 0) > limit:
        raise FormTooLarge(f"at most {limit} bytes are taken")
    if request.content_type != _FORM:
        raise BadForm(f"the Content-Type is {request.content_type[:MAX_TOLD]!r}; {_SEND}")
    form = Form()
    try:
        reader = _reader(request, limit)
        for _ in range(MAX_PARTS):
            part = await reader.next()
            if part is None:
                break
            if not isinstance(part, BodyPartReader):
                raise BadForm(f"a part of it is a form of its own; {_SEND}")
            if not await _take(part, form, stack, new_writer, limit, check):
                await reader.skip(part, limit)
            # Many parts may have come at once: others are served meanwhile.
            await asyncio.sleep(0)
        else:
            raise FormTooLarge(f"a form has at most {MAX_PARTS} parts")
    except (BadPacking, UnknownCoding):
        raise
    except TooMuchUnread as error:
        raise FormTooLarge(f"at most {limit} bytes are taken") from error
    except (HttpProcessingError, ValueError, AssertionError, LookupError, RuntimeError) as error:
        # ComfyUI answers a bare 500.
        said = error.message if isinstance(error, HttpProcessingError) else str(error)
        reason = said.partition("\n")[0].strip(" :")[:MAX_TOLD] or "it is broken"
        raise BadForm(f"it can't be read: {reason}; {_SEND}") from error
    if form.writer is None or not form.filename:
        raise BadForm(f"no part of it is named 'image' and has a filename; {_SEND}")
    return form


def _reader(request: web.Request, limit: int) -> FormReader:
    is_packed = "Content-Encoding" in request.headers
    return FormReader.of(request, _Unpacked(request, pieces(request), limit) if is_packed else None)


async def _take(
    part: BodyPartReader,
    form: Form,
    stack: AsyncExitStack,
    new_writer: Callable[[], AbstractAsyncContextManager[BlobWriter]],
    limit: int,
    check: Callable[[int], None],
) -> bool:
    """Take a part of a form. Return False if nobody wants it."""
    if part.name == "image" and part.filename and form.writer is None:
        form.filename = readable(part.filename)
        form.writer = await stack.enter_async_context(new_writer())
        async for data in decoded(part, CHUNK):
            await form.writer.write(data)
            check(form.writer.size)
            if form.writer.size > limit:
                raise FormTooLarge(f"at most {limit} bytes are taken")
    elif part.name in _FIELDS and part.filename is None:
        form.fields.setdefault(part.name, await _text(part))
    else:
        return False
    return True


async def _text(part: BodyPartReader) -> str:
    data = bytearray()
    while chunk := await part.read_chunk(MAX_FIELD):
        data += chunk
        if len(data) > MAX_FIELD:
            raise FormTooLarge(f"a field has at most {MAX_FIELD} bytes")
    charset = part.get_charset(default="utf-8")
    if codecs.lookup(charset).name in _SLOW:
        raise LookupError(f"the charset {charset} is not taken")
    return readable(part.decode(bytes(data)).decode(charset, "surrogateescape" if charset == "utf-8" else "strict"))


def readable(name: str) -> str:
    """Return a name whose bytes are no UTF-8 as what they say in GB18030, else in Latin-1; any other as it is.

    ComfyUI keeps halves of surrogate pairs in its place, so that a prompt can name the file, and no URL can.
    """
    if name.isascii():
        return name
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name
    for charset in ("utf-8", "gb18030"):
        try:
            return raw.decode(charset)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")
