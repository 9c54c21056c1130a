"""/view and /upload (server.py, view_image and image_upload)."""

from __future__ import annotations

import io
import mimetypes
import os
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image

from gateway.comfy import json_codec
from gateway.simulator.faults import Faults
from gateway.simulator.files import KINDS, Files, OutsideFolder
from gateway.simulator.prompts import reply

_ACTIVE = frozenset(
    {
        "text/html",
        "text/html-sandboxed",
        "application/xhtml+xml",
        "text/javascript",
        "application/javascript",
        "text/css",
        "image/svg+xml",
        "text/xml",
        "application/xml",
    }
)


class Media:
    """The routes of files."""

    def __init__(self, files: Files, faults: Faults) -> None:
        self._files = files
        self._faults = faults

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, without /api."""
        return [
            web.get("/view", self.view),
            web.post("/upload/image", self.upload_image),
            web.post("/upload/mask", self.upload_mask),
        ]

    async def view(self, request: web.Request) -> web.StreamResponse:
        """GET /view."""
        query = request.rel_url.query
        if "filename" not in query:
            return web.Response(status=404)
        name, kind = self._files.annotated(query["filename"], query.get("type", "output"))
        if not name or name[0] == "/" or ".." in name or kind not in KINDS:
            return web.Response(status=400)
        root, subfolder = self._files.folder(kind), query.get("subfolder", "")
        try:
            self._files.within(root, subfolder)
        except OutsideFolder:
            return web.Response(status=403)
        # Not the normal path, because ComfyUI looks for the file through each folder that the query names.
        path = Path(os.path.join(root, subfolder, os.path.basename(name)))
        if not _is_file(path):
            return web.Response(status=404)
        if "preview" in query:
            return _preview(path, query["preview"], query.get("channel", ""))
        if query.get("channel") in ("rgb", "a"):
            return _channel(path, query["channel"])
        if request.method == "GET":
            await self._faults.until_off("hold-view")
            if self._faults.get("endless-view"):
                return await _send_for_ever(request, *_bytes_and_etag(path))
        return _file(path)

    async def upload_image(self, request: web.Request) -> web.Response:
        """POST /upload/image."""
        form = await request.post()
        data = _file_of(form)
        if data is None:
            return web.Response(status=400)
        return self._store(form, *data)

    async def upload_mask(self, request: web.Request) -> web.Response:
        """POST /upload/mask: the original with the mask's alpha."""
        form = await request.post()
        data = _file_of(form)
        if data is None:
            return web.Response(status=400)
        path = self._original(json_codec.loads(str(form["original_ref"])))
        if path is None or not path.is_file():
            # ComfyUI answers as if it had written something.
            return self._store(form, *data, is_kept=False)
        with Image.open(path) as picture, Image.open(io.BytesIO(data[1])) as mask:
            composed = picture.convert("RGBA")
            composed.putalpha(mask.convert("RGBA").getchannel("A"))
        buffer = io.BytesIO()
        composed.save(buffer, "PNG", compress_level=4)
        return self._store(form, data[0], buffer.getvalue())

    def _original(self, original: Any) -> Path | None:
        """Return the path of the picture that a mask is for; None for a path that ComfyUI refuses."""
        name, kind = self._files.annotated(original["filename"], original.get("type", "output"))
        if not name or name[0] == "/" or ".." in name or kind not in KINDS:
            return None
        try:
            return self._files.within(self._files.folder(kind), os.path.join(original.get("subfolder", ""), name))
        except OutsideFolder:
            return None

    def _store(self, form: Any, filename: str, content: bytes, *, is_kept: bool = True) -> web.Response:
        kind, subfolder = form.get("type", "input"), form.get("subfolder", "")
        os.path.normpath(subfolder)
        overwrite = form.get("overwrite") in ("true", "1")
        if not filename:
            return web.Response(status=400)
        try:
            name, path, is_new = self._files.upload(kind, subfolder, filename, content, overwrite)
        except OutsideFolder:
            return web.Response(status=400)
        if is_new and is_kept and not self._faults.get("lose-uploads"):
            path.write_bytes(content)
        return reply({"name": name, "subfolder": subfolder, "type": kind})


def _file_of(form: Any) -> tuple[str, bytes] | None:
    """Return the name and the bytes of a form's file; None if it has none.

    Raises:
        ValueError: the form names no folder of ComfyUI's (server.py, get_dir_by_type).
        AttributeError: the part ``image`` is no file, because it has no filename.
    """
    field, kind = form.get("image"), form.get("type", "input")
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no folder")
    if not field:
        return None
    return field.filename, field.file.read()


def _is_file(path: Path) -> bool:
    """Return True if a path is a file; False also for a name that no file can have."""
    return os.path.isfile(path)


def _disposition(path: Path) -> str:
    if any(char < " " for char in path.name):
        # aiohttp refuses such a header when it is sent; ComfyUI answers 500 as well.
        raise ValueError("Forbidden control character detected in headers")
    escaped = path.name.replace("\\", "\\\\").replace('"', '\\"')
    return f'filename="{escaped}"'


def _file(path: Path) -> web.StreamResponse:
    content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": _disposition(path)}
    if content_type in _ACTIVE:
        headers |= {"Vary": "Sec-Fetch-Dest", "Cache-Control": "no-store"}
        headers["Content-Disposition"] = f"attachment; {_disposition(path)}"
        content_type = "application/octet-stream"
    return web.FileResponse(path, headers={**headers, "Content-Type": content_type})


def _picture(image: Image.Image, path: Path, format_: str, **options: Any) -> web.Response:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    headers = {"Content-Disposition": f'filename="{path.name}"'}
    return web.Response(body=buffer.getvalue(), content_type=f"image/{format_.lower()}", headers=headers)


def _preview(path: Path, wanted: str, channel: str) -> web.Response:
    parts = wanted.split(";")
    format_ = parts[0] if parts[0] in ("webp", "jpeg") and "a" not in channel else "webp"
    quality = int(parts[-1]) if parts[-1].isdigit() else 90
    with Image.open(path) as image:
        picture = image.convert("RGB") if format_ == "jpeg" or channel == "rgb" else image.copy()
    return _picture(picture, path, format_, quality=quality)


def _channel(path: Path, channel: str) -> web.Response:
    with Image.open(path) as image:
        if channel == "rgb":
            return _picture(image.convert("RGB"), path, "PNG")
        alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
    picture = Image.new("RGBA", alpha.size)
    picture.putalpha(alpha)
    return _picture(picture, path, "PNG")


def _bytes_and_etag(path: Path) -> tuple[bytes, str]:
    """Return a file's bytes, and its ETag as aiohttp makes it (web_fileresponse.py)."""
    found = path.stat()
    return path.read_bytes(), f'"{found.st_mtime_ns:x}-{found.st_size:x}"'


async def _send_for_ever(request: web.Request, data: bytes, etag: str) -> web.StreamResponse:
    """Answer with a file that does not end."""
    response = web.StreamResponse(headers={"ETag": etag})
    await response.prepare(request)
    await response.write(data)
    while True:
        await response.write(bytes(2**20))
