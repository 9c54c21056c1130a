"""The fleet: it probes and hears each backend in a task of its own, so that a hung one delays nobody."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Protocol

import aiohttp

from gateway.comfy import events
from gateway.comfy.client import MAX_SOCKET_MESSAGE, BackendError, Refused, TimedOut, Unreachable
from gateway.comfy.responses import Queue, SystemStats, read_features
from gateway.fleet.backend import Backend, client_of
from gateway.fleet.backend_log import BackendLog
from gateway.fleet.counting import counting_session
from gateway.fleet.diagnosis import REFUSED
from gateway.fleet.health import Health, Pulse
from gateway.fleet.outlier_ejection import Ejections
from gateway.fleet.persistence import record_of, restore
from gateway.settings import BackendSettings, Settings
from gateway.store.protocol import BackendRecord, Store, StoreDamaged
from gateway.store.sqlite_errors import RECOVER
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import TURN_SECONDS, Loop, Tasks

_log = logs.get("fleet")

RECONNECT_FIRST = 0.1
MAX_RECONNECT = 5.0
DEAF_HINT = (
    "a prompt ran there of which no event came, so another program is connected with this gateway's client_id, most"
    " likely a gateway on a copy of this data_dir"
)
# A binary message of so many bytes may have to wait for room.
LARGE_MESSAGE = 32 * 1024


class FleetListener(Protocol):
    """Receiver of the fleet's events: the jobs package."""

    def heard_event(self, backend: Backend, event: events.Event) -> None:
        """Handle a text message."""

    async def heard_long_event(self, backend: Backend, event: events.Event) -> None:
        """Handle a long text message. The fleet reads the next message when this returns."""

    def heard_binary(self, backend: Backend, frame: bytes) -> None:
        """Handle a binary message."""

    async def heard_large_text(self, backend: Backend, text: bytes) -> bool:
        """Handle a large text message; return True if it was read. The fleet reads the next one when this returns."""

    async def heard_large_binary(self, backend: Backend, frame: bytes) -> None:
        """Handle a large binary message. The fleet reads the next message when this returns."""

    def heard_too_much(self, backend: Backend) -> None:
        """Handle a message that is too large to be read. The fleet closes the socket, and opens it again."""

    def is_ours(self, backend: Backend, item: Sequence[Any]) -> bool:
        """Return True if an item of a backend's queue is of this gateway."""

    async def connected(self, backend: Backend) -> None:
        """Reconcile a backend whose socket is up, before it gets jobs and before its events are read."""

    def probed(self, backend: Backend, queue: Queue, asked_at: float) -> None:
        """Handle the `queue` that a probe brought. The probe was sent at `asked_at` (monotonic seconds)."""

    def measured(self, backend: Backend, stats: SystemStats) -> None:
        """Handle the `stats` that a probe brought."""

    def down(self, backend: Backend) -> None:
        """Handle a backend that is gone or lost: its jobs must go elsewhere."""

    def available(self) -> None:
        """Note that some backend may take more work than before."""


class FleetNews(Protocol):
    """Receiver of news of the fleet, for people and their programs."""

    def backend_down(self, name: str) -> None:
        """Note that a backend is gone or lost."""

    def backend_up(self, name: str) -> None:
        """Note that a backend's socket was opened."""

    def backend_poisoned(self, name: str) -> None:
        """Note that a backend can't use its GPU until its process is a new one."""


class Fleet:
    """All backends. `restore`, then `start` to watch them; `stop` ends that, `close` closes their connections."""

    def __init__(self, settings: Settings, metrics: Metrics, client_id: str, store: Store) -> None:
        self._settings = settings
        self._metrics = metrics
        self._client_id = client_id
        self._store = store
        self._held: list[BackendRecord] = []
        self._listener: FleetListener
        self._tasks = Tasks("fleet")
        self._listening: dict[str, Loop] = {}
        self._reconnect_after: dict[str, float] = {}
        self._sockets: dict[str, asyncio.Timeout] = {}
        self._log: BackendLog
        self.backends: dict[str, Backend] = {}
        names, eject = [entry.name for entry in settings.backends], settings.ejection
        self.ejections = Ejections(names, eject.after, eject.first, eject.max_time, eject.max_ejected)
        self._session: aiohttp.ClientSession | None = None
        self._news = asyncio.Event()
        # Receiver of news; None if there is none.
        self.news: FleetNews | None = None

    async def restore(self) -> None:
        """Read the records of backends from earlier runs."""
        self._held = await self._store.backends()

    def start(self, listener: FleetListener) -> None:
        """Connect to every backend; `listener` gets the fleet's events from now on."""
        self._listener = listener
        self._session = counting_session(self._metrics.traffic)
        self._log = BackendLog(self._session, self._settings.probe.timeout)
        now = time.monotonic()
        for entry in self._settings.backends:
            client = client_of(entry, self._settings, self._session)
            backend = Backend(
                entry.name,
                entry.url,
                entry.max_queue or self._settings.dispatch.max_queue,
                entry.primary,
                client,
                Pulse(self._settings.probe.lost_after, now),
                tenants=frozenset(entry.tenants),
                weight=entry.weight,
                used_at=len(self.backends) - len(self._settings.backends),  # The first in the file goes first.
            )
            self.backends[backend.name] = backend
            self._metrics.backend_up.labels(backend.name).set(0)
            self._metrics.backend_poisoned.labels(backend.name).set(0)
            self._metrics.backend_drained.labels(backend.name).set(0)
            self._metrics.backend_ejected.labels(backend.name).set_function(partial(self._is_ejected, backend.name))
        self._restore_records()
        for backend in self.backends.values():
            self._tasks.repeat(partial(self._probe, backend), f"probe:{backend.name}", self._probe_pause)
            listening = partial(self._listen_once, backend), f"socket:{backend.name}"
            self._reconnect_after[backend.name] = RECONNECT_FIRST
            self._listening[backend.name] = self._tasks.repeat(*listening, partial(self._reconnect_pause, backend))

    def _restore_records(self) -> None:
        for record in self._held:
            backend = self.backends.get(record.backend)
            if backend is None:
                continue
            try:
                restore(record, backend, self.ejections, time.monotonic(), time.time())
            except (ValueError, TypeError) as error:
                raise StoreDamaged(f"what the journal holds against {backend.name} is damaged; {RECOVER}") from error
            self._metrics.backend_poisoned.labels(backend.name).set(backend.poisoned is not None)
            self._metrics.backend_drained.labels(backend.name).set(backend.drained)

    def _remember(self, backend: Backend) -> None:
        self._store.write([record_of(backend, self.ejections, time.monotonic(), time.time())])

    async def stop(self) -> None:
        """Stop watching. Jobs on the backends run on."""
        await self._tasks.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def settled(self, names: Collection[str]) -> None:
        """Wait until each of these backends is reconciled or known to be down; at most twice a probe's timeout."""

        def is_unknown(backend: Backend) -> bool:
            return not backend.connected and backend.health not in (Health.GONE, Health.LOST)

        try:
            async with asyncio.timeout(2 * self._settings.probe.timeout):
                while any(is_unknown(self.backends[name]) for name in names):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            _log.warning("backends_not_reconciled", backends=sorted(names))

    @property
    def configured(self) -> Sequence[BackendSettings]:
        """Return the backends of the configuration."""
        return self._settings.backends

    @property
    def by_preference(self) -> Sequence[Backend]:
        """Return the backends: living ones before the others, the primary first of them, dedicated ones last."""
        return sorted(self.backends.values(), key=lambda b: (not b.pulse.alive, not b.primary, bool(b.tenants)))

    def alive(self, allowed: Collection[str] | None = None) -> list[Backend]:
        """Return the living backends that are `allowed` (None: all), the primary first."""
        return [b for b in self.by_preference if b.pulse.alive and (allowed is None or b.name in allowed)]

    @property
    def primary(self) -> Backend | None:
        """Return the backend for users, settings and static files: the one so marked, else the first that is alive.

        A dedicated backend never is, because others than its tenants would depend on it.
        """
        return next((backend for backend in self.by_preference if not backend.tenants), None)

    def refused(self, backend: Backend) -> None:
        """Note that a backend refused a connection: it is gone."""
        was = backend.health
        backend.pulse.refused()
        self._log.tell(backend, self._changed(backend, was), REFUSED)

    def poisoned(self, backend: Backend, upstream_id: str) -> None:
        """Mark a backend as poisoned: a prompt there ended with an error that only a restart of its process heals."""
        if backend.poisoned is None:
            _log.error("backend_poisoned", backend=backend.name)
            if self.news is not None:
                self.news.backend_poisoned(backend.name)
        backend.poisoned = upstream_id
        self._remember(backend)
        self._metrics.backend_poisoned.labels(backend.name).set(1)
        self._metrics.backend_up.labels(backend.name).set(0)

    async def _see_if_restarted(self, backend: Backend) -> None:
        """Clear `poisoned` if the backend's process is a new one: its history lacks the prompt.

        A process keeps its history in memory alone (execution.py, PromptQueue). The socket broke, for whatever reason.
        Nothing else that a backend says tells one process from the next.
        """
        if backend.poisoned is not None and await backend.client.history_entry(backend.poisoned) is None:
            _log.info("backend_restarted", backend=backend.name)
            backend.poisoned = None
            self._remember(backend)
            self._metrics.backend_poisoned.labels(backend.name).set(0)

    def succeeded(self, backend: Backend, kind: frozenset[str]) -> None:
        """Note that a backend ended work of a kind well."""
        if self.ejections.succeeded(backend.name, kind, time.monotonic()):
            self._remember(backend)

    def failed(self, backend: Backend, kind: frozenset[str]) -> None:
        """Note that a backend failed at work of a kind. After too many failures in a row, eject it for a time."""
        seconds = self.ejections.failed(backend.name, kind, time.monotonic(), self._others(backend))
        if seconds is not None:
            self._note_ejection(backend, seconds, "it fails jobs that other backends can do")
        self._remember(backend)

    def eject(self, backend: Backend, reason: str) -> None:
        """Eject a backend for a time, because its machine is at fault. `reason` is the error that showed it."""
        seconds = self.ejections.eject(backend.name, time.monotonic(), self._others(backend))
        if seconds is not None:
            self._note_ejection(backend, seconds, reason)
            self._remember(backend)

    def _others(self, backend: Backend) -> list[str]:
        return [other.name for other in self.backends.values() if other.eligible and other is not backend]

    def _note_ejection(self, backend: Backend, seconds: float, reason: str) -> None:
        backend.ejected_for = reason
        _log.warning("backend_ejected", backend=backend.name, seconds=seconds, reason=reason)

    def drain(self, backend: Backend, *, drained: bool) -> None:
        """Drain a backend, or let it have work again, by an admin's order."""
        backend.drained = drained
        self._metrics.backend_drained.labels(backend.name).set(drained)
        self._remember(backend)

    def _is_ejected(self, name: str) -> int:
        return int(name in self.ejections.ejected(time.monotonic()))

    def _probe_pause(self) -> float:
        return self._settings.probe.interval * random.uniform(0.8, 1.2)

    async def _probe(self, backend: Backend) -> None:
        was, began = backend.health, time.monotonic()
        outcome = "ok"
        failure: BackendError | None = None
        try:
            queue = await backend.client.queue()
            backend.pulse.answered(time.monotonic())
            self._take_queue(backend, queue, began)
            await self._take_stats(backend)
        except Refused as error:
            outcome, failure = "refused", error
            backend.pulse.refused()
        except (TimedOut, Unreachable) as error:
            outcome, failure = "timeout", error
            backend.pulse.timed_out(time.monotonic())
        except BackendError as error:
            outcome, failure = "error", error
            backend.pulse.timed_out(time.monotonic())
        self._metrics.probe_seconds.labels(backend.name, outcome).observe(time.monotonic() - began)
        # Jobs that must go elsewhere don't wait for the reason.
        now = self._changed(backend, was)
        reason = await self._log.explain(backend, was, failure)
        if backend.health is not now:
            # If the health changed during the look for the reason, log nothing, because that change was logged.
            return
        self._log.tell(backend, now, reason, slow=isinstance(failure, TimedOut))

    def _take_queue(self, backend: Backend, queue: Queue, asked_at: float) -> None:
        backend.queue = queue
        if backend.stopping not in queue.running_ids:
            backend.stopping = None
        backend.foreign_running = sum(not self._listener.is_ours(backend, item) for item in queue.running)
        backend.foreign_pending = sum(not self._listener.is_ours(backend, item) for item in queue.pending)
        self._metrics.backend_running.labels(backend.name).set(len(queue.running))
        if backend.connected and not backend.is_reading:
            self._listener.probed(backend, queue, asked_at)

    async def _take_stats(self, backend: Backend) -> None:
        try:
            stats = backend.stats = await backend.client.system_stats()
        except BackendError as error:
            # If only the stats fail, go on, because the queue was answered and the memory is only shown.
            _log.info("system_stats_not_read", backend=backend.name, error=str(error))
            return
        self._listener.measured(backend, stats)
        self._metrics.ram_free.labels(backend.name).set(stats.system.get("ram_free", 0))
        self._metrics.ram_total.labels(backend.name).set(stats.system.get("ram_total", 0))
        for place, device in stats.gpus:
            self._metrics.vram_free.labels(backend.name, str(place)).set(device.get("vram_free", 0))
            self._metrics.vram_total.labels(backend.name, str(place)).set(device.get("vram_total", 0))

    def _changed(self, backend: Backend, was: Health) -> Health:
        now = backend.health
        self._metrics.backend_up.labels(backend.name).set(backend.able)
        self._news.set()
        if now is was:
            return now
        if now in (Health.GONE, Health.LOST):
            backend.connected = False
            self._metrics.backend_running.labels(backend.name).set(0)
            self._cut(backend)
            self._listener.down(backend)
            if self.news is not None and was not in (Health.GONE, Health.LOST):
                self.news.backend_down(backend.name)
        elif now is Health.UP:
            # If a probe finds the backend up again, reconnect at once, because its jobs wait for the socket.
            self._listening[backend.name].wake()
            self._listener.available()
        return now

    async def _listen_once(self, backend: Backend) -> None:
        """Connect, and listen until the socket breaks."""
        began = time.monotonic()
        try:
            await self._listen(backend)
        except Refused:
            self.refused(backend)
        except TimeoutError:
            pass
        except BackendError as error:
            self._log.socket_failed(backend, error)
        finally:
            if backend.connected:
                # Is its process gone? A refused connection tells at once, and its jobs need not wait for the pause.
                self._tasks.start(self._probe(backend), f"look:{backend.name}")
            backend.connected = False
            self._sockets.pop(backend.name, None)
            # A socket that held for a while earns a quick reconnect; one that fails at once must not spin.
            held = time.monotonic() - began > MAX_RECONNECT
            seconds = RECONNECT_FIRST if held else min(self._reconnect_after[backend.name] * 2, MAX_RECONNECT)
            self._reconnect_after[backend.name] = seconds
            self._listening[backend.name].forget_wake()

    def _reconnect_pause(self, backend: Backend) -> float:
        return self._reconnect_after[backend.name] * random.uniform(0.8, 1.2)

    def reconnect(self, backend: Backend) -> None:
        """Open the socket anew, because events about prompts do not come through it: another client has its name."""
        _log.warning("socket_deaf", backend=backend.name, hint=DEAF_HINT)
        self._metrics.sockets_deaf.labels(backend.name).inc()
        self._cut(backend)

    def _cut(self, backend: Backend) -> None:
        """Drop the socket of a backend, so that the gateway reconciles it like a new one if it comes back."""
        scope = self._sockets.get(backend.name)
        if scope is not None:
            scope.reschedule(asyncio.get_running_loop().time())

    async def _listen(self, backend: Backend) -> None:
        # A model load blocks ComfyUI's loop, pongs included, so the wait for a pong is as long as for any sign of life.
        heartbeat = 2 * self._settings.probe.lost_after
        async with asyncio.timeout(None) as scope, backend.client.socket(self._client_id, heartbeat) as socket:
            await socket.send_str(events.encode("feature_flags", {"supports_preview_metadata": True}).decode())
            backend.pulse.heard(time.monotonic())
            await self._see_if_restarted(backend)
            await self._listener.connected(backend)
            self._sockets[backend.name] = scope
            self._connected(backend)
            spent = 0.0
            async for message in socket:
                began = time.monotonic()
                backend.message_at = began
                backend.pulse.heard(began)
                if message.type is aiohttp.WSMsgType.TEXT:
                    if len(message.data) < events.LONG:
                        self._heard_text(backend, bytes(message.data))
                    else:
                        await self._heard_long_text(backend, message.data)
                elif message.type is aiohttp.WSMsgType.BINARY:
                    if len(message.data) < LARGE_MESSAGE:
                        self._listener.heard_binary(backend, message.data)
                    else:
                        await self._listener.heard_large_binary(backend, message.data)
                elif (
                    message.type is aiohttp.WSMsgType.ERROR and socket.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
                ):
                    # If a message is too large, give the socket up, because the rest of the message is never read.
                    _log.warning("message_too_large", backend=backend.name, maximum=MAX_SOCKET_MESSAGE)
                    self._metrics.events_refused.labels(backend.name).inc()
                    self._listener.heard_too_much(backend)
                spent += time.monotonic() - began
                if spent > TURN_SECONDS:
                    # If many messages have come at once, the next one is there without a wait.
                    await asyncio.sleep(0)
                    spent = 0.0

    def _connected(self, backend: Backend) -> None:
        was = backend.health
        backend.pulse.answered(time.monotonic())
        backend.connected = True
        self._tasks.start(self._log.connected(backend), f"kind:{backend.name}")
        self._log.tell(backend, self._changed(backend, was))
        self._metrics.backend_up.labels(backend.name).set(backend.able)
        if self.news is not None:
            self.news.backend_up(backend.name)
        self._listener.available()

    async def _heard_long_text(self, backend: Backend, text: bytes) -> None:
        backend.is_reading = True
        try:
            if events.is_large(text):
                backend.heard_prompt_at = time.monotonic()
                if not await self._listener.heard_large_text(backend, text):
                    self._refused(backend, text)
                return
            # Each of these takes long, so others have their turn between.
            await asyncio.sleep(0)
            event = self._read(backend, text, events.read(bytes(text)))
            await asyncio.sleep(0)
            if event is not None:
                await self._listener.heard_long_event(backend, event)
        finally:
            backend.is_reading = False

    def _heard_text(self, backend: Backend, text: bytes) -> None:
        event = self._read(backend, text, events.read(text))
        if event is not None:
            self._listener.heard_event(backend, event)

    def _read(self, backend: Backend, text: bytes, event: events.Event | None) -> events.Event | None:
        """Take note of an event; return it if it is for the listener."""
        if event is None:
            self._refused(backend, text)
            return None
        if event.type == "feature_flags":
            backend.features = read_features(event.data)
            return None
        if event.prompt_id is not None:
            backend.heard_prompt_at = time.monotonic()
        return event

    def _refused(self, backend: Backend, text: bytes) -> None:
        self._metrics.events_refused.labels(backend.name).inc()
        _log.warning("event_refused", backend=backend.name, length=len(text))
