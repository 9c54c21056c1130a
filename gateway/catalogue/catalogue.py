"""The catalogue: /object_info and the model lists of the fleet, read in the background, answered from memory.

The last good copy serves while backends are down. What is long is done by a `Worker`, class by class: an installation
with many custom nodes describes itself in 100 MB.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gateway.catalogue import merging, tenant_view
from gateway.catalogue.capabilities import Capabilities, spelled
from gateway.catalogue.descriptions import Description, describe, keep, patched, read_kept, tell
from gateway.catalogue.listings import Listings
from gateway.catalogue.object_info import Body, Make, MergedCatalogue, make_view, merge_catalogue, merge_sound_parts
from gateway.catalogue.worker import Worker
from gateway.comfy import json_codec
from gateway.comfy.client import BackendError
from gateway.comfy.file_refs import FileRef
from gateway.files.index import FileIndex
from gateway.files.placements import Placements
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.settings import CatalogueSettings
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks
from gateway.tenants.policy import Policy, View
from gateway.tenants.secret_names import is_secret_path

_log = logs.get("catalogue")

MAX_BODIES = 16
# Of all encoded catalogues together; the one that was asked for last is kept whatever its size.
MAX_BODIES_BYTES = 128 * 2**20
MAX_VIEWS = 64
# Requests that wait for the first merged catalogue after a start.
MAX_EARLY = 256
INTRODUCTION_LIMIT = 2.0


_NOTHING_KNOWN = Capabilities()

T = TypeVar("T")


@dataclass(slots=True)
class Catalogue:
    """The merged catalogue of a fleet."""

    fleet: Fleet
    settings: CatalogueSettings
    files: FileIndex
    placements: Placements
    directory: Path
    metrics: Metrics
    merged_catalogue: MergedCatalogue | None = None
    # It grows whenever the merged catalogue does, or the backends that are `current` change.
    version: int = 0
    # The backends that have described themselves since they were last connected.
    current: frozenset[str] = frozenset()
    _said: dict[str, Description] = field(default_factory=dict)
    # When each backend's classes were last read as a whole (monotonic), and how many seconds the answer took.
    _read_at: dict[str, tuple[float, float]] = field(default_factory=dict)
    # When each backend last confirmed its classes, by the same clock; and when the catalogue was made.
    _confirmed_at: dict[str, float] = field(default_factory=dict)
    _made_at: float = field(default_factory=time.monotonic)
    _bodies: OrderedDict[tuple[View | None, str], tuple[MergedCatalogue, int, Body]] = field(
        default_factory=OrderedDict
    )
    _views: OrderedDict[View, tuple[MergedCatalogue, MergedCatalogue | None]] = field(default_factory=OrderedDict)
    _tasks: Tasks = field(default_factory=lambda: Tasks("catalogue"))
    _reading: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _merging: asyncio.Lock = field(default_factory=asyncio.Lock)
    _encoding: asyncio.Lock = field(default_factory=asyncio.Lock)
    _worker: Worker = field(default_factory=lambda: Worker("catalogue"))
    # How many wait for the first merged catalogue.
    _early: int = 0
    # Values of earlier merged catalogues that may be large.
    _outdated: list[Any] = field(default_factory=list)
    # How often each backend was connected.
    _connections: Counter[str] = field(default_factory=Counter)
    # How often single classes of each backend were new.
    _patches: Counter[str] = field(default_factory=Counter)
    listings: Listings = field(init=False)

    def __post_init__(self) -> None:
        self.listings = Listings(self.fleet, self.settings.refresh)

    async def restore(self) -> None:
        """Read the backends' descriptions of an earlier run, to use them until the backends send new ones."""
        names = [backend.name for backend in self.fleet.configured]
        self._said = await asyncio.to_thread(read_kept, self.directory, names)
        await self._merge()

    def start(self) -> None:
        """Begin to read the backends again and again."""
        self._tasks.repeat(self._refresh, "refresh", self.settings.refresh, at_once=False)

    async def close(self) -> None:
        """Stop reading."""
        await self._tasks.close()
        self._worker.close()

    def changed(self, backend: Backend) -> None:
        """Read a backend soon, because it is new, or its lists may have changed."""
        self.listings.forget()
        self._start_reading(backend)

    async def read(self, backend: Backend) -> None:
        """Read all classes of a backend."""
        await asyncio.wait({self._start_reading(backend)})

    def _start_reading(self, backend: Backend) -> asyncio.Task[None]:
        if backend.name not in self._reading:
            task = self._tasks.start(self._read(backend), backend.name)
            self._reading[backend.name] = task
            task.add_done_callback(lambda _: self._reading.pop(backend.name, None))
        return self._reading[backend.name]

    async def introduce(self, backend: Backend) -> None:
        """Read a backend that was connected before it gets work, if that is quickly done.

        It may be another process than before, with other node classes, so it is not `current` until it is read.
        """
        self._mark(self.current - {backend.name})
        self._connections[backend.name] += 1
        self.changed(backend)
        await asyncio.wait({self._reading[backend.name]}, timeout=INTRODUCTION_LIMIT)

    async def first_merge(self) -> MergedCatalogue | None:
        """Return the newest merged catalogue; at the start wait for the first one, unless many wait already."""
        if self.merged_catalogue is not None or self._early >= MAX_EARLY:
            return self.merged_catalogue
        self._early += 1
        ends_at = time.monotonic() + self.settings.timeout
        try:
            while self.merged_catalogue is None and self._reading and (left := ends_at - time.monotonic()) > 0:
                # The one that answers first is enough: another may hang.
                await asyncio.wait(list(self._reading.values()), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._early -= 1
        return self.merged_catalogue

    async def _refresh(self) -> None:
        for backend in self.fleet.backends.values():
            if backend.eligible:
                self.changed(backend)

    async def _read(self, backend: Backend) -> None:
        """Read a backend; again if it was connected or patched meanwhile, because the answer may be from before."""
        before = None
        while before != (before := (self._connections[backend.name], self._patches[backend.name])):
            is_read = await self._read_once(backend)
        if is_read:
            self._confirmed_at[backend.name] = time.monotonic()
            self._mark(self.current | {backend.name})

    async def _read_once(self, backend: Backend) -> bool:
        """Return True if the backend has described itself."""
        known, began = self._said.get(backend.name), time.monotonic()
        try:
            try:
                pieces = await backend.client.object_info(self.settings.timeout)
            finally:
                self._note_read(backend.name, time.monotonic() - began)
            said, body = await self._worker.run(describe, pieces, known, list(self._said.values()), self._worker.rest)
        except (BackendError, json_codec.MalformedJson) as error:
            _log.warning("object_info_not_read", backend=backend.name, error=str(error))
            return False
        if said.says_the_same(known):
            return True
        tell(backend.name, said.info)
        if not said.classes:
            # An error page, or no ComfyUI. What the backend said before stands.
            return False
        if known is not None:
            self._outdated += known.classes.values()
            # Nothing but that list must hold them, or they are freed in one piece.
            known = None
        self._said[backend.name] = said
        async with self._merging:
            await self._merge()
            if backend.name in self._said:
                await asyncio.to_thread(keep, self.directory, backend.name, body)
        return True

    def _note_read(self, backend: str, seconds: float) -> None:
        self._read_at[backend] = (time.monotonic(), seconds)
        self.metrics.catalogue_reads.labels(backend, "object_info").inc()
        self.metrics.catalogue_read_seconds.labels(backend, "object_info").inc(seconds)

    def read_of(self, backend: str) -> tuple[float, float]:
        """Return when a backend's classes were last read as a whole (monotonic), and how long its answer took."""
        return self._read_at.get(backend, (-math.inf, 0.0))

    def confirmed_at(self, backend: str) -> float:
        """Return when a backend last described itself (monotonic), or when the catalogue was made if it has not."""
        return self._confirmed_at.get(backend, self._made_at)

    def connection_of(self, backend: str) -> int:
        """Return the number of a backend's connection: another process may be behind the next one."""
        return self._connections[backend]

    async def compute(self, work: Callable[[Callable[[], None]], T]) -> T:
        """Return the result of long work, which is done in the worker; `work` is given the function to rest."""
        return await self._worker.run(work, self._worker.rest)

    async def patch(self, backend: Backend, answers: Sequence[bytes]) -> None:
        """Take single classes into the copy of a backend, from its answers to GET /object_info/{class}."""
        known, said = None, None
        # If the copy has changed meanwhile, change the new one.
        while known is None or self._said.get(backend.name) is not known:
            known = self._said.get(backend.name)
            if known is None or not answers:
                return
            others = [each for name, each in self._said.items() if name != backend.name]
            said = await self._worker.run(patched, known, answers, others, self._worker.rest)
        if said is None or said is known:
            return
        self._patches[backend.name] += 1
        self._outdated += (known.classes[name] for name in said.classes if name in known.classes)
        self._said[backend.name] = said
        async with self._merging:
            await self._merge()

    async def _merge(self) -> None:
        """Make the newest merged catalogue of all known descriptions."""
        if infos := self._in_order():
            merged_catalogue = await self._made_of(infos, self._make)
            if merged_catalogue is not None:
                self._publish(merged_catalogue)
        outdated, self._outdated = self._outdated, []
        await self._worker.run(self._worker.let_go, outdated)

    def _publish(self, merged_catalogue: MergedCatalogue) -> None:
        older = [made for _, made in self._views.values() if made is not None]
        if self.merged_catalogue is not None:
            older.append(self.merged_catalogue)
            self._outdated += (profile for _, profile in self.merged_catalogue.profiles.made.values())
        for each in older:
            self._retire(each)
        self._outdated += (body for _, _, body in self._bodies.values())
        self._views.clear()
        self._bodies.clear()
        self.merged_catalogue, self.version = merged_catalogue, self.version + 1

    def _retire(self, merged_catalogue: MergedCatalogue) -> None:
        """Note the parts of an outdated merged catalogue, so that they are freed bit by bit."""
        for held in (merged_catalogue.classes.values(), merged_catalogue.file_lists, merged_catalogue.parts):
            self._outdated += held

    def _make(self, infos: Mapping[str, Mapping[str, Any]], is_upload: Callable[[FileRef], bool]) -> MergedCatalogue:
        known = self.merged_catalogue.profiles if self.merged_catalogue is not None else None
        return merge_catalogue(infos, is_upload, known, self._worker.rest)

    def _make_view(
        self, infos: Mapping[str, Mapping[str, Any]], is_upload: Callable[[FileRef], bool]
    ) -> MergedCatalogue:
        return make_view(infos, is_upload, self._worker.rest)

    def _mark(self, current: frozenset[str]) -> None:
        if current != self.current:
            self.current, self.version = current, self.version + 1

    @property
    def mark(self) -> object:
        """Return the mark of the newest merged catalogue, None if there is none."""
        return self.merged_catalogue.mark if self.merged_catalogue is not None else None

    @property
    def described_by(self) -> frozenset[str]:
        """Return the backends whose node classes are known, be it from before they were last connected."""
        return self.capabilities.backends

    def _in_order(self) -> dict[str, Mapping[str, Any]]:
        """Return descriptions in the configuration's order, primary first: the order of answers must not matter."""
        order = sorted(self.fleet.configured, key=lambda b: not b.primary)
        return {b.name: self._said[b.name].classes for b in order if b.name in self._said}

    async def seen_by(self, policy: Policy) -> MergedCatalogue | None:
        """Return the newest merged catalogue, reduced by a policy; at the start wait for the first one.

        It is made once for all tenants with the same view, when the first of them asks.
        """
        newest = await self.first_merge()
        if newest is None or policy.view is None:
            return newest
        known = self._views.get(policy.view)
        if known is None or known[0] is not newest:
            async with self._merging:
                newest = self.merged_catalogue or newest
                known = self._views.get(policy.view)
                if known is None or known[0] is not newest:
                    infos = await self._worker.run(tenant_view.seen, self._in_order(), policy, self._worker.rest)
                    made = await self._made_of(infos, self._make_view) if infos else None
                    known = self._views[policy.view] = (newest, made)
            while len(self._views) > MAX_VIEWS:
                _, (_, oldest) = self._views.popitem(last=False)
                if oldest is not None:
                    self._retire(oldest)
        return known[1]

    async def _made_of(self, infos: Mapping[str, Mapping[str, Any]], make: Make) -> MergedCatalogue | None:
        """Merge descriptions. If a backend's description breaks the merge, forget it, because others need theirs.

        Return None if no backend is left.
        """
        known = dict(self._said)
        merged_catalogue, broken = await self._worker.run(merge_sound_parts, infos, self._is_kept_back, make)
        for name, error in broken.items():
            _log.error("object_info_left_out", backend=name, error=repr(error), exc_info=error)
            if self._said.get(name) is known[name]:
                del self._said[name]
        return merged_catalogue if len(broken) < len(infos) else None

    def _is_kept_back(self, ref: FileRef) -> bool:
        """Return True for a name that a list must not tell: an upload's, or a secret folder's of an earlier journal."""
        path = f"{ref.subfolder}/{ref.filename}".strip("/")
        return is_secret_path(path) or self.placements.is_name(ref)

    def described(self, names: Iterable[str], policy: Policy) -> Mapping[str, Any]:
        """Return these node classes as a policy permits them, without classes and models that it refuses."""
        if policy.view is None:
            return self.merged_catalogue.classes if self.merged_catalogue is not None else {}
        known = self._views.get(policy.view)
        if known is not None and known[0] is self.merged_catalogue:
            return known[1].classes if known[1] is not None else {}
        own = {name for name in names if not policy.denies_node(name)}
        infos = [
            {name: info[name] for name in own if name in info}
            for backend, info in self._in_order().items()
            if policy.view.may_use(backend)
        ]
        merged = merging.object_info(infos)
        return {name: tenant_view.without_models(description, policy) for name, description in merged.items()}

    async def body(self, merged_catalogue: MergedCatalogue, tenant: str, view: View | None) -> Body:
        """Return a merged catalogue as a tenant sees it: with its own uploads in the lists that offer files."""
        version = self.files.version(tenant)
        key = (view, tenant if version else "")
        known = self._bodies.get(key)
        if known is not None and known[0] is merged_catalogue and known[1] == version:
            self._bodies.move_to_end(key)
            return known[2]
        async with self._encoding:
            known = self._bodies.get(key)
            if known is None or known[0] is not merged_catalogue or known[1] != version:
                body = await asyncio.to_thread(merged_catalogue.body, list(self.files.uploads(key[1])))
                known = self._bodies[key] = (merged_catalogue, version, body)
            self._bodies.move_to_end(key)
        while len(self._bodies) > MAX_BODIES or (len(self._bodies) > 1 and self._bodies_bytes() > MAX_BODIES_BYTES):
            self._bodies.popitem(last=False)
        return known[2]

    def _bodies_bytes(self) -> int:
        return sum(len(body.plain) + len(body.compressed) for _, _, body in self._bodies.values())

    @property
    def capabilities(self) -> Capabilities:
        """Return the differences between backends, as far as they are known."""
        return self.merged_catalogue.capabilities if self.merged_catalogue is not None else _NOTHING_KNOWN

    def unknown(self) -> frozenset[str]:
        """Return the living or starting backends whose capabilities are unknown: they may have more than others."""
        return frozenset(
            backend.name
            for backend in self.fleet.backends.values()
            if backend.name not in self.capabilities.backends
            and (backend.pulse.alive or backend.health is Health.STARTING)
        )

    def info(self, backend: str) -> Mapping[str, Any]:
        """Return a backend's own descriptions of its node classes; none while they are unknown."""
        said = self._said.get(backend)
        return said.classes if said is not None else {}

    def spelled(self, backend: str, node_class: str, input_name: str, value: str) -> str:
        """Return a choice as this backend spells it: a model in a subfolder with its own platform's separator."""
        return spelled(self.info(backend).get(node_class), input_name, value)
