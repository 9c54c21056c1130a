"""Stored files, as parts that serve them see object storage."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from gateway.artifacts.links import Links, OwnLinks
from gateway.artifacts.service import Artifacts
from gateway.artifacts.spool import SpoolLost
from gateway.artifacts.storage_errors import StorageError
from gateway.files.index import FileIndex, Stored
from gateway.files.transfer import FileMissing, StoreDown
from gateway.settings.storage import StorageSettings
from gateway.tenants.secret_names import SecretNames


class StoredFiles:
    """Reading of files in object storage, and links to them.

    Attributes:
        links: signs links.
    """

    def __init__(self, settings: StorageSettings, artifacts: Artifacts, files: FileIndex, names: SecretNames) -> None:
        self._artifacts = artifacts
        self._files = files
        self._names = names
        self.links = Links(settings, artifacts.store, OwnLinks(names.link_key()), artifacts.is_in_store)

    async def open(self, stored: Stored, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """Yield the bytes of a file from `start` to before `end`; None: to the last.

        Raises:
            StorageError: the file can't be read.
        """
        chunks: AsyncIterator[bytes] = self._artifacts.open(stored, start, end)
        try:
            async for chunk in chunks:
                yield chunk
        except SpoolLost as error:
            raise StorageError("missing", f"the gateway's disk has lost it: {error}") from error
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def read(self, stored: Stored) -> AsyncGenerator[bytes]:
        """Yield the bytes of a file, for parts that know nothing of object storage.

        Raises:
            FileMissing: object storage has it no more.
            StoreDown: object storage can't give it now.
        """
        chunks = self.open(stored)
        try:
            async for chunk in chunks:
                yield chunk
        except StorageError as error:
            if error.kind == "missing":
                raise FileMissing("object storage has the file no more") from error
            raise StoreDown(error.message) from error
        finally:
            await chunks.aclose()

    async def head(self, key: str) -> int | None:
        """Return the size of an object; None if it is gone, or about to be.

        Raises:
            StorageError: the store does not say.
        """
        return None if self._artifacts.is_ending(key) else await self._artifacts.head(key)

    def owner(self, stored: Stored) -> str | None:
        """Return the tenant of a file; None if it is nobody's."""
        folder = stored.key.partition("/")[0]
        return next((each for each in self._files.makers() if self._names.storage_folder(each) == folder), None)
