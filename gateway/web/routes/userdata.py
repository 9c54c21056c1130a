"""/users, /settings and /userdata: what the web UI saves.

An isolated caller gets the files that its tenant saved, from the gateway's own store. All others use the primary
backend, as without a gateway. Answers are those of app/user_manager.py and app/app_settings.py.
"""

from __future__ import annotations

import mimetypes
from typing import Any

from aiohttp import web

from gateway.comfy import json_codec
from gateway.store.userdata import MAX_SETTINGS, FileInfo, FolderFull, OutsideFolder, UnfitName, UserFolder
from gateway.web.guard.context import caller, context_of
from gateway.web.http.content_safety import is_active
from gateway.web.http.request_body import MAX_DEPTH, pieces, read_body
from gateway.web.http.responses import empty, json, json_bytes, problem
from gateway.web.routes.passthrough import hand_on

_UNFIT = 'Invalid filename. Please avoid special characters like :\\/*?"<>|'

# Reasons for refusing to save a file under a name.
_NOT_SAVED = (OutsideFolder, UnfitName, FileExistsError, FolderFull)


def _own(request: web.Request) -> UserFolder | None:
    """Return the caller's own folder; None for a caller that uses the primary backend's."""
    identity = caller(request)
    return context_of(request).userdata.of(identity.tenant) if identity.isolated and not identity.is_admin else None


def _is_set(request: web.Request, name: str) -> bool:
    return request.rel_url.query.get(name, "").lower() == "true"


def _full(error: FolderFull) -> web.Response:
    return problem(507, "userdata_full", "There is no room for the file", f"{error}; delete some first")


def _not_saved(error: OutsideFolder | UnfitName | FileExistsError | FolderFull) -> web.Response:
    match error:
        case OutsideFolder():
            return empty(403)
        case UnfitName():
            return web.Response(status=400, reason=_UNFIT)
        case FileExistsError():
            return web.Response(status=409, text="File already exists")
        case FolderFull():
            return _full(error)


async def get_users(request: web.Request) -> web.StreamResponse:
    """Answer GET /users: files are kept on the server; `migrated` if there are any. The web UI asks at its start."""
    own = _own(request)
    if own is None:
        return await hand_on(request)
    return json({"storage": "server", "migrated": await own.exists()})


# Values of settings that are sent at once.
MAX_SETTINGS_VALUES = 100_000


async def get_settings(request: web.Request) -> web.StreamResponse:
    """Answer GET /settings."""
    own = _own(request)
    return await hand_on(request) if own is None else _exact(await own.settings())


async def get_setting(request: web.Request) -> web.StreamResponse:
    """Answer GET /settings/{id}."""
    own = _own(request)
    return await hand_on(request) if own is None else _exact((await own.settings()).get(request.match_info["id"]))


async def post_settings(request: web.Request) -> web.StreamResponse:
    """Answer POST /settings: change the settings in the body."""
    own = _own(request)
    if own is None:
        return await hand_on(request)
    value = await _json(request)
    if isinstance(value, web.Response):
        return value
    if not isinstance(value, dict):
        return problem(400, "invalid_body", "The body can't be read", "it must be a JSON object of settings")
    return await _change(request, own, value)


async def post_setting(request: web.Request) -> web.StreamResponse:
    """Answer POST /settings/{id}: change one setting."""
    own = _own(request)
    if own is None:
        return await hand_on(request)
    value = await _json(request)
    return value if isinstance(value, web.Response) else await _change(request, own, {request.match_info["id"]: value})


async def _json(request: web.Request) -> Any:
    """Return the body's JSON, or the refusal."""
    try:
        with context_of(request).limits.body(caller(request).tenant) as grow:
            body = await read_body(request, MAX_SETTINGS, grow)
        return json_codec.read_bounded(body, MAX_DEPTH, MAX_SETTINGS_VALUES)[0]
    except json_codec.MalformedJson as error:
        return problem(400, "invalid_body", "The body can't be read", f"it is not JSON: {error}")


async def _change(request: web.Request, own: UserFolder, new: dict[str, Any]) -> web.Response:
    try:
        async with context_of(request).userdata.writer() as writer:
            await own.change_settings(new, writer)
    except FolderFull as error:
        return _full(error)
    return empty()


def _exact(value: Any) -> web.Response:
    return json_bytes(json_codec.dumps_exact(value))


async def list_files(request: web.Request) -> web.StreamResponse:
    """Answer GET /userdata: the files in the folder ``dir``."""
    own = _own(request)
    if own is None:
        return await hand_on(request)
    folder = request.rel_url.query.get("dir")
    if not folder:
        return web.Response(status=400, text="Directory not provided")
    try:
        found = await own.files(folder, recurse=_is_set(request, "recurse"))
    except (OutsideFolder, UnfitName):
        return web.Response(status=403, text="Invalid directory")
    if found is None:
        return web.Response(status=404, text="Directory not found")
    if _is_set(request, "full_info"):
        return json([_told(info) for info in found])
    names = [info.path for info in found]
    return json([[name, *name.split("/")] for name in names] if _is_set(request, "split") else names)


async def list_tree(request: web.Request) -> web.StreamResponse:
    """Answer GET /v2/userdata: all files and folders below the folder ``path``."""
    own = _own(request)
    if own is None:
        return await hand_on(request)
    try:
        found = await own.tree(request.rel_url.query.get("path", ""))
    except (OutsideFolder, UnfitName):
        return web.Response(status=400, text="Invalid path requested")
    except NotADirectoryError:
        return web.Response(status=400, text="Requested path is not a directory")
    return web.Response(status=404, text="Requested path not found") if found is None else json(found)


async def get_file(request: web.Request) -> web.StreamResponse:
    """Answer GET /userdata/{file}. No file is shown in place, because a saved file may be a page with a script."""
    own, name = _own(request), request.match_info["file"]
    if own is None:
        return await hand_on(request)
    try:
        path = await own.file(name)
        style = await own.file("user.css")
    except (OutsideFolder, UnfitName):
        return empty(403)
    if path is None:
        return empty(404)
    content_type, disposition = mimetypes.guess_type(path.name)[0] or "application/octet-stream", "attachment"
    if path == style:
        content_type, disposition = "text/css", "inline"
    elif is_active(content_type):
        content_type = "application/octet-stream"
    headers = {"Content-Type": content_type, "X-Content-Type-Options": "nosniff", "Content-Disposition": disposition}
    return web.FileResponse(path, headers={**headers, "Cache-Control": "private, no-cache"})


async def post_file(request: web.Request) -> web.StreamResponse:
    """Answer POST /userdata/{file}: save the body."""
    own, data = _own(request), context_of(request).userdata
    if own is None:
        return await hand_on(request)
    maximum = min(data.maximum, context_of(request).settings.server.max_body)
    overwrite = request.rel_url.query.get("overwrite", "true") != "false"
    try:
        async with data.writer() as writer:
            async for chunk in pieces(request):
                await writer.write(chunk)
                if writer.size > maximum:
                    return problem(413, "body_too_large", "The file is too large", f"at most {maximum} bytes are taken")
            saved = await own.put(request.match_info["file"], await writer.spool(), overwrite=overwrite)
    except _NOT_SAVED as error:
        return _not_saved(error)
    return _saved(request, saved)


def _told(info: FileInfo) -> dict[str, Any]:
    # Don't use dataclasses.asdict, because it would hold up everybody for 50 ms if there are ten thousand files.
    return {"path": info.path, "size": info.size, "modified": info.modified, "created": info.created}


def _saved(request: web.Request, info: FileInfo) -> web.Response:
    return json(_told(info) if _is_set(request, "full_info") else info.path)


async def delete_file(request: web.Request) -> web.StreamResponse:
    """Answer DELETE /userdata/{file}: delete the file."""
    own = _own(request)
    if own is None:
        return await hand_on(request)
    try:
        return empty(204 if await own.remove(request.match_info["file"]) else 404)
    except (OutsideFolder, UnfitName):
        return empty(403)


async def move_file(request: web.Request) -> web.StreamResponse:
    """Answer POST /userdata/{file}/move/{dest}: rename the file."""
    own, names = _own(request), request.match_info
    if own is None:
        return await hand_on(request)
    overwrite = request.rel_url.query.get("overwrite", "true") != "false"
    try:
        moved = await own.move(names["file"], names["dest"], overwrite=overwrite)
    except _NOT_SAVED as error:
        return _not_saved(error)
    return empty(404) if moved is None else _saved(request, moved)
