"""Refresh the catalogue when a client asks for it, within a small budget of each backend's time.

GET /object_info reads the model folders of each backend first, which takes a few milliseconds. If a folder has changed,
the classes whose lists come from it are read again. All classes are read only from an idle backend, or if the copy is
old. A prompt that names an unknown class or choice makes the gateway read that class again.

However many clients ask, a backend has one read of each kind at a time, and all of them wait for it, `MAX_WAIT` at
most.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from typing import Any
from urllib.parse import quote

from gateway.catalogue.catalogue import Catalogue
from gateway.catalogue.listings import list_of
from gateway.catalogue.model_folders import Folders, folders_to_read, outdated_classes
from gateway.catalogue.read_budget import (
    ALL_CLASSES_SHARE,
    FOLDERS_SHARE,
    MIN_LOOK_PAUSE,
    PROMPTS_SHARE,
    USUAL_ANSWER,
    Budget,
    Cost,
    free_at,
)
from gateway.comfy.client import Answer, BackendError, BadAnswer
from gateway.comfy.errors import Lack
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks, together

_log = logs.get("catalogue")

# Seconds that a client waits for a refresh. Then it gets the last good copy.
MAX_WAIT = 2.0
# Seconds after which all classes are read from a busy backend, too.
OLD_SECONDS = 60.0
# A copy that is no older counts as the backend's own answer. Seconds.
FRESH_SECONDS = 2.0
# A class is not read again for a prompt that lacks the same as another one so many seconds ago.
SAME_LACK_SECONDS = 1.0
# Seconds until a client's request looks again if a read is due for another reason than a budget's room: a backend is
# connected, or became idle.
RECHECK_SECONDS = 0.25
# Sets of backends of which the next look's time is kept.
MAX_SETS = 1_000
# Requests of a refresh at a time: a backend answers one after the other, and more only take connections.
MAX_AT_ONCE = 4
# Classes that one refresh reads again. If more lists came from a folder, the next read of all classes has them.
MAX_CLASSES = 100
# Seconds that a backend's reads wait for another backend's.
MAX_TURN_SECONDS = 0.1
# Bytes of one answer: a class, or the files of a folder.
MAX_BYTES = 8 * 2**20
# Classes of one prompt that are read again, and classes of all prompts that wait for it.
MAX_PROMPT_CLASSES = 8
MAX_WANTED = 64
MAX_LACKS = 1_000


_Running = tuple[asyncio.Task[None], float]


@dataclass(slots=True)
class _Reads:
    """Reads of one backend: its budgets, its folders, when each class was read, and the reads under way.

    `group_costs` are the costs of each few folders, `look_cost` of all of them, `class_cost` of one class. `wanted` are
    the classes that prompts name and nobody has read yet. `read_for` are the hashes of what these lacked, and when
    their classes were read.
    """

    folders_budget: Budget = field(default_factory=lambda: Budget(FOLDERS_SHARE, MIN_LOOK_PAUSE))
    prompts_budget: Budget = field(default_factory=lambda: Budget(PROMPTS_SHARE))
    group_costs: dict[int, Cost] = field(default_factory=dict)
    look_cost: float = 0.0
    class_cost: Cost = field(default_factory=lambda: Cost(USUAL_ANSWER))
    folders: Folders | None = None
    class_read_at: dict[str, float] = field(default_factory=dict)
    is_stale: bool = False
    wanted: dict[str, None] = field(default_factory=dict)
    read_for: dict[int, float] = field(default_factory=dict)
    look: _Running | None = None
    all_classes: _Running | None = None
    reread: _Running | None = None


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
        # For each set of allowed backends, the time before which no read is due or under way.
        self._not_before: dict[Collection[str] | None, float] = {}
        self._asking = asyncio.Lock()

    async def close(self) -> None:
        """Stop reading."""
        await self._tasks.close()

    async def refresh(self, allowed: frozenset[str] | None) -> None:
        """Refresh the catalogue of the backends that are `allowed` (None: all), before a client gets it."""
        now = time.monotonic()
        if now < self._not_before.get(allowed, -inf):
            return
        waits, due_at = list[_Running](), now + RECHECK_SECONDS
        for backend in self._readable(allowed):
            reads = self._of(backend)
            if reads.look is None and reads.folders_budget.has_room(now, reads.look_cost):
                reads.folders_budget.begin(now)
                reads.look = self._tasks.start(self._look(backend, reads), f"look:{backend.name}"), now
            if reads.all_classes is None and self._are_classes_due(backend, reads, now):
                reads.is_stale = False
                reads.all_classes = self._tasks.start(self._read_all(backend, reads), f"all:{backend.name}"), now
            waits += [each for each in (reads.look, reads.all_classes) if each is not None]
            due_at = min(due_at, reads.folders_budget.free_at(reads.look_cost))
        if waits:
            await _wait(waits, now)
            return
        if len(self._not_before) >= MAX_SETS:
            self._not_before.clear()
        self._not_before[allowed] = due_at

    async def reread(self, lacks: Iterable[Lack], allowed: frozenset[str] | None) -> bool:
        """Read the classes again of what a prompt lacks, before it is refused. Return True if anything changed.

        Prompts that lack the same cause one read, and all of them wait for it.
        """
        version, now, waits = self._catalogue.version, time.monotonic(), list[_Running]()
        hashes = {hash(lack): lack.node_class for lack in islice(lacks, MAX_PROMPT_CLASSES)}
        for backend in self._readable(allowed) if hashes else ():
            reads = self._of(backend)
            reads.read_for = {key: at for key, at in reads.read_for.items() if now - at < SAME_LACK_SECONDS}
            if len(reads.wanted) < MAX_WANTED and len(reads.read_for) < MAX_LACKS:
                reads.wanted.update((name, None) for key, name in hashes.items() if key not in reads.read_for)
                reads.read_for.update((key, now) for key in hashes if key not in reads.read_for)
            if reads.wanted and reads.reread is None:
                reads.reread = self._tasks.start(self._reread(backend, reads), f"reread:{backend.name}"), now
            # A look may have read these classes a moment ago. Wait for it, because they are not merged yet.
            waits += [each for each in (reads.reread, reads.look) if each is not None]
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

    def _are_classes_due(self, backend: Backend, reads: _Reads, now: float) -> bool:
        """Return True if all classes of a backend are to be read again."""
        read_at, seconds = self._catalogue.read_of(backend.name)
        if now < free_at(read_at, seconds, ALL_CLASSES_SHARE):
            return False
        return reads.is_stale or now - read_at > OLD_SECONDS or self._is_idle(backend)

    async def _read_all(self, backend: Backend, reads: _Reads) -> None:
        try:
            await self._catalogue.read(backend)
        finally:
            reads.all_classes = None

    async def _look(self, backend: Backend, reads: _Reads) -> None:
        try:
            await self._read_folders(backend, reads)
        finally:
            reads.look = None

    async def _read_folders(self, backend: Backend, reads: _Reads) -> None:
        """Read a backend's model folders, and the classes whose lists come from folders that have changed."""
        connection = self._catalogue.connection_of(backend.name)
        try:
            if reads.folders is None or reads.folders.connection != connection:
                (answer,), _ = await self._ask_all(backend, ["/models"], "folders")
                listed = list_of(answer) if answer is not None else None
                reads.folders, reads.group_costs = Folders(connection, folders_to_read(listed or ())), {}
            changes = await self._changed_folders(backend, reads, reads.folders)
            classes = []
            if changes:
                info = self._catalogue.info(backend.name)
                classes = await self._catalogue.compute(lambda rest: outdated_classes(info, changes, rest))
            answers = await self._read_classes(backend, reads, classes[:MAX_CLASSES], reads.folders_budget)
        except BackendError as error:
            reads.folders_budget.fail(time.monotonic())
            # A change that was seen already must be found again.
            reads.folders = None
            _log.info("folders_not_read", backend=backend.name, error=str(error))
            return
        reads.is_stale = reads.is_stale or len(classes) > MAX_CLASSES
        await self._catalogue.patch(backend, answers)

    async def _changed_folders(
        self, backend: Backend, reads: _Reads, folders: Folders
    ) -> list[tuple[Sequence[Any] | None, Sequence[Any]]]:
        """Return the changes of folders, as `outdated_classes` takes them.

        Raises:
            BackendError: the backend did not answer.
        """
        changes: list[tuple[Sequence[Any] | None, Sequence[Any]]] = []
        paths = [f"/models/{quote(name, safe='')}" for name in folders.names]
        answers, times = await self._ask_all(backend, paths, "folder")
        for group, seconds in enumerate(times):
            reads.group_costs.setdefault(group, Cost(USUAL_ANSWER * MAX_AT_ONCE)).note(seconds)
        reads.look_cost = sum(cost.seconds for cost in reads.group_costs.values())
        self._spend(backend, reads.folders_budget, reads.look_cost, "folder")
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

    async def _reread(self, backend: Backend, reads: _Reads) -> None:
        """Read the classes that prompts want, and those that they want meanwhile, as long as there is room."""
        budget = reads.prompts_budget
        try:
            while classes := list(reads.wanted)[:MAX_PROMPT_CLASSES]:
                if not budget.has_room(time.monotonic(), reads.class_cost.seconds * len(classes)):
                    return
                for name in classes:
                    del reads.wanted[name]
                answers = await self._read_classes(backend, reads, classes, budget)
                await self._catalogue.patch(backend, answers)
        except BackendError as error:
            budget.fail(time.monotonic())
            _log.info("classes_not_read", backend=backend.name, error=str(error))
        finally:
            reads.reread, reads.wanted = None, {}

    async def _read_classes(
        self, backend: Backend, reads: _Reads, classes: Sequence[str], budget: Budget
    ) -> list[bytes]:
        """Return the answers about classes that describe them.

        Raises:
            BackendError: the backend did not answer.
        """
        if not classes:
            return []
        # A prompt may name half a surrogate pair, which no URL of a class can have.
        paths = [f"/object_info/{quote(name, safe='', errors='replace')}" for name in classes]
        answers, times = await self._ask_all(backend, paths, "class")
        reads.class_cost.note(sum(times) / len(classes))
        self._spend(backend, budget, reads.class_cost.seconds * len(classes), "class")
        now = time.monotonic()
        # Older ones are not fresh any more.
        reads.class_read_at = {name: at for name, at in reads.class_read_at.items() if now - at < FRESH_SECONDS}
        reads.class_read_at.update(dict.fromkeys(classes, now))
        return [answer.body for answer in answers if answer is not None and answer.status == 200]

    def _spend(self, backend: Backend, budget: Budget, cost: float, kind: str) -> None:
        budget.spend(time.monotonic(), cost)
        self._metrics.catalogue_read_cost.labels(backend.name, kind).inc(cost)

    async def _ask_all(
        self, backend: Backend, paths: Sequence[str], kind: str
    ) -> tuple[list[Answer | None], list[float]]:
        """Ask a backend for each path, a few at a time. Return the answers, and how many seconds each few of them took.

        An answer that can't be read is None. If one is not answered, ask no more.

        Raises:
            BackendError: one was not answered.
        """
        answers, times = list[Answer | None](), list[float]()

        async def ask(path: str) -> Answer | BackendError | None:
            try:
                return await backend.client.call("GET", path, maximum=MAX_BYTES)
            except BadAnswer:
                return None
            except BackendError as error:
                return error

        async with self._turn():
            for place in range(0, len(paths), MAX_AT_ONCE):
                few, began = paths[place : place + MAX_AT_ONCE], time.monotonic()
                self._metrics.catalogue_reads.labels(backend.name, kind).inc(len(few))
                said = await together(ask(path) for path in few)
                times.append(time.monotonic() - began)
                self._metrics.catalogue_read_seconds.labels(backend.name, kind).inc(times[-1])
                for answer in said:
                    if isinstance(answer, BackendError):
                        raise answer
                    answers.append(answer)
        return answers, times

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Let one backend be asked after the other, because the gateway's work for the others would count as theirs.

        If a backend takes long, do not wait for it.
        """
        has_turn = False
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_TURN_SECONDS):
                has_turn = await self._asking.acquire()
        try:
            yield
        finally:
            if has_turn:
                self._asking.release()


async def _wait(waits: Sequence[tuple[asyncio.Task[None], float]], now: float) -> None:
    """Wait for tasks that began at these times, until the newest of them is `MAX_WAIT` old."""
    left = {task: began + MAX_WAIT - now for task, began in waits if began + MAX_WAIT > now and not task.done()}
    if left:
        await asyncio.wait(left, timeout=max(left.values()))
