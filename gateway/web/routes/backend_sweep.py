"""POST /gateway/api/v1/backends/{name}/sweep: which files in a backend's folders may be deleted there (admins)."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.comfy.file_refs import KINDS, FileRef, file_ref
from gateway.jobs.files.sweepable import Seen, Verdict
from gateway.telemetry.audit import Action
from gateway.web.guard.audit import note
from gateway.web.guard.context import context_of
from gateway.web.http.responses import json, problem
from gateway.web.routes.queue import BadBody, read_object

MAX_FILES = 1000
_MAX_INTEGER = 2**63 - 1
_PRIVATE = {"Cache-Control": "no-store"}


async def post_sweep(request: web.Request) -> web.Response:
    """Answer with the verdict about each file that the body names, in the same order.

    With ``"delete": true`` the caller says that it will delete the deletable ones at once.
    """
    gateway, name = context_of(request), request.match_info["name"]
    if name not in gateway.fleet.backends:
        names = ", ".join(gateway.fleet.backends)
        return problem(404, "unknown_backend", f"There is no backend '{name[:100]}'", f"there are: {names}", _PRIVATE)
    try:
        body = await read_object(request)
        deletes = body.get("delete", False)
        if not isinstance(deletes, bool):
            raise BadBody('"delete" must be true or false')
        listed = _listed(body.get("files"))
    except BadBody as error:
        return problem(400, "invalid_body", "The body can't be read", str(error), _PRIVATE)
    known = [each for each in listed if each is not None]
    judged = iter(await gateway.engine.backend_sweep.judge(name, known, deletes=deletes))
    verdicts = [Verdict.UNKNOWN if each is None else next(judged) for each in listed]
    count = sum(verdict.is_deletable for verdict in verdicts)
    note(request, Action.BACKEND_SWEPT, name, "ok" if deletes else "dry run", files=count)
    return json({"verdicts": [str(verdict) for verdict in verdicts]}, headers=_PRIVATE)


def _listed(files: Any) -> list[Seen | None]:
    """Return the files that a body names; None for a name that no client can use, and so no job has.

    Raises:
        BadBody: the body names no files, or too many.
    """
    if not isinstance(files, list) or len(files) > MAX_FILES:
        raise BadBody(f'"files" must be a list of at most {MAX_FILES} files')
    return [_seen(each) for each in files]


def _seen(file: Any) -> Seen | None:
    if not isinstance(file, dict):
        raise BadBody('each of "files" must be an object with type, subfolder, filename, size and mtime_ns')
    kind, folder, filename = (file.get(key) for key in ("type", "subfolder", "filename"))
    if kind not in KINDS or not isinstance(folder, str) or not isinstance(filename, str):
        raise BadBody(f'each of "files" needs a type ({", ".join(KINDS)}), a subfolder and a filename')
    size, mtime_ns = _natural(file.get("size")), _natural(file.get("mtime_ns"))
    ref = FileRef(kind, folder, filename)
    # A name in another spelling is another file on Linux, so don't take it for the file that ComfyUI would open.
    return Seen(ref, size, mtime_ns) if file_ref(kind, folder, filename) == ref else None


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_INTEGER:
        raise BadBody('"size" and "mtime_ns" must be integers that are not negative')
    return value
