"""/users, /settings and /userdata (app/user_manager.py, app/app_settings.py), for the one default user."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from gateway.comfy import json_codec
from gateway.simulator.bodies import read_json
from gateway.simulator.files import Files, OutsideFolder
from gateway.simulator.prompts import reply

SETTINGS = "comfy.settings.json"
_SYSTEM_USER = "__"
_UNFIT = 'Invalid filename. Please avoid special characters like :\\/*?"<>|'


class UserData:
    """The routes of the web UI's own data."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._root = files.base / "user" / "default"
        self._users = {"default": "default"}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, without /api."""
        return [
            web.get("/users", self.users),
            web.post("/users", self.add_user),
            web.get("/settings", self.get_settings),
            web.post("/settings", self.post_settings),
            web.get("/settings/{id}", self.get_setting),
            web.post("/settings/{id}", self.post_setting),
            web.get("/userdata", self.list_files),
            web.get("/v2/userdata", self.list_tree),
            web.get("/userdata/{file}", self.get_file),
            web.post("/userdata/{file}", self.post_file),
            web.delete("/userdata/{file}", self.delete_file),
            web.post("/userdata/{file}/move/{dest}", self.move_file),
        ]

    async def users(self, _: web.Request) -> web.Response:
        """GET /users."""
        return reply({"storage": "server", "migrated": self._root.exists() and any(self._root.iterdir())})

    async def add_user(self, request: web.Request) -> web.Response:
        """POST /users. ComfyUI adds users also where there is only the default user; nothing shows them then."""
        name = (await read_json(request))["username"]
        if name in self._users.values():
            return reply({"error": "Duplicate username."}, 400)
        if not name.strip():
            return reply({"error": "username not provided"}, 400)
        if name.strip().startswith(_SYSTEM_USER):
            return reply({"error": "System User prefix not allowed"}, 400)
        user_id = f"{re.sub('[^a-zA-Z0-9-_]+', '-', name.strip())}_{uuid.uuid4()}"
        self._users[user_id] = name.strip()
        return reply(user_id)

    def _settings(self) -> dict[str, Any]:
        path = self._root / SETTINGS
        value = json_codec.loads(path.read_bytes()) if path.is_file() else {}
        return value if isinstance(value, dict) else {}

    def _save_settings(self, settings: dict[str, Any]) -> web.Response:
        (self._root / SETTINGS).write_text(json.dumps(settings, indent=4))
        return web.Response()

    async def get_settings(self, _: web.Request) -> web.Response:
        """GET /settings."""
        return reply(self._settings())

    async def post_settings(self, request: web.Request) -> web.Response:
        """POST /settings."""
        return self._save_settings({**self._settings(), **await read_json(request)})

    async def get_setting(self, request: web.Request) -> web.Response:
        """GET /settings/{id}."""
        return reply(self._settings().get(request.match_info["id"]))

    async def post_setting(self, request: web.Request) -> web.Response:
        """POST /settings/{id}."""
        value = await read_json(request)
        return self._save_settings({**self._settings(), request.match_info["id"]: value})

    async def list_files(self, request: web.Request) -> web.Response:
        """GET /userdata."""
        query = request.rel_url.query
        if not query.get("dir"):
            return web.Response(status=400, text="Directory not provided")
        try:
            folder = self._files.within(self._root, query["dir"])
        except OutsideFolder:
            return web.Response(status=403, text="Invalid directory")
        if not folder.exists():
            return web.Response(status=404, text="Directory not found")
        found = folder.rglob("*") if query.get("recurse", "").lower() == "true" else folder.glob("*")
        paths = sorted(path for path in found if path.is_file())
        if query.get("full_info", "").lower() == "true":
            return reply([_info(path, folder) for path in paths])
        names = [path.relative_to(folder).as_posix() for path in paths]
        split = query.get("split", "").lower() == "true"
        return reply([[name, *name.split("/")] for name in names] if split else names)

    async def list_tree(self, request: web.Request) -> web.Response:
        """GET /v2/userdata."""
        try:
            folder = self._files.within(self._root, unquote(request.rel_url.query.get("path", "")))
        except OutsideFolder:
            return web.Response(status=400, text="Invalid path requested")
        if not folder.exists():
            return web.Response(status=404, text="Requested path not found")
        if not folder.is_dir():
            return web.Response(status=400, text="Requested path is not a directory")
        entries = []
        for path in folder.rglob("*"):
            entry: dict[str, Any] = {"name": path.name, "path": path.relative_to(self._root).as_posix()}
            if path.is_dir():
                entry["type"] = "directory"
            else:
                entry |= {"type": "file", "size": path.stat().st_size, "modified": path.stat().st_mtime}
            entries.append(entry)
        entries.sort(key=lambda entry: (entry["type"] != "directory", entry["name"].lower()))
        return reply(entries)

    def _path(self, request: web.Request, name: str = "file") -> Path | web.Response:
        try:
            return self._files.within(self._root, unquote(request.match_info[name]))
        except OutsideFolder:
            return web.Response(status=403)

    async def get_file(self, request: web.Request) -> web.StreamResponse:
        """GET /userdata/{file}."""
        path = self._path(request)
        if isinstance(path, web.Response):
            return path
        # aiohttp answers 403 for a folder.
        return web.FileResponse(path) if _exists(path) else web.Response(status=404)

    async def post_file(self, request: web.Request) -> web.Response:
        """POST /userdata/{file}."""
        path = self._path(request)
        if isinstance(path, web.Response):
            return path
        query = request.rel_url.query
        if query.get("overwrite") == "false" and _exists(path):
            return web.Response(status=409, text="File already exists")
        if not _exists(path.parent):
            path.parent.mkdir(parents=True)
        body = await request.read()
        try:
            path.write_bytes(body)
        except OSError:
            return web.Response(status=400, reason=_UNFIT)
        full = query.get("full_info", "").lower() == "true"
        return reply(_info(path, self._root) if full else path.relative_to(self._root).as_posix())

    async def delete_file(self, request: web.Request) -> web.Response:
        """DELETE /userdata/{file}."""
        path = self._path(request)
        if isinstance(path, web.Response):
            return path
        if not _exists(path):
            return web.Response(status=404)
        path.unlink()
        return web.Response(status=204)

    async def move_file(self, request: web.Request) -> web.Response:
        """POST /userdata/{file}/move/{dest}."""
        source, dest = self._path(request), self._path(request, "dest")
        if isinstance(source, web.Response) or isinstance(dest, web.Response):
            return web.Response(status=403)
        if not _exists(source):
            return web.Response(status=404)
        query = request.rel_url.query
        if query.get("overwrite") == "false" and _exists(dest):
            return web.Response(status=409, text="File already exists")
        dest.parent.mkdir(parents=True, exist_ok=True)
        # Into a folder of that name, if there is one.
        shutil.move(source, dest)
        full = query.get("full_info", "").lower() == "true"
        return reply(_info(dest, self._root) if full else dest.relative_to(self._root).as_posix())


def _exists(path: Path) -> bool:
    """Return True if there is such a path; False also for a name that no file can have."""
    return os.path.exists(path)


def _info(path: Path, root: Path) -> dict[str, Any]:
    stat = path.stat()
    return {
        "path": path.relative_to(root).as_posix(),
        "size": stat.st_size,
        "modified": int(stat.st_mtime * 1000),
        "created": int(stat.st_ctime * 1000),
    }
