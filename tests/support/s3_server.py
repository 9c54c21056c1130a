"""``python -m tests.support.s3_server --root DIR``: a small S3 server, as much of S3 as the gateway's library asks for.

It takes any signature. Its objects are files in a folder, so they outlive its process. An object is there as a whole or
not at all. While the folder has a file named ``full``, it takes nothing more, and while it has one named ``kept``, it
deletes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import re
import secrets
import socket
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from aiohttp import web

from tests.support.lab import Server

BUCKET = "outputs"
_FULL = ("QuotaExceeded", "the bucket is full", 507)
_DENIED = ("AccessDenied", "the key may not delete", 403)
_NO_KEY = ("NoSuchKey", "there is no such object", 404)
_NO_UPLOAD = ("NoSuchUpload", "there is no such upload", 404)


class S3Process(Server):
    """The server as a process of its own."""

    def __init__(self, root: Path) -> None:
        super().__init__(["tests.support.s3_server", "--root", str(root)])
        self.root = root

    def fill(self) -> None:
        """Let it refuse whatever it is given."""
        (self.root / "full").touch()

    def keep(self) -> None:
        """Let it refuse to delete."""
        (self.root / "kept").touch()

    def free(self) -> None:
        """Let it take objects again."""
        (self.root / "full").unlink()


class Objects:
    """The objects of one bucket, and the parts of those that are not complete."""

    def __init__(self, root: Path) -> None:
        self._root = root
        for name in ("objects", "parts", "unfinished"):
            (root / name).mkdir(parents=True, exist_ok=True)

    @property
    def is_full(self) -> bool:
        """Return True if it is to take nothing more."""
        return (self._root / "full").exists()

    @property
    def are_kept(self) -> bool:
        """Whether nothing may be deleted."""
        return (self._root / "kept").exists()

    def path(self, key: str) -> Path:
        """Return where an object is, or will be."""
        return self._root / "objects" / quote(key, safe="")

    def part(self, upload: str, number: int) -> Path:
        """Return where a part of an object is."""
        return self._root / "parts" / upload / f"{number:05}"

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, sorted."""
        found = (unquote(path.name) for path in (self._root / "objects").iterdir())
        return sorted(key for key in found if key.startswith(prefix))

    async def write(self, path: Path, chunks: AsyncIterator[bytes]) -> str:
        """Write a file as a whole, and return its ETag."""
        unfinished = self._root / "unfinished" / secrets.token_hex(8)
        digest = hashlib.md5(usedforsecurity=False)
        with unfinished.open("wb") as file:
            async for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
        unfinished.replace(path)
        return f'"{digest.hexdigest()}"'


def _refused(why: tuple[str, str, int]) -> web.Response:
    code, message, status = why
    return _xml(f"<Error><Code>{code}</Code><Message>{message}</Message></Error>", status)


def _xml(text: str, status: int = 200) -> web.Response:
    return web.Response(text=f'<?xml version="1.0"?>{text}', status=status, content_type="application/xml")


async def _serve(objects: Objects, request: web.Request) -> web.StreamResponse:
    _, _, key = request.path.removeprefix("/").partition("/")
    asked = request.query
    match request.method:
        case "GET" if not key:
            return _list(objects, asked.get("prefix", ""), asked.get("continuation-token", ""))
        case "POST" | "DELETE" if objects.are_kept and "uploadId" not in asked and "uploads" not in asked:
            return _refused(_DENIED)
        case "POST" if "delete" in asked:
            return await _delete(objects, await request.text())
        case "GET" | "HEAD":
            return _get(request, objects.path(key))
        case "DELETE" if "uploadId" not in asked:
            objects.path(key).unlink(missing_ok=True)
            return web.Response(status=204)
        case "PUT" | "POST" if objects.is_full:
            # If it answered before it has read the object, the sender might see a broken connection alone.
            await request.content.read()
            return _refused(_FULL)
        case "PUT" if "uploadId" not in asked:
            return web.Response(headers={"ETag": await objects.write(objects.path(key), request.content.iter_any())})
    return await _in_parts(objects, request, key)


async def _in_parts(objects: Objects, request: web.Request, key: str) -> web.StreamResponse:
    if "uploads" in request.query:
        upload = secrets.token_hex(16)
        objects.part(upload, 0).parent.mkdir()
        return _xml(f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>")
    upload = request.query["uploadId"]
    folder = objects.part(upload, 0).parent
    if not folder.is_dir():
        return _refused(_NO_UPLOAD)
    if request.method == "PUT":
        path = objects.part(upload, int(request.query["partNumber"]))
        return web.Response(headers={"ETag": await objects.write(path, request.content.iter_any())})
    etag = ""
    if request.method == "POST":
        numbers = map(int, re.findall(r"<PartNumber>(\d+)</PartNumber>", await request.text()))
        paths = [objects.part(upload, number) for number in numbers]

        async def chunks() -> AsyncIterator[bytes]:
            for path in paths:
                yield path.read_bytes()

        etag = await objects.write(objects.path(key), chunks())
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    if request.method == "DELETE":
        return web.Response(status=204)
    done = f"<Key>{escape(key)}</Key><ETag>{escape(etag)}</ETag>"
    return _xml(f"<CompleteMultipartUploadResult>{done}</CompleteMultipartUploadResult>")


def _get(request: web.Request, path: Path) -> web.StreamResponse:
    try:
        data, changed = path.read_bytes(), path.stat().st_mtime
    except FileNotFoundError:
        return _refused(_NO_KEY)
    etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
    headers = {"ETag": f'"{etag}"', "Last-Modified": formatdate(changed, usegmt=True), "Accept-Ranges": "bytes"}
    wanted, status = request.http_range, 200
    if "Range" in request.headers:
        start, stop, _ = wanted.indices(len(data))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        data, status = data[start:stop], 206
    return web.Response(body=data, status=status, headers=headers, content_type="application/octet-stream")


def _list(objects: Objects, prefix: str, after: str) -> web.Response:
    keys = [key for key in objects.keys(prefix) if key > after]
    page = keys[:1000]
    more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if len(keys) > len(page) else ""
    listed = "".join(_listed(objects, key) for key in page)
    is_cut = str(bool(more)).lower()
    return _xml(f"<ListBucketResult><IsTruncated>{is_cut}</IsTruncated>{more}{listed}</ListBucketResult>")


def _listed(objects: Objects, key: str) -> str:
    about = objects.path(key).stat()
    changed = datetime.datetime.fromtimestamp(about.st_mtime, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>{changed}</LastModified>"
        f'<ETag>"0"</ETag><Size>{about.st_size}</Size></Contents>'
    )


async def _delete(objects: Objects, body: str) -> web.Response:
    keys = re.findall(r"<Key>(.*?)</Key>", body)
    for key in keys:
        objects.path(key).unlink(missing_ok=True)
    return _xml(f"<DeleteResult>{''.join(f'<Deleted><Key>{key}</Key></Deleted>' for key in keys)}</DeleteResult>")


def _application(root: Path) -> web.Application:
    objects = Objects(root)

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await _serve(objects, request)
        except (ConnectionError, web.RequestPayloadError):
            # The sender is gone in the middle of its request, so nobody hears this.
            return web.Response(status=400)

    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", handle)
    return application


def main() -> None:
    """Serve until SIGTERM, and print the URL once it listens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    root = parser.parse_args().root
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    told = f"http://127.0.0.1:{listening.getsockname()[1]}"
    web.run_app(_application(root), sock=listening, print=lambda _: print(told, flush=True), access_log=None)


if __name__ == "__main__":
    main()
