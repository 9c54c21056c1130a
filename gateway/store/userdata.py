"""User data: workflows and settings that web UIs save, for tenants that are kept apart. One folder a tenant.

A ComfyUI keeps this for all its callers together (app/user_manager.py, app/app_settings.py), so that one tenant would
read, and overwrite, another's. Names, listings and refusals are as there.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from gateway.comfy import json_codec
from gateway.store.blobs import BlobStore, BlobWriter
from gateway.store.durable_rename import replace, sync
from gateway.store.protocol import StoreError

_T = TypeVar("_T")

SETTINGS = "comfy.settings.json"
MAX_SETTINGS = 1024 * 1024
# File systems hold names of 255 bytes.
_MAX_PART = 255
_MAX_PATH = 1024
_MAX_DEPTH = 32
# A walk through thousands of files keeps a thread busy for long, and there are few: six on two cores (asyncio's own).
MAX_WALKS = 2
_UNFIT = re.compile(r"[\x00-\x1f\x7f\\]")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutsideFolder(ValueError):
    """A path that leads out of its tenant's folder."""


class UnfitName(ValueError):
    """A name that a file can't have here."""


class FolderFull(Exception):
    """Refusal because a tenant's folder is full; the text names the limit."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as ComfyUI describes it: `path` is relative; `size` in bytes; times in milliseconds since 1970."""

    path: str
    size: int
    modified: int
    created: int


class UserData:
    """The folders of all tenants.

    Args:
        directory: made if it is not there.
        quota: bytes of a tenant.
        max_files: files and folders of a tenant.
    """

    def __init__(self, directory: Path, quota: int, max_files: int) -> None:
        self._directory = directory
        self._quota = quota
        self._max_files = max_files
        self._spool = BlobStore(directory / ".arriving")
        self._folders: dict[str, UserFolder] = {}
        self._walks = asyncio.Semaphore(MAX_WALKS)

    async def open(self) -> None:
        """Make the directory.

        Raises:
            StoreError: it can't be used.
        """
        await self._spool.open()

    @property
    def maximum(self) -> int:
        """Return the maximum size of a file, in bytes."""
        return self._quota

    def writer(self) -> BlobWriter:
        """Return a writer for a new file: ``async with data.writer() as writer``, then `UserFolder.put`."""
        return self._spool.writer()

    def of(self, tenant: str) -> UserFolder:
        """Return a tenant's folder."""
        folder = self._folders.get(tenant)
        if folder is None:
            path = self._directory / _folder_name(tenant)
            folder = self._folders[tenant] = UserFolder(path, self._quota, self._max_files, self._walks)
        return folder


def _folder_name(tenant: str) -> str:
    """Return a name that no other tenant's folder has, on any file system, and that an operator recognizes."""
    shown = re.sub(r"[^a-z0-9]+", "-", tenant.casefold())[:32].strip("-")
    digest = hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return f"{shown}-{digest}" if shown else digest


def parts_of(name: str) -> tuple[str, ...]:
    """Return the parts of a path below a tenant's folder; none for the folder itself.

    Raises:
        OutsideFolder: it leads out of there.
        UnfitName: no file can be called so.
    """
    # A name that is still encoded is decoded once more (user_manager.py, get_request_user_filepath).
    whole = posixpath.normpath(unquote(name)) if name else "."
    if whole.startswith(("/", "../")) or whole == "..":
        raise OutsideFolder(name)
    parts = () if whole == "." else tuple(whole.split("/"))
    try:
        is_fit = all(len(part.encode()) <= _MAX_PART for part in parts) and len(whole.encode()) <= _MAX_PATH
    except UnicodeEncodeError:
        is_fit = False
    if not is_fit or len(parts) > _MAX_DEPTH or _UNFIT.search(whole) or ".." in parts:
        raise UnfitName(name)
    return parts


class UserFolder:
    """One tenant's files. Every path is a text as a client gives it.

    One call at a time changes the files or walks through all of them. Of all tenants, at most `MAX_WALKS` calls walk
    at a time, because the same threads read and write all files of the gateway's.

    All methods raise OutsideFolder or UnfitName for a path that is none, and StoreError if the disk fails.
    """

    def __init__(self, root: Path, quota: int, max_files: int, walks: asyncio.Semaphore) -> None:
        self._root = root
        self._quota = quota
        self._max_files = max_files
        self._walks = walks
        self._turn = asyncio.Lock()

    async def exists(self) -> bool:
        """Return True if the tenant has saved anything yet."""
        return await _in_thread(self._root.is_dir)

    async def file(self, name: str) -> Path | None:
        """Return the path of a file; None if there is no such file."""
        path = self._path(name)
        return path if await _in_thread(path.is_file) else None

    async def files(self, name: str, *, recurse: bool) -> list[FileInfo] | None:
        """Return the files in a folder but hidden ones, with paths relative to it; None if there is no such folder."""
        folder = self._path(name)

        def look() -> list[FileInfo] | None:
            if not folder.exists():
                return None
            found = folder.rglob("*") if recurse else folder.glob("*")
            shown = [path for path in found if not _is_hidden(path, folder) and path.is_file()]
            return [_info(path, folder) for path in sorted(shown)]

        return await self.walk(look)

    async def tree(self, name: str) -> list[dict[str, Any]] | None:
        """Return all files and folders below a folder, in the form of GET /v2/userdata; None if there is no such path.

        Raises:
            NotADirectoryError: it is a file.
        """
        folder = self._path(name)

        def look() -> list[dict[str, Any]] | None:
            if not folder.exists():
                return [] if folder == self._root else None
            if not folder.is_dir():
                raise NotADirectoryError(name)
            return sorted(_entries(folder, self._root), key=lambda e: (e["type"] != "directory", e["name"].lower()))

        return await self.walk(look)

    async def put(self, name: str, arrived: Path, *, overwrite: bool) -> FileInfo:
        """Give a file that has arrived its name.

        Raises:
            FileExistsError: there is one, and it is not to be overwritten.
            FolderFull: the tenant may have no more.
        """
        path = self._path(name)

        def put() -> FileInfo:
            if not overwrite and path.exists():
                raise FileExistsError(name)
            self._check_room(path, arrived.stat().st_size)
            self._place(arrived, path, name)
            return _info(path, self._root)

        return await self.walk(put)

    async def remove(self, name: str) -> bool:
        """Delete a file; False if there is none."""
        path = self._path(name)

        def remove() -> bool:
            if not path.is_file():
                return False
            path.unlink()
            return True

        async with self._turn:
            return await _in_thread(remove)

    async def move(self, name: str, new_name: str, *, overwrite: bool) -> FileInfo | None:
        """Rename a file or a folder; None if there is none.

        Raises:
            FileExistsError: the new name is taken, and is not to be overwritten.
            FolderFull: the tenant may have no more folders.
        """
        source, target = self._path(name), self._path(new_name)

        def move() -> FileInfo | None:
            if not source.exists():
                return None
            if not overwrite and target.exists():
                raise FileExistsError(new_name)
            if target in (self._root, *source.parents) or source in (self._root, *target.parents):
                raise UnfitName(new_name)
            self._check_room(target, 0)
            self._place(source, target, new_name)
            return _info(target, self._root)

        return await self.walk(move)

    async def settings(self) -> dict[str, Any]:
        """Return the web UI's settings; none if they can't be read, as in app_settings.py."""
        return await _in_thread(self._settings)

    def _settings(self) -> dict[str, Any]:
        try:
            value = json_codec.loads((self._root / SETTINGS).read_bytes())
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, json_codec.MalformedJson):
            return {}
        return value if isinstance(value, dict) else {}

    async def change_settings(self, new: dict[str, Any], writer: BlobWriter) -> None:
        """Set some of the settings.

        Raises:
            FolderFull: they are too many.
        """
        async with self._turn:
            settings = {**await _in_thread(self._settings), **new}
            # With indents this is a loop of Python's, which lets others have their turns.
            body = await _in_thread(lambda: json.dumps(settings, indent=4).encode())
            if len(body) > MAX_SETTINGS:
                raise FolderFull(f"settings have at most {MAX_SETTINGS} bytes")
            await writer.write(body)
            arrived, path = await writer.spool(), self._root / SETTINGS

            def put() -> None:
                self._check_room(path, len(body))
                self._place(arrived, path, SETTINGS)

            async with self._walks:
                await _in_thread(put)

    async def walk(self, work: Callable[[], _T]) -> _T:
        """Run `work`, which goes through many of the files, in a thread, when its turn comes."""
        async with self._turn, self._walks:
            return await _in_thread(work)

    def _path(self, name: str) -> Path:
        # Nothing here makes links, so this is below the folder; a link that an operator made is followed.
        return self._root.joinpath(*parts_of(name))

    def _check_room(self, path: Path, size: int) -> None:
        used, count = 0, 0
        for entry in self._root.rglob("*"):
            count += 1
            used += entry.stat().st_size if entry.is_file() and entry != path else 0
        fresh = sum(not place.exists() for place in (path, *path.parents) if self._root in place.parents)
        if size and used + size > self._quota:
            raise FolderFull(f"{used} of {self._quota} bytes are kept; this file has {size}")
        if fresh and count + fresh > self._max_files:
            raise FolderFull(f"{count} files and folders are kept, and at most {self._max_files}")

    def _place(self, source: Path, path: Path, name: str) -> None:
        try:
            if source.is_file():
                sync(source)
            replace(source, path)
        except OSError as error:
            if error.errno in _FULL:
                raise
            # A folder has that name, a file stands where a folder should, or the file system takes no such name.
            raise UnfitName(name) from error


def _is_hidden(path: Path, folder: Path) -> bool:
    """Return True if a part of the path begins with a dot, as Python's glob hides it."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _info(path: Path, root: Path) -> FileInfo:
    stat = path.stat()
    name = path.relative_to(root).as_posix()
    return FileInfo(name, stat.st_size, int(stat.st_mtime * 1000), int(stat.st_ctime * 1000))


def _entries(folder: Path, root: Path) -> Iterator[dict[str, Any]]:
    for path in folder.rglob("*"):
        entry: dict[str, Any] = {"name": path.name, "path": path.relative_to(root).as_posix()}
        if path.is_dir():
            yield {**entry, "type": "directory"}
        else:
            stat = path.stat()
            yield {**entry, "type": "file", "size": stat.st_size, "modified": stat.st_mtime}


async def _in_thread(work: Callable[[], _T]) -> _T:
    try:
        return await asyncio.to_thread(work)
    except (FileExistsError, NotADirectoryError):
        raise
    except OSError as error:
        reason = "the disk is full" if error.errno in _FULL else str(error.strerror)
        raise StoreError(f"what the web UI saves can't be kept: {reason}") from error
