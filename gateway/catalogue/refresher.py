"""Refresh the catalogue when a client asks for it, within a small budget of each backend's time.

GET /object_info reads the model folders of each backend first, which takes a few milliseconds. If a folder has changed,
the classes whose lists come from it are read again. All classes are read only from an idle backend, or if the copy is
old. A prompt that names an unknown class or choice makes the gateway read that class again.

However many clients ask, a backend has one refresh at a time, and all of them wait for it, `MAX_WAIT` at most.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any
from urllib.parse import quote

from gateway.catalogue.catalogue import Catalogue
from gateway.catalogue.listings import list_of
from gateway.catalogue.model_folders import Folders, folders_to_read, outdated_classes
from gateway.catalogue.read_budget import (
    ALL_CLASSES_SHARE,
    FOLDERS_SHARE,
    MIN_PROMPTS_PAUSE,
    PROMPTS_SHARE,
    Budget,
    free_at,
)
from gateway.comfy.client import Answer, BackendError, BadAnswer
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks

_log = logs.get("catalogue")

# Seconds that a client waits for a refresh. Then it gets the last good copy.
MAX_WAIT = 2.0
# Seconds after which all classes are read from a busy backend, too.
OLD_SECONDS = 60.0
# A copy that is no older counts as the backend's own answer. Seconds.
FRESH_SECONDS = 2.0
# Requests of a refresh at a time: a backend answers one after the other, and more only take connections.
MAX_AT_ONCE = 4
# Classes that one refresh reads again. If more lists came from a folder, the next read of all classes has them.
MAX_CLASSES = 100
# Bytes of one answer: a class, or the files of a folder.
MAX_BYTES = 8 * 2**20
# Classes of one prompt that are read again.
MAX_PROMPT_CLASSES = 8


@dataclass(slots=True)
class _Reads:
    """Reads of one backend: its budgets, its folders, when each class was read, and the refreshes under way."""

    folders_budget: Budget = field(default_factory=lambda: Budget(FOLDERS_SHARE))
    prompts_budget: Budget = field(default_factory=lambda: Budget(PROMPTS_SHARE, MIN_PROMPTS_PAUSE))
    folders: Folders | None = None
    class_read_at: dict[str, float] = field(default_factory=dict)
    is_stale: bool = False
    refresh: tuple[asyncio.Task[None], float] | None = None
    reread: tuple[asyncio.Task[None], float] | None = None


class Refresher:
    """Refreshes of the catalogue that clients cause.

    Args:
        is_idle: returns True if a backend has nothing to run.
    """

    def __init__(
        self, fleet: Fleet, catalogue: Catalogue, metrics: Metrics, is_idle: Callable[[Backend], bool]
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._metrics = metrics
        self._is_idle = is_idle
        self._tasks = Tasks("refresher")
        self._reads: dict[str, _Reads] = {}

    async def close(self) -> None:
        """Stop reading."""
        await self._tasks.close()

    async def refresh(self, allowed: Collection[str] | None) -> None:
        """Refresh the catalogue of the backends that are `allowed` (None: all), before a client gets it."""
        now, waits = time.monotonic(), []
        for backend in self._readable(allowed):
            reads = self._of(backend)
            if reads.refresh is None and self._is_due(backend, reads, now):
                task = self._tasks.start(self._refresh(backend, reads), f"refresh:{backend.name}")
                reads.refresh = task, now
            if reads.refresh is not None:
                waits.append(reads.refresh)
        await _wait(waits, now)

    async def reread(self, classes: Iterable[str], allowed: Collection[str] | None) -> bool:
        """Read classes again that a prompt names, before the prompt is refused. Return True if anything changed."""
        version, now, waits = self._catalogue.version, time.monotonic(), []
        wanted = tuple(dict.fromkeys(classes))[:MAX_PROMPT_CLASSES]
        for backend in self._readable(allowed) if wanted else ():
            reads = self._of(backend)
            if reads.reread is None and reads.prompts_budget.has_room(now):
                task = self._tasks.start(self._reread(backend, reads, wanted), f"reread:{backend.name}")
                reads.reread = task, now
            if reads.reread is not None:
                waits.append(reads.reread)
        await _wait(waits, now)
        return self._catalogue.version != version

    def mark_stale(self, backend: Backend) -> None:
        """Read all classes of a backend at the next chance, because it does not run what its copy says."""
        self._of(backend).is_stale = True

    def is_fresh(self, backend: str, node_class: str) -> bool:
        """Return True if a backend's copy of a class was read a moment ago."""
        reads = self._reads.get(backend)
        class_read_at = reads.class_read_at.get(node_class, -inf) if reads is not None else -inf
        read_at = max(self._catalogue.read_of(backend)[0], class_read_at)
        return time.monotonic() - read_at < FRESH_SECONDS

    def _of(self, backend: Backend) -> _Reads:
        return self._reads.setdefault(backend.name, _Reads())

    def _readable(self, allowed: Collection[str] | None) -> list[Backend]:
        """Return the backends that answer soon, and whose classes are known."""
        return [
            backend
            for backend in self._fleet.alive(allowed)
            if backend.connected and backend.health is Health.UP and self._catalogue.info(backend.name)
        ]

    def _is_due(self, backend: Backend, reads: _Reads, now: float) -> bool:
        return reads.folders_budget.has_room(now) or self._are_classes_due(backend, reads, now)

    def _are_classes_due(self, backend: Backend, reads: _Reads, now: float) -> bool:
        """Return True if all classes of a backend are to be read again."""
        read_at, seconds = self._catalogue.read_of(backend.name)
        if now < free_at(read_at, seconds, ALL_CLASSES_SHARE):
            return False
        return reads.is_stale or now - read_at > OLD_SECONDS or self._is_idle(backend)

    async def _refresh(self, backend: Backend, reads: _Reads) -> None:
        try:
            if reads.folders_budget.has_room(time.monotonic()):
                await self._read_folders(backend, reads)
            if self._are_classes_due(backend, reads, time.monotonic()):
                reads.is_stale = False
                await self._catalogue.read(backend)
        finally:
            reads.refresh = None

    async def _read_folders(self, backend: Backend, reads: _Reads) -> None:
        """Read a backend's model folders, and the classes whose lists come from folders that have changed."""
        connection = self._catalogue.connection_of(backend.name)
        began = time.monotonic()
        try:
            if reads.folders is None or reads.folders.connection != connection:
                (answer,) = await self._ask_all(backend, ["/models"], "folders")
                reads.folders = Folders(
                    connection, folders_to_read((list_of(answer) if answer is not None else None) or ())
                )
            changes = await self._changed_folders(backend, reads.folders)
            spent = time.monotonic() - began
            classes = []
            if changes:
                info = self._catalogue.info(backend.name)
                classes = await self._catalogue.compute(lambda rest: outdated_classes(info, changes, rest))
            began = time.monotonic()
            answers = await self._read_classes(backend, reads, classes[:MAX_CLASSES])
            spent += time.monotonic() - began
        except BackendError as error:
            reads.folders_budget.fail(time.monotonic())
            # A change that was seen already must be found again.
            reads.folders = None
            _log.info("folders_not_read", backend=backend.name, error=str(error))
            return
        reads.folders_budget.spend(time.monotonic(), spent)
        reads.is_stale = reads.is_stale or len(classes) > MAX_CLASSES
        await self._catalogue.patch(backend, answers)

    async def _changed_folders(
        self, backend: Backend, folders: Folders
    ) -> list[tuple[Sequence[Any] | None, Sequence[Any]]]:
        """Return the changes of folders, as `outdated_classes` takes them.

        Raises:
            BackendError: the backend did not answer.
        """
        changes: list[tuple[Sequence[Any] | None, Sequence[Any]]] = []
        answers = await self._ask_all(backend, [f"/models/{quote(name, safe='')}" for name in folders.names], "folder")
        for name, answer in zip(folders.names, answers, strict=True):
            if answer is None:
                continue
            digest, known = hashlib.sha256(answer.body).digest(), folders.listed.get(name)
            if known is not None and known[0] == digest:
                continue
            listed = list_of(answer)
            if listed is None:
                continue
            folders.listed[name] = (digest, listed)
            if known is not None or listed:
                changes.append((known[1] if known is not None else None, listed))
        if changes:
            self._catalogue.listings.forget()
        return changes

    async def _reread(self, backend: Backend, reads: _Reads, classes: Sequence[str]) -> None:
        began = time.monotonic()
        try:
            answers = await self._read_classes(backend, reads, classes)
            reads.prompts_budget.spend(time.monotonic(), time.monotonic() - began)
            await self._catalogue.patch(backend, answers)
        except BackendError as error:
            reads.prompts_budget.fail(time.monotonic())
            _log.info("classes_not_read", backend=backend.name, error=str(error))
        finally:
            reads.reread = None

    async def _read_classes(self, backend: Backend, reads: _Reads, classes: Sequence[str]) -> list[bytes]:
        """Return the answers about classes that describe them.

        Raises:
            BackendError: the backend did not answer.
        """
        paths = [f"/object_info/{quote(name, safe='')}" for name in classes]
        answers = await self._ask_all(backend, paths, "class")
        now = time.monotonic()
        # Older ones are not fresh any more.
        reads.class_read_at = {name: at for name, at in reads.class_read_at.items() if now - at < FRESH_SECONDS}
        reads.class_read_at.update(dict.fromkeys(classes, now))
        return [answer.body for answer in answers if answer is not None and answer.status == 200]

    async def _ask_all(self, backend: Backend, paths: Sequence[str], kind: str) -> list[Answer | None]:
        """Ask a backend for each path, a few at a time. An answer that can't be read is None.

        If one is not answered, ask no more.

        Raises:
            BackendError: one was not answered.
        """
        began = time.monotonic()
        left, answers = deque(enumerate(paths)), dict[int, Answer | None]()
        failures: list[BackendError] = []

        async def ask() -> None:
            while left:
                place, path = left.popleft()
                try:
                    self._metrics.catalogue_reads.labels(backend.name, kind).inc()
                    answers[place] = await backend.client.call("GET", path, maximum=MAX_BYTES)
                except BadAnswer:
                    answers[place] = None
                except BackendError as error:
                    failures.append(error)
                    left.clear()

        await asyncio.gather(*(ask() for _ in range(min(MAX_AT_ONCE, len(paths)))))
        self._metrics.catalogue_read_seconds.labels(backend.name, kind).inc(time.monotonic() - began)
        if failures:
            raise failures[0]
        return [answers[place] for place in range(len(paths))]


async def _wait(waits: Sequence[tuple[asyncio.Task[None], float]], now: float) -> None:
    """Wait for tasks that began at these times, until the newest of them is `MAX_WAIT` old."""
    left = {task: began + MAX_WAIT - now for task, began in waits if began + MAX_WAIT > now and not task.done()}
    if left:
        await asyncio.wait(left, timeout=max(left.values()))
