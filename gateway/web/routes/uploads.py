"""POST /upload/image and /upload/mask: into the gateway's own store, as a stream, and from there to the backends."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from os.path import splitext
from typing import Any

from aiohttp import web

from gateway.catalogue import merging
from gateway.comfy import json_codec
from gateway.comfy.client import BackendError, BadAnswer
from gateway.comfy.file_refs import ANNOTATED, KINDS, FileRef, file_ref
from gateway.files.identity import Known, has
from gateway.files.index import Upload
from gateway.files.masks import compose
from gateway.files.media_references import sentence
from gateway.files.transfer import FileMissing
from gateway.files.uploads import QuotaExceeded
from gateway.fleet.backend import Backend
from gateway.settings import LimitSettings
from gateway.store.blobs import BlobWriter
from gateway.tenants.limits import body_too_large, no_room
from gateway.web.guard.context import Context, caller, context_of
from gateway.web.http.responses import JSON, problem
from gateway.web.routes.forms import BadForm, Form, FormTooLarge, receive
from gateway.web.routes.view import locate


async def post_image(request: web.Request) -> web.StreamResponse:
    """Keep a file, and answer as ComfyUI does (server.py, image_upload)."""
    return await _upload(request, is_mask=False)


async def post_mask(request: web.Request) -> web.StreamResponse:
    """Keep a picture with the mask that was sent. The backend that has the picture puts both together."""
    return await _upload(request, is_mask=True)


async def _upload(request: web.Request, *, is_mask: bool) -> web.StreamResponse:
    gateway = context_of(request)
    async with AsyncExitStack() as stack:
        try:
            form = await _receive(request, stack)
            wanted = form.wanted()
            assert form.writer is not None
            if (refusal := await _refuse_reference(gateway, request, wanted, form.writer)) is not None:
                return refusal
            if is_mask:
                return await _keep_mask(request, form, form.writer, wanted, stack)
            ref = await gateway.engine.uploads.add(
                caller(request).tenant, wanted, form.writer, overwrite=form.overwrite
            )
        except BadForm as error:
            return problem(400, "invalid_upload", "The file can't be taken", str(error))
        except FormTooLarge as error:
            return problem(413, "upload_too_large", "The file is too large", str(error))
        except QuotaExceeded as error:
            return problem(507, "uploads_full", "There is no room for the file", str(error))
    return _answer(gateway, caller(request).tenant, form, wanted, ref)


async def _refuse_reference(
    gateway: Context, request: web.Request, wanted: FileRef, writer: BlobWriter
) -> web.Response | None:
    """Return the refusal of a file that names other files, if the caller may open none but its own."""
    if caller(request).is_admin or not gateway.is_judged(caller(request).tenant):
        return None
    found = await gateway.engine.transfer.references.of_file(wanted.filename, await writer.spool())
    if found is None:
        return None
    return problem(400, "file_names_others", "The file names other files", sentence(wanted.filename, found))


def _answer(gateway: Context, tenant: str, form: Form, wanted: FileRef, ref: FileRef) -> web.Response:
    upload = gateway.engine.files.find(tenant, ref)
    if isinstance(upload, Upload):
        place = partial(gateway.engine.places.of, tenant, ref)
        gateway.engine.transfer.spread(place, upload, gateway.policies.of(tenant).allowed)
    # A renamed file keeps whatever path was part of its name.
    name = form.filename if ref == wanted else form.filename[: -len(wanted.filename)] + ref.filename
    body = {"name": name, "subfolder": form.fields.get("subfolder", ""), "type": form.kind}
    return web.Response(body=json_codec.dumps_exact(body), headers={"Content-Type": JSON})


def _limit(gateway: Context, tenant: str) -> int:
    """Return the maximum size of an upload: no more than some backend of the tenant takes."""
    allowed = gateway.policies.of(tenant).allowed
    backends = [b for b in gateway.fleet.backends.values() if allowed is None or b.name in allowed]
    return merging.upload_limit((backend.features for backend in backends), gateway.settings.uploads.max_size)


def _check_own(own: LimitSettings, size: int) -> None:
    """Raise `LimitReached` if a body is larger than the tenant may send, or than the gateway may ever keep for it."""
    if own.body_bytes is not None and size > own.body_bytes:
        raise body_too_large(own.body_bytes, size)
    if own.upload_bytes is not None and size > own.upload_bytes:
        raise no_room(own.upload_bytes, 0, size)


async def _receive(request: web.Request, stack: AsyncExitStack) -> Form:
    gateway, tenant = context_of(request), caller(request).tenant
    own = gateway.limits.of(tenant)
    new_writer = gateway.engine.uploads.blobs.writer
    return await receive(request, stack, new_writer, _limit(gateway, tenant), partial(_check_own, own))


async def _keep_mask(
    request: web.Request, form: Form, mask: BlobWriter, wanted: FileRef, stack: AsyncExitStack
) -> web.StreamResponse:
    gateway, identity = context_of(request), caller(request)
    original = _original(form.fields.get("original_ref", ""))
    if original is None:
        details = """add a field 'original_ref' that names the picture: {"filename": …, "subfolder": …, "type": …}"""
        return problem(400, "invalid_original_ref", "The mask is for no picture that can be told", details)
    raw = await mask.seal()
    try:
        suffix = splitext(wanted.filename)[1]
        # The picture's folder may have been emptied since its backend got it.
        for anew in (False, True):
            found = await locate(gateway, identity, original, anew=anew)
            composed = await stack.enter_async_context(gateway.engine.uploads.blobs.writer())
            is_there = found is not None and await _compose(*found, mask, raw.size, suffix, composed)
            if is_there or not isinstance(gateway.engine.files.find(identity.tenant, original), Upload):
                break
    except BackendError as error:
        if isinstance(error, BadAnswer) and error.status == 500:
            # ComfyUI answers so if the mask is no picture, or has another size than its picture.
            details = "send a PNG with an alpha channel, in the size of the picture that 'original_ref' names"
            return problem(400, "invalid_mask", "The mask can't be put into its picture", details)
        details = f"{error}; try again later"
        return problem(503, "owner_unavailable", "The picture can't be reached", details, {"Retry-After": "5"})
    except FileMissing:
        is_there = False
    if not is_there:
        # Answer as ComfyUI does: with the name, though there is no such file.
        return _answer(gateway, identity.tenant, form, wanted, wanted)
    ref = await gateway.engine.uploads.add(
        identity.tenant, wanted, composed, overwrite=form.overwrite, compare=raw.digest
    )
    return _answer(gateway, identity.tenant, form, wanted, ref)


async def _compose(
    backend: Backend, there: FileRef, known: Known, mask: BlobWriter, size: int, suffix: str, into: BlobWriter
) -> bool:
    """Put a mask into its picture. Return False if the picture is missing, or was replaced by another one meanwhile."""
    is_made = await compose(backend, there, await mask.spool(), size, suffix, into)
    return is_made and await has(backend, there, known)


def _original(text: str) -> FileRef | None:
    try:
        value: Any = json_codec.loads(text)
        filename, kind, subfolder = value["filename"], value.get("type", "output"), value.get("subfolder", "")
    except (json_codec.MalformedJson, KeyError, TypeError, AttributeError):
        return None
    if not (isinstance(filename, str) and isinstance(kind, str) and isinstance(subfolder, str)):
        return None
    match = ANNOTATED.match(filename)
    if match:
        filename, kind = match["path"], match["kind"]
    if not filename or filename[0] == "/" or ".." in filename or kind not in KINDS:
        return None
    return file_ref(kind, subfolder, filename)
