"""The store's troubles, told once each: in the log, in a metric, and to all who want to use the store."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from random import random

from gateway.artifacts.object_store import ObjectStore, StorageError
from gateway.artifacts.probe import try_store
from gateway.artifacts.schedule import StoreHealth
from gateway.telemetry import logs

_log = logs.get("storage")


class StoreWatch(StoreHealth):
    """Judgement of a store by the outcomes of its requests.

    If reading fails, a read that succeeds shows that the store is back. If anything else fails, only a write does.

    Args:
        came_back: called when the store can be used again.
    """

    def __init__(self, store: ObjectStore, came_back: Callable[[], None]) -> None:
        super().__init__()
        self._store = store
        self._came_back = came_back
        self._only_reading_failed = False

    def note_failure(self, error: StorageError) -> None:
        """Note that the store failed to write or to delete."""
        self._only_reading_failed = False
        self._note_failure(error)

    def note_success(self) -> None:
        """Note that the store took or deleted an object."""
        if self.succeeded():
            _log.info("storage_back", store=self._store.place)
            self._came_back()

    def _note_failure(self, error: StorageError) -> None:
        if self.failed(time.monotonic(), random()):
            _log.error("storage_unreachable", store=self._store.place, kind=error.kind, error=str(error))

    # -- reading -------------------------------------------------------------------------------------------------

    async def get(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """Yield the bytes of an object as `ObjectStore.get` does, and note what that shows of the store.

        Raises:
            StorageError: the object is missing, or reading failed.
        """
        was_down, chunks = not self.is_up, self._store.get(key, start, end)
        try:
            while (chunk := await self._next(chunks, was_down)) is not None:
                yield chunk
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def _next(self, chunks: AsyncIterator[bytes], was_down: bool) -> bytes | None:
        with self._noting(was_down=was_down):
            return await anext(chunks, None)

    async def head(self, key: str) -> int | None:
        """Return the size of an object as `ObjectStore.head` does, and note what that shows of the store.

        Raises:
            StorageError: the store does not say.
        """
        with self._noting(was_down=not self.is_up):
            return await self._store.head(key)

    @contextmanager
    def _noting(self, *, was_down: bool) -> Iterator[None]:
        """Note the outcome of a read. A success counts if the store was down when the read began."""
        try:
            yield
        except StorageError as error:
            if error.kind != "missing":
                # While the store is down, don't count further reads, because each would put off its next trial.
                if self.is_up:
                    self._only_reading_failed = True
                    self._note_failure(error)
                raise
            self._note_read(was_down=was_down)
            raise
        self._note_read(was_down=was_down)

    def _note_read(self, *, was_down: bool) -> None:
        if was_down and self._only_reading_failed:
            self.note_success()

    # -- trials --------------------------------------------------------------------------------------------------

    async def try_out(self) -> None:
        """Write an object, and delete it, so that wrong settings and missing rights are told at once."""
        await self._find_out(try_store(self._store))

    async def look(self, key: str) -> None:
        """Find out if a failed store is back: ask for an object that nobody has, or write one if writing failed."""
        if self._only_reading_failed:
            await self._find_out(self._store.head(key))
        else:
            await self.try_out()

    async def _find_out(self, trial: Awaitable[object]) -> None:
        self.begin()
        try:
            await trial
            self.note_success()
        except StorageError as error:
            self._note_failure(error)
        finally:
            self.ended()
