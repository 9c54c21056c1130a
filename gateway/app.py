"""The gateway: builds its parts, starts them in order, and stops them in reverse, also if the start fails half-way."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial

from gateway.artifacts.object_store import ObjectStore
from gateway.bus import LocalBus
from gateway.catalogue.pack_watch import PackWatch
from gateway.fleet.fleet import Fleet
from gateway.fleet.renames import lost_names, urls_to_note
from gateway.fleet.restarts import Restarts
from gateway.fleet.vram_watch import VramWatch
from gateway.jobs.engine import Engine
from gateway.jobs.scheduling.waiting_jobs import is_needed
from gateway.sessions.hub import Hub
from gateway.settings import STREAMS, Settings
from gateway.store.blobs import BlobStore
from gateway.store.known_backends import written_urls
from gateway.store.protocol import BackendUrls
from gateway.store.spool import Spool
from gateway.store.sqlite import SqliteStore
from gateway.store.userdata import UserData
from gateway.telemetry import logs
from gateway.telemetry.audit import Audit
from gateway.telemetry.garbage_collection import Garbage
from gateway.telemetry.log_upkeep import LogUpkeep
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.process_signals import ProcessSignals
from gateway.telemetry.tasks import count_failure, count_restart
from gateway.tenants.browser_sessions import BrowserSessions
from gateway.tenants.keys import Keyring
from gateway.tenants.limits import Limits
from gateway.tenants.lockout import Lockout
from gateway.tenants.policy import Policies
from gateway.tenants.secret_names import SecretNames
from gateway.tenants.stored_keys import StoredKeys
from gateway.web.app import make_app
from gateway.web.guard.authentication import Authentication
from gateway.web.guard.context import Context
from gateway.web.routes.catalogue import shared_features
from gateway.web.server.server import Server
from gateway.web.v2.service import V2
from gateway.webhooks.lookups import Lookups
from gateway.webhooks.receivers import Receivers
from gateway.webhooks.sender import Sender
from gateway.webhooks.service import Webhooks
from gateway.webhooks.urls import Rules
from gateway.workflows.service import Workflows

_log = logs.get("gateway")


def _make_metrics(settings: Settings) -> Metrics:
    """Return the metrics, and let the tasks that begin from now on count their failures there."""
    metrics = Metrics(by_model=settings.auth.metrics == "key")
    count_failure.set(lambda task: metrics.task_failures.labels(task).inc())
    count_restart.set(lambda task: metrics.task_restarts.labels(task).inc())
    return metrics


def _show_store(metrics: Metrics, store: SqliteStore) -> None:
    """Let metrics read the journal's state."""
    metrics.journal_writable.set_function(lambda: not store.trouble)
    metrics.journal_lag.set_function(lambda: store.lag(time.monotonic()))
    metrics.journal_owed.set_function(lambda: store.owed)
    metrics.journal_bytes.set_function(store.size)


def _object_store(settings: Settings) -> ObjectStore | None:
    """Return the store of the settings; None if storage is off.

    Raises:
        StorageError: they make no store.
    """
    return ObjectStore.of(settings.storage) if settings.storage.is_on else None


class OpenToStrangers(Exception):
    """Refusal to listen beyond loopback without keys, because the operator has not said that this is meant."""


class Gateway:
    """One gateway. It serves from `start` until `close`.

    Args:
        rate: seconds of routing for each real second; 1 but in simulations that run fast.
    """

    def __init__(self, settings: Settings, rate: float = 1.0) -> None:
        self.settings = settings
        self._rate = rate
        self.parts: Context
        self.v2: V2
        self.port = settings.server.port
        self._serving: Server | None = None
        self._stack = AsyncExitStack()
        self._ready = False
        self._started = asyncio.Event()
        self._log_upkeep: LogUpkeep

    async def start(self) -> None:
        """Read the journal, begin to watch the backends, and listen; then ask the backends about open jobs.

        Requests that come meanwhile, monitoring's excepted, wait until the backends have answered, or the time is up.

        Raises:
            StoreError: the data directory can't be used.
            StorageError: the settings make no object store, or its package is missing.
            OpenToStrangers: neither the configuration nor the store has keys, and strangers could reach the gateway.
            OSError: the gateway can't listen on the address.
        """
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def _start(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        metrics = _make_metrics(settings)
        self._log_upkeep = LogUpkeep()
        store = await self._open_store(stack, metrics)
        signals = ProcessSignals(metrics, settings.data_dir)
        signals.start()
        stack.push_async_callback(signals.close)
        await self._tell_lost_names(store)
        client_id = await store.identity()
        bus = LocalBus()
        fleet = Fleet(settings, metrics, client_id, store)
        await fleet.restore()
        keyring = Keyring(settings.auth, settings.tenants.anonymous)
        keys = StoredKeys(settings.auth, store, keyring)
        await keys.restore()
        if keyring.is_open and settings.open_to_strangers:
            raise OpenToStrangers
        keys.start()
        stack.push_async_callback(keys.close)
        browser_sessions = BrowserSessions(settings.auth.sign_in, store, keyring)
        await browser_sessions.restore()
        audit = self._open_audit(stack)
        authentication = Authentication(keyring, browser_sessions, Lockout(settings.auth.lockout), audit, metrics)
        blobs = BlobStore(settings.data_dir / "uploads")
        userdata = UserData(settings.data_dir / "userdata", settings.userdata.quota, settings.userdata.max_files)
        await userdata.open()
        policies = Policies(settings.tenants, settings.backends)
        limits = Limits(policies, settings.server.max_bodies_bytes)
        names = SecretNames(await store.names_key())
        spool = self._open_spool(stack, metrics)
        parts = bus, fleet, metrics, client_id, blobs, policies, limits, keyring, names, spool
        engine = Engine(settings, store, *parts, _object_store(settings), self._rate)
        await engine.restore()
        webhooks = await self._open_webhooks(stack, store, metrics, engine, fleet, keyring)
        await self._open_v2(stack, store, engine, fleet)
        metrics.requests_waiting.set_function(lambda: self.v2.waits.count)
        workflows = Workflows(store, settings.workflows)
        await workflows.restore()
        restarts = Restarts(fleet, store, metrics, audit)
        packs = PackWatch(engine.catalogue, policies, lambda: keyring.has_strangers)
        hub = Hub(
            *(engine.ledger, bus, metrics, settings.sessions),
            lambda tenant: shared_features(self.parts, tenant),
            engine.etas.shown,
        )
        self.parts = Context(
            settings=settings,
            keyring=keyring,
            keys=keys,
            browser_sessions=browser_sessions,
            authentication=authentication,
            audit=audit,
            engine=engine,
            fleet=fleet,
            catalogue=engine.catalogue,
            hub=hub,
            metrics=metrics,
            is_ready=lambda: self._ready,
            started=self._started,
            store=store,
            userdata=userdata,
            policies=policies,
            limits=limits,
            is_judged=engine.admission.is_judged,
            packs=packs,
            restarts=restarts,
            webhooks=webhooks,
            workflows=workflows,
        )
        self._start_upkeep(stack)
        fleet.start(engine)
        stack.push_async_callback(fleet.close)
        stack.push_async_callback(engine.close)
        stack.push_async_callback(fleet.stop)
        engine.start()
        await self._heal(stack, restarts, engine, fleet)
        for part in (packs, hub):
            part.start()
            stack.push_async_callback(part.close)
        await self._listen(stack)
        await fleet.settled({job.backend for job in engine.ledger.jobs() if job.backend is not None})
        self._started.set()
        self._ready = True

    async def _tell_lost_names(self, store: SqliteStore) -> None:
        """Warn of files that can't be found because of a backend's name, and note each backend's present URL."""
        known, urls = await store.known_backends(), {each.name: each.url for each in self.settings.backends}
        for message in lost_names(urls, known):
            _log.warning("backend_name_lost", message=message)
        noted = urls_to_note(urls, known)
        if noted != known.urls:
            store.write([BackendUrls(written_urls(noted))])

    def _start_upkeep(self, stack: AsyncExitStack) -> None:
        garbage = Garbage()
        for part in (self._log_upkeep, garbage):
            part.start()
            stack.push_async_callback(part.close)

    def _open_audit(self, stack: AsyncExitStack) -> Audit:
        audit = Audit(enabled=self.settings.log.audit)
        audit.start()
        stack.push_async_callback(audit.close)
        return audit

    async def _open_store(self, stack: AsyncExitStack, metrics: Metrics) -> SqliteStore:
        settings = self.settings
        store = SqliteStore(settings.data_dir, settings.store.synchronous, metrics.journal_seconds.observe)
        await store.open()
        stack.push_async_callback(store.close)
        _show_store(metrics, store)
        return store

    async def _open_webhooks(
        self,
        stack: AsyncExitStack,
        store: SqliteStore,
        metrics: Metrics,
        engine: Engine,
        fleet: Fleet,
        keyring: Keyring,
    ) -> Webhooks:
        """Restore the webhooks, and let them hear of jobs and backends. They close after those that they hear."""
        settings = self.settings.webhooks
        # What an event links to lasts as long as the history.
        keep = min(settings.keep, self.settings.store.retention.max_age)
        rules = Rules.of(settings.allow_http, settings.allow_networks, settings.ports)
        urls = [backend.url for backend in self.settings.backends]
        redirect = self.settings.server.tls.redirect_port
        lookups = Lookups(settings.max_in_flight_total, settings.max_in_flight)
        receivers = Receivers(rules, lookups, lambda: urls, lambda: {self.port, redirect or self.port})
        sender = Sender(receivers, settings.timeout, settings.connect_timeout)
        webhooks = Webhooks(settings.model_copy(update={"keep": keep}), rules, sender, store, metrics)
        await webhooks.restore()
        if settings.enabled:
            webhooks.job_events.has_admin = lambda tenant: keyring.is_open or tenant in keyring.admin_tenants
            steps = engine.ledger.steps
            steps.at_end = (*steps.at_end, webhooks.job_events)
            steps.news = webhooks.job_events
            fleet.news = webhooks.job_events
        if engine.entry_links is not None:
            webhooks.link_stored(engine.entry_links)
        webhooks.start()
        stack.push_async_callback(sender.close)
        stack.push_async_callback(webhooks.close)
        return webhooks

    async def _open_v2(self, stack: AsyncExitStack, store: SqliteStore, engine: Engine, fleet: Fleet) -> None:
        """Restore what the Comfy API v2 keeps, and let it hear of the ends of jobs."""
        self.v2 = V2(self.settings, store, engine, fleet)
        await self.v2.restore()
        self.v2.start()
        stack.push_async_callback(self.v2.close)

    async def _heal(self, stack: AsyncExitStack, restarts: Restarts, engine: Engine, fleet: Fleet) -> None:
        """Begin to act against faults of backends."""
        settings, metrics = self.settings, self.parts.metrics
        needed = partial(is_needed, engine.ledger, fleet)
        jobs = engine.is_idle, needed, engine.available, engine.learning.emptied
        watch = VramWatch(fleet, settings.vram_guard, settings.probe, metrics, *jobs)
        watch.start()
        stack.push_async_callback(watch.close)
        await restarts.restore()
        restarts.start()
        stack.push_async_callback(restarts.close)

    def _open_spool(self, stack: AsyncExitStack, metrics: Metrics) -> Spool:
        settings = self.settings
        spool = Spool(settings.data_dir / "spool", settings.sessions.tenant_spool, settings.sessions.total_spool)
        spool.open()
        stack.callback(spool.close)
        metrics.sockets_spooled.set_function(lambda: spool.bytes)
        return spool

    async def _listen(self, stack: AsyncExitStack) -> None:
        try:
            serving = Server(make_app(self.parts, self.v2), self.settings, self.parts.metrics)
        except ValueError as error:
            raise OSError(f"server.tls: {error}") from error
        await serving.start()
        stack.push_async_callback(serving.close)
        # Close the WebSockets while the server drains, because it would else wait for them until its time is over.
        stack.push_async_callback(self.parts.hub.close)
        stack.callback(self.v2.end_streams)
        self._serving, self.port = serving, serving.port

    def reload(self) -> None:
        """Read the certificate and open the log file again. A change of the configuration needs a restart."""
        self._log_upkeep.reopen()
        rereads = [] if self.settings.server.tls.certificate is None else ["server.tls.certificate"]
        rereads += [] if self.settings.log.file in STREAMS else ["log.file"]
        _log.info("reload_requested", rereads=" and ".join(rereads) or "nothing")
        if self._serving is not None:
            self._serving.reload()

    @property
    def url(self) -> str:
        """Return the URL on which the gateway listens."""
        host = self.settings.server.host
        scheme = "http" if self.settings.server.tls.certificate is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def hurry(self) -> None:
        """Make `close` wait for no more requests."""
        if self._serving is not None:
            self._serving.hurry()

    async def close(self) -> None:
        """Stop accepting, finish the requests that have begun, and write the journal. Backends run their jobs on."""
        self._ready = False
        await self._stack.aclose()
