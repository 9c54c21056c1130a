"""/view: a file from the backend that has it. For a known file the gateway never takes the first 200 of any backend."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from urllib.parse import urlencode

from aiohttp import web

from gateway.artifacts.object_store import StorageError
from gateway.comfy.client import BackendError, Refused, Unreachable
from gateway.comfy.file_refs import ANNOTATED, KINDS, FileRef, folder_of, leads_to
from gateway.comfy.png_texts import Patch
from gateway.files.hidden_texts import may_hold_texts, patches_for
from gateway.files.identity import UNTOLD, Known, has, is_older, is_same
from gateway.files.index import Holder, Stored, Upload
from gateway.files.transfer import FileMissing, StoreDown
from gateway.files.values import Place
from gateway.fleet.backend import Backend
from gateway.jobs.files.inputs import identity_there
from gateway.tenants.keys import Identity
from gateway.web.guard.context import Context, UnknownTenant, caller, context_of, readable, whose
from gateway.web.http.request_keys import STREAMING
from gateway.web.http.responses import no_file, problem
from gateway.web.routes import stored_files
from gateway.web.routes.proxying import relay, upstream_headers

_CLOSED = "it lies on a backend that is dedicated to other tenants now; the operator can fetch it"
_OWN_QUERY = frozenset({"filename", "subfolder", "type", "token", "tenant"})


def requested_file(filename: str, subfolder: str | None, kind: str) -> FileRef | int:
    """Return the file that a query names, or the status with which ComfyUI refuses it (server.py, view_image)."""
    match = ANNOTATED.match(filename)
    if match:
        filename, kind = match["path"], match["kind"]
    if not filename or filename[0] == "/" or ".." in filename or kind not in KINDS:
        return 400
    folder = folder_of(subfolder or "")
    if folder.startswith(("/", "..")) or "\0" in folder + filename:
        return 403
    return FileRef(kind, folder, posixpath.basename(filename))


def _find(gateway: Context, identity: Identity, ref: FileRef) -> Place | None:
    found = gateway.engine.files.find(identity.tenant, ref)
    return gateway.engine.files.find_any(ref) if found is None and identity.is_admin else found


def _may_hold(gateway: Context, identity: Identity, ref: FileRef, upload: Upload) -> frozenset[str] | None:
    """Return the backends that an upload may be put on to be shown; None for all.

    If an admin asks, its owner's backends count, because code on other backends must not read the upload.
    """
    files, policies = gateway.engine.files, gateway.policies
    is_own = files.find(identity.tenant, ref) == upload
    owners = [identity.tenant] if is_own else files.owners(ref, upload)
    found = [allowed for owner in owners if (allowed := policies.of(owner).allowed) is not None]
    return frozenset().union(*found) if len(found) == len(owners) else None


def _place(gateway: Context, identity: Identity, ref: FileRef, upload: Upload) -> Callable[[str], FileRef]:
    """Return a function from a backend's name to an upload's placement there. If an admin asks, its owner's count."""
    is_own = gateway.engine.files.find(identity.tenant, ref) == upload
    owners = [identity.tenant] if is_own else gateway.engine.files.owners(ref, upload)
    return partial(gateway.engine.places.of, owners[0] if owners else identity.tenant, ref)


def _may_look_around(identity: Identity) -> bool:
    """Return True if an identity may see files unknown to the gateway. They may be anybody's, so not if isolated."""
    return identity.is_admin or not identity.isolated


def _is_kept_from(gateway: Context, identity: Identity, backend: Backend, ref: FileRef) -> bool:
    """Return True if a name on a backend is an upload's or another tenant's, or its owner deleted the file.

    A team sees files of no known owner.
    """
    engine = gateway.engine
    if engine.files.deleted.hides(backend.name, ref, engine.placements.digest_at(backend.name, ref)):
        return True
    if identity.is_admin:
        return False
    return gateway.engine.placements.is_name(ref) or gateway.engine.files.is_others(identity.tenant, backend.name, ref)


def _is_closed(gateway: Context, identity: Identity, backend: str) -> bool:
    """Return True if a backend is dedicated to others by now, so that not even the caller's own files come from it."""
    return not identity.is_admin and backend in gateway.policies.of(identity.tenant).closed


def _kept_since(gateway: Context, identity: Identity, backend: Backend, ref: FileRef) -> float | None:
    """Return the time from which new files there may be an isolated tenant's, not known yet; None if they can't be.

    The time is in seconds since 1970.
    """
    if identity.is_admin or ref.kind == "input":
        return None
    return gateway.engine.outputs.written_since(identity.tenant, backend.name)


async def get_view(request: web.Request) -> web.StreamResponse:
    """Stream a file of the caller's. The backend that has it answers Range and conditional headers."""
    query = request.rel_url.query
    if "filename" not in query:
        return problem(404, "no_filename", "The query names no file", "add ?filename=, and type and subfolder")
    ref = requested_file(query["filename"], query.get("subfolder"), query.get("type", "output"))
    if isinstance(ref, int):
        details = "filename is a path below a folder, and type one of input, output and temp"
        return problem(ref, "invalid_filename", "The query names no file", details)
    return await _from_known(request, ref, "/view") or await _from_anywhere(request, ref)


async def get_named(request: web.Request) -> web.StreamResponse | None:
    """Answer a request that names a file on another route than /view, such as that of a custom node's viewer.

    The file comes from the backend that has it. An isolated tenant gets its own files alone. Return None if the request
    may be passed on as it is.
    """
    query = request.rel_url.query
    ref = requested_file(query["filename"], query.get("subfolder"), query.get("type", "output"))
    try:
        found = await _from_known(request, ref, request.rel_url.raw_path) if isinstance(ref, FileRef) else None
    except UnknownTenant:
        # Ignore an unknown tenant, because the route may have a parameter of this name with another meaning.
        found = None
    if found is not None:
        return found
    path = "/".join(filter(None, (query.get("subfolder"), query["filename"])))
    if isinstance(ref, int) and any(map(context_of(request).engine.inputs.is_hidden, leads_to(path))):
        # A viewer may open any path of its host, so also those of files that their owners deleted.
        return no_file()
    return None if _may_look_around(caller(request)) and not _is_anothers(request, ref) else no_file()


async def send_known(request: web.Request, ref: FileRef) -> web.StreamResponse | None:
    """Answer with a file of the caller's, whatever the request's path is; return None for any other file."""
    return await _from_known(request, ref, "/view")


def _is_anothers(request: web.Request, ref: FileRef | int) -> bool:
    gateway, identity = context_of(request), caller(request)
    return isinstance(ref, FileRef) and any(
        _is_kept_from(gateway, identity, backend, ref) or _kept_since(gateway, identity, backend, ref) is not None
        for backend in gateway.fleet.by_preference
        if not _is_closed(gateway, identity, backend.name)
    )


async def _from_known(request: web.Request, ref: FileRef, path: str) -> web.StreamResponse | None:
    """Answer with a file that the gateway knows as the caller's; return None for any other file."""
    gateway, identity = context_of(request), whose(request)
    match _find(gateway, identity, ref):
        case Holder(stored=Stored() as stored) as holder:
            return await _from_store(request, ref, stored, holder, path)
        case Stored() as stored:
            return await _from_store(request, ref, stored, None, path)
        case Holder(name, there) as holder:
            backend = gateway.fleet.backends.get(name)
            if backend is None:
                return _removed(name, is_admin=caller(request).is_admin)
            # Check the caller itself, because an admin who asks as a tenant may see the file.
            if _is_closed(gateway, caller(request), name):
                return problem(404, "file_closed", "This file can't be had any more", _CLOSED)
            return await _from_backend(request, ref, backend, there, path, _expected(gateway, identity, there, holder))
        case Upload() as upload:
            return await _from_uploads(request, ref, upload, path)
    return None


async def _from_uploads(request: web.Request, ref: FileRef, upload: Upload, path: str) -> web.StreamResponse:
    """Answer with an upload: from the gateway's own copy, unless a backend has to convert it."""
    gateway = context_of(request)
    kept = gateway.engine.uploads.blobs.path(upload.digest)
    if _is_plain(request, path) and kept.is_file():
        gateway.engine.uploads.use(upload.digest)
        headers = stored_files.file_headers(ref.filename, request.headers)
        return web.FileResponse(kept, headers=headers, chunk_size=2**18)
    allowed = _may_hold(gateway, whose(request), ref, upload)
    place = _place(gateway, whose(request), ref, upload)
    # Try twice, because the folder may have been emptied since the backend got the upload.
    for anew in (False, True):
        try:
            backend, there = await gateway.engine.transfer.somewhere(place, upload, allowed, anew=anew)
        except BackendError as error:
            return problem(503, "no_backend", "No backend can show this file now", str(error), {"Retry-After": "5"})
        except FileMissing:
            break
        shown = await _from_backend(request, ref, backend, there, path, is_last=anew)
        if shown is not None:
            return shown
    return no_file()


def _is_plain(request: web.Request, path: str) -> bool:
    """Return True if a request is for the bytes of a file, so that no backend has to convert them."""
    query = request.rel_url.query
    return path == "/view" and "preview" not in query and query.get("channel") not in ("rgb", "a")


async def _from_store(
    request: web.Request, ref: FileRef, stored: Stored, holder: Holder | None, path: str
) -> web.StreamResponse:
    """Answer with a stored file. A backend answers if it has to convert the file, or if the store can't give it."""
    is_plain = _is_plain(request, path)
    if is_plain:
        try:
            redirect = await stored_files.redirect(request, stored)
            return redirect or await stored_files.serve(request, ref.filename, stored)
        except StorageError as error:
            is_missing = error.kind == "missing"
    backend, has_answered = _writer(context_of(request), caller(request), holder), False
    if holder is not None and backend is not None:
        try:
            known = identity_there(holder, stored)
            shown = await _from_one(request, ref, backend, holder.there, path, known, is_last=False)
            has_answered = True
        except BackendError:
            if request.get(STREAMING):
                raise
            shown = None
        if shown is not None:
            return shown
    if is_plain and is_missing and not has_answered:
        return _lost(context_of(request), caller(request), holder)
    if is_plain:
        return no_file() if is_missing else stored_files.unavailable()
    return await _from_copies(request, ref, stored, path)


def _lost(gateway: Context, identity: Identity, holder: Holder | None) -> web.Response:
    """Return the answer for a file that the store has lost. If its backend may have it still, the loss is not final."""
    backend = gateway.fleet.backends.get(holder.backend) if holder is not None else None
    if backend is None or _is_closed(gateway, identity, backend.name):
        return no_file()
    return _unavailable(backend.name, str(backend.health))


def _writer(gateway: Context, identity: Identity, holder: Holder | None) -> Backend | None:
    """Return the backend that wrote a stored file, if it is up and its files are open to the caller."""
    if holder is None or _is_closed(gateway, identity, holder.backend):
        return None
    backend = gateway.fleet.backends.get(holder.backend)
    return backend if backend is not None and backend.pulse.alive else None


async def _from_copies(request: web.Request, ref: FileRef, stored: Stored, path: str) -> web.StreamResponse:
    """Answer with a stored file that a backend has to convert: put it on one that its owner may use."""
    gateway = context_of(request)
    failure, is_missing = "no backend can be reached", False
    try:
        owner = _owner(gateway, whose(request), ref, stored)
        # If an admin asks, the owner's backends count, because code on other backends must not read the file.
        for backend in gateway.fleet.alive(gateway.policies.of(owner).allowed):
            try:
                there = await gateway.engine.inputs.copy_stored(owner, ref, stored, backend)
                shown = await _from_one(request, ref, backend, there, path, is_last=False)
            except StoreDown:
                return stored_files.unavailable()
            except BackendError as error:
                if request.get(STREAMING):
                    raise
                failure = str(error)
                continue
            if shown is not None:
                return shown
            is_missing = True
    except FileMissing:
        is_missing = True
    if is_missing:
        return no_file()
    return problem(503, "no_backend", "No backend can show this file now", failure, {"Retry-After": "5"})


def _owner(gateway: Context, identity: Identity, ref: FileRef, stored: Stored) -> str:
    """Return the tenant of a stored file that a caller may see: if an admin asks, it may be another tenant.

    Raises:
        FileMissing: nobody has the file any more.
    """
    own, known = gateway.engine.files.find(identity.tenant, ref), gateway.engine.stored_files
    if stored in (own, own.stored if isinstance(own, Holder) else None):
        return identity.tenant
    owner = None if known is None else known.owner(stored)
    if owner is None:
        raise FileMissing(f"'{ref.filename}' is nobody's")
    return owner


def _expected(gateway: Context, identity: Identity, there: FileRef, holder: Holder) -> Known:
    """Return the identity that the file must have: for an admin UNTOLD, because an admin sees any file."""
    return UNTOLD if identity.is_admin else gateway.engine.outputs.expected(identity.tenant, there, holder)


def _path(request: web.Request, ref: FileRef, path: str) -> str:
    rest = [(k, v) for k, v in request.rel_url.query.items() if k not in _OWN_QUERY]
    named = [("filename", ref.filename), *([("subfolder", ref.subfolder)] if ref.subfolder else []), ("type", ref.kind)]
    return f"{path}?" + urlencode([*named, *rest])


async def _from_backend(
    request: web.Request,
    ref: FileRef,
    backend: Backend,
    there: FileRef,
    path: str,
    known: Known = UNTOLD,
    *,
    is_last: bool = True,
) -> web.StreamResponse | None:
    """Answer with a file from a backend; return None if the backend has another file under this name.

    If the placement `is_last` of those to try, a backend's 404 is the answer; else return None for it.
    """
    try:
        return await _from_one(request, ref, backend, there, path, known, is_last=is_last)
    except Unreachable as error:
        if isinstance(error, Refused):
            context_of(request).fleet.refused(backend)
        return _unavailable(backend.name, str(backend.health))
    except BackendError:
        if request.get(STREAMING):
            raise
        return _unavailable(backend.name, str(backend.health))


async def _from_one(
    request: web.Request,
    ref: FileRef,
    backend: Backend,
    there: FileRef,
    path: str,
    known: Known = UNTOLD,
    *,
    is_last: bool,
) -> web.StreamResponse | None:
    """Answer as `_from_backend` does.

    Raises:
        BackendError: the backend can't be reached, or failed.
    """
    headers = upstream_headers(request.headers)
    hidden = await _hidden_names(request, backend, there, path)
    if hidden and "," in headers.get("Range", ""):
        # Ask for the whole file, because patches can't be applied to an answer of several parts.
        del headers["Range"]
    async with backend.client.open(request.method, _path(request, there, path), headers=headers) as found:
        if found.status == 404 and not is_last:
            return None
        # Check the file after the answer has begun, so that no change before the answer goes unseen.
        if found.status != 404 and not (is_same(known, found.headers) or await has(backend, there, known)):
            return None
        return await relay(request, found, (there.filename, ref.filename), patches=hidden)


async def _hidden_names(request: web.Request, backend: Backend, there: FileRef, path: str) -> list[Patch]:
    """Return patches over the secret names in a PNG file (`outputs.hide_names`); none for any other file.

    Raises:
        BackendError: the backend can't be reached.
    """
    gateway, identity = context_of(request), caller(request)
    is_hidden = gateway.settings.outputs.hide_names and not identity.is_admin and gateway.is_judged(identity.tenant)
    if not (is_hidden and _is_plain(request, path) and may_hold_texts(there)):
        return []
    return await patches_for(backend, there, partial(gateway.engine.outputs.reveal_text, identity.tenant))


def _removed(backend: str, *, is_admin: bool) -> web.Response:
    """Return the refusal for a file of a backend that is configured no more; only an admin reads its name."""
    extra = {"backend": backend} if is_admin else {}
    what = f"backend '{backend}'" if is_admin else "that backend"
    details = f"{what} is not in the configuration any more; an operator can add it again"
    return problem(404, "owner_removed", "The backend that has this file was removed", details, None, **extra)


def _unavailable(backend: str, state: str) -> web.Response:
    return problem(
        503,
        "owner_unavailable",
        "The backend that has this file can't be reached",
        f"backend '{backend}' is {state}; try again later",
        {"Retry-After": "5"},
        backend=backend,
        state=state,
    )


async def _from_anywhere(request: web.Request, ref: FileRef) -> web.StreamResponse:
    """Answer with a file unknown to the gateway: of another run, or put there by hand."""
    if not _may_look_around(whose(request)):
        return no_file()
    headers = upstream_headers(request.headers)
    for backend in context_of(request).fleet.alive(readable(request)):
        if _is_kept_from(context_of(request), caller(request), backend, ref):
            continue
        since = _kept_since(context_of(request), whose(request), backend, ref)
        try:
            async with backend.client.open(request.method, _path(request, ref, "/view"), headers=headers) as found:
                if found.status != 404 and (since is None or await is_older(backend, ref, since)):
                    return await relay(request, found)
        except BackendError:
            if request.get(STREAMING):
                raise
    return no_file()


async def locate(
    gateway: Context, identity: Identity, ref: FileRef, *, anew: bool = False
) -> tuple[Backend, FileRef, Known] | None:
    """Return a backend that has a file of the caller's, the file's name there, and its identity; None if there is none.

    With `anew` the gateway checks that an upload is still on the backend.

    Raises:
        BackendError: no backend that has the file can be reached.
        FileMissing: the gateway's own copy is gone, or the backend that has the file is closed to the caller by now.
    """
    allowed = None if identity.is_admin else gateway.policies.of(identity.tenant).allowed
    match _find(gateway, identity, ref):
        case Upload() as upload:
            may_hold = _may_hold(gateway, identity, ref, upload)
            place = _place(gateway, identity, ref, upload)
            return *await gateway.engine.transfer.somewhere(place, upload, may_hold, anew=anew), UNTOLD
        case Holder(stored=Stored() as stored) as holder:
            return await _locate_stored(gateway, identity, ref, stored, holder)
        case Stored() as stored:
            return await _locate_stored(gateway, identity, ref, stored, None)
        case Holder(name, there) as holder:
            backend = gateway.fleet.backends.get(name)
            if _is_closed(gateway, identity, name):
                raise FileMissing(_CLOSED)
            if backend is None or not backend.pulse.alive:
                raise Unreachable(f"backend '{name}' that has it is down")
            return backend, there, _expected(gateway, identity, there, holder)
    if not _may_look_around(identity):
        return None
    closed = [
        each
        for each in gateway.fleet.by_preference
        if _is_kept_from(gateway, identity, each, ref) or _kept_since(gateway, identity, each, ref) is not None
    ]
    backend = await gateway.engine.transfer.holder_of(ref, *closed, allowed=allowed)
    return None if backend is None else (backend, ref, UNTOLD)


async def _locate_stored(
    gateway: Context, identity: Identity, ref: FileRef, stored: Stored, holder: Holder | None
) -> tuple[Backend, FileRef, Known]:
    """Return a backend that has a stored file, or just got it.

    Raises:
        BackendError: none can be reached.
        FileMissing: object storage has the file no more.
    """
    backend = _writer(gateway, identity, holder)
    if holder is not None and backend is not None:
        known = identity_there(holder, stored)
        with suppress(BackendError):
            if await has(backend, holder.there, known):
                return backend, holder.there, known
    failure: BackendError = Unreachable("no backend can be reached")
    owner = _owner(gateway, identity, ref, stored)
    for each in gateway.fleet.alive(gateway.policies.of(owner).allowed):
        try:
            return each, await gateway.engine.inputs.copy_stored(owner, ref, stored, each), UNTOLD
        except StoreDown:
            raise
        except BackendError as error:
            failure = error
    raise failure
