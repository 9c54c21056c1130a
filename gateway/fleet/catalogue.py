"""What the fleet can do, answered from memory: /object_info and the model lists, read in the background.

The last good copy serves while backends are down. Parsing and merging happen in a thread: an installation with many
custom nodes describes itself in 100 MB.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.comfy import wire
from gateway.comfy.client import BackendError
from gateway.fleet import merging
from gateway.fleet.abilities import Abilities, spelled
from gateway.fleet.backend import Backend
from gateway.fleet.editions import Body, Edition, make_edition
from gateway.fleet.files import FileIndex
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.fleet.placements import Placements
from gateway.settings import CatalogueSettings
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks

_log = logs.get("catalogue")

MAX_LISTS = 512
MAX_BODIES = 16
INTRODUCTION_LIMIT = 2.0


_NOTHING_KNOWN = Abilities()


@dataclass(slots=True)
class _Listing:
    read_at: float
    value: list[Any]


@dataclass(slots=True)
class Catalogue:
    """The merged catalogue of a fleet."""

    fleet: Fleet
    settings: CatalogueSettings
    files: FileIndex
    placements: Placements
    edition: Edition | None = None
    _infos: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _lists: dict[str, _Listing] = field(default_factory=dict)
    _bodies: OrderedDict[str, tuple[Edition, int, Body]] = field(default_factory=OrderedDict)
    _tasks: Tasks = field(default_factory=lambda: Tasks("catalogue"))
    _reading: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _merging: asyncio.Lock = field(default_factory=asyncio.Lock)

    def start(self) -> None:
        """Begin to read the backends again and again."""
        self._tasks.start(self._refresh_for_ever(), "refresh")

    async def close(self) -> None:
        """Stop reading."""
        await self._tasks.close()

    def changed(self, backend: Backend) -> None:
        """A backend came, or something that it lists may have changed: read it soon."""
        self._lists.clear()
        if backend.name not in self._reading:
            task = self._tasks.start(self._read(backend), backend.name)
            self._reading[backend.name] = task
            task.add_done_callback(lambda _: self._reading.pop(backend.name, None))

    async def introduce(self, backend: Backend) -> None:
        """A backend was connected. It is read before it takes work, if that is quickly done."""
        self.changed(backend)
        await asyncio.wait({self._reading[backend.name]}, timeout=INTRODUCTION_LIMIT)

    async def first_edition(self) -> Edition | None:
        """The newest edition; right after the start, the first one when it is there."""
        if self.edition is None and self._reading:
            await asyncio.wait(list(self._reading.values()), timeout=self.settings.timeout)
        return self.edition

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.refresh)
            for backend in self.fleet.backends.values():
                if backend.eligible:
                    self.changed(backend)

    async def _read(self, backend: Backend) -> None:
        try:
            answer = await backend.client.call("GET", "/object_info", timeout=self.settings.timeout)
            info = await asyncio.to_thread(wire.loads, answer.body) if answer.status == 200 else None
        except (BackendError, wire.MalformedJson) as error:
            _log.warning("object_info", backend=backend.name, error=str(error))
            return
        if not isinstance(info, dict) or self._infos.get(backend.name) == info:
            return
        self._infos[backend.name] = info
        async with self._merging:
            # In the file's order, the primary first: which description stands must not depend on who answers first.
            order = sorted(self.fleet.backends.values(), key=lambda b: not b.primary)
            infos = {b.name: self._infos[b.name] for b in order if b.name in self._infos}
            self.edition = await asyncio.to_thread(make_edition, infos, self.placements.is_name)

    async def body(self, edition: Edition, tenant: str) -> Body:
        """An edition as a tenant sees it: with its own uploads in the lists that offer files."""
        version = self.files.version(tenant)
        tenant = tenant if version else ""
        known = self._bodies.get(tenant)
        if known is not None and known[:2] == (edition, version):
            self._bodies.move_to_end(tenant)
            return known[2]
        body = await asyncio.to_thread(edition.body, list(self.files.uploads(tenant)))
        self._bodies[tenant] = (edition, version, body)
        while len(self._bodies) > MAX_BODIES:
            self._bodies.popitem(last=False)
        return body

    @property
    def abilities(self) -> Abilities:
        """What differs between backends, as far as they are known."""
        return self.edition.abilities if self.edition is not None else _NOTHING_KNOWN

    def unknown(self) -> frozenset[str]:
        """The backends that may still turn out to be able to do more than those that are known."""
        return frozenset(
            backend.name
            for backend in self.fleet.backends.values()
            if backend.name not in self.abilities.backends
            and (backend.pulse.alive or backend.health is Health.STARTING)
        )

    def info(self, backend: str) -> Mapping[str, Any]:
        """What a backend itself says of its node classes; empty while unknown."""
        return self._infos.get(backend, {})

    def spelled(self, backend: str, node_class: str, input_name: str, value: str) -> str:
        """A choice as this backend spells it: a model in a subfolder with its own platform's separator."""
        return spelled(self.info(backend).get(node_class), input_name, value)

    async def listing(self, path: str) -> list[Any] | None:
        """The union of a route that lists names (/models/…, /embeddings); None if no backend has it."""
        known = self._lists.get(path)
        if known is not None and time.monotonic() - known.read_at < self.settings.refresh:
            return known.value
        answers = await asyncio.gather(*(_list(b, path) for b in self.fleet.by_preference if b.pulse.alive))
        lists = [answer for answer in answers if answer is not None]
        if not lists:
            return known.value if known is not None else None
        if len(self._lists) >= MAX_LISTS:
            self._lists.clear()
        listing = self._lists[path] = _Listing(time.monotonic(), merging.union(lists))
        return listing.value


async def _list(backend: Backend, path: str) -> list[Any] | None:
    try:
        value = await backend.client.json(path)
    except BackendError:
        return None
    return value if isinstance(value, list) else None
