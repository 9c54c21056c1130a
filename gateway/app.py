"""The gateway: builds its parts, starts them in order, and stops them in reverse, also if the start fails half-way."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from gateway.bus import LocalBus
from gateway.catalogue.pack_watch import PackWatch
from gateway.fleet.fleet import Fleet
from gateway.fleet.renames import lost_names, urls_to_note
from gateway.jobs.engine import Engine
from gateway.sessions.hub import Hub
from gateway.settings import Settings
from gateway.store.blobs import BlobStore
from gateway.store.known_backends import written_urls
from gateway.store.protocol import BackendUrls
from gateway.store.spool import Spool
from gateway.store.sqlite import SqliteStore
from gateway.store.userdata import UserData
from gateway.telemetry import logs
from gateway.telemetry.audit import Audit
from gateway.telemetry.garbage_collection import Garbage
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import count_failure
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

_log = logs.get("gateway")


class OpenToStrangers(Exception):
    """Refusal to listen beyond loopback without keys, because the operator has not said that this is meant."""


class Gateway:
    """One gateway. It serves from `start` until `close`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.parts: Context
        self.port = settings.server.port
        self._serving: Server | None = None
        self._stack = AsyncExitStack()
        self._ready = False
        self._started = asyncio.Event()

    async def start(self) -> None:
        """Read the journal, begin to watch the backends, and listen; then ask the backends about open jobs.

        Requests that come meanwhile, monitoring's excepted, wait until the backends have answered, or the time is up.

        Raises:
            StoreError: the data directory can't be used.
            OpenToStrangers: neither the configuration nor the store has keys, and strangers could reach the gateway.
            OSError: the gateway can't listen on the address.
        """
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def _start(self, stack: AsyncExitStack) -> None:
        settings, metrics = self.settings, Metrics()
        count_failure.set(lambda task: metrics.task_failures.labels(task).inc())
        store = SqliteStore(settings.data_dir, settings.store.synchronous, metrics.journal_seconds.observe)
        await store.open()
        stack.push_async_callback(store.close)
        metrics.journal_writable.set_function(lambda: not store.trouble)
        metrics.journal_owed.set_function(lambda: store.owed)
        metrics.journal_bytes.set_function(store.size)
        metrics.tasks.set_function(lambda: len(asyncio.all_tasks()))
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
        audit = Audit(enabled=settings.log.audit)
        audit.start()
        stack.push_async_callback(audit.close)
        authentication = Authentication(keyring, browser_sessions, Lockout(settings.auth.lockout), audit, metrics)
        blobs = BlobStore(settings.data_dir / "uploads")
        userdata = UserData(settings.data_dir / "userdata", settings.userdata.quota, settings.userdata.max_files)
        await userdata.open()
        policies = Policies(settings.tenants, settings.backends)
        limits = Limits(policies, settings.server.max_bodies_bytes)
        names = SecretNames(await store.names_key())
        spool = self._open_spool(stack, metrics)
        engine = Engine(settings, store, bus, fleet, metrics, client_id, blobs, policies, limits, keyring, names, spool)
        await engine.restore()
        packs = PackWatch(engine.catalogue, policies, lambda: keyring.has_strangers)
        hub = Hub(engine.ledger, bus, metrics, settings.sessions, lambda tenant: shared_features(self.parts, tenant))
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
        )
        garbage = Garbage()
        garbage.start()
        stack.push_async_callback(garbage.close)
        fleet.start(engine)
        stack.push_async_callback(fleet.close)
        stack.push_async_callback(engine.close)
        stack.push_async_callback(fleet.stop)
        engine.start()
        packs.start()
        stack.push_async_callback(packs.close)
        hub.start()
        stack.push_async_callback(hub.close)
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

    def _open_spool(self, stack: AsyncExitStack, metrics: Metrics) -> Spool:
        settings = self.settings
        spool = Spool(settings.data_dir / "spool", settings.sessions.tenant_spool, settings.sessions.total_spool)
        spool.open()
        stack.callback(spool.close)
        metrics.sockets_spooled.set_function(lambda: spool.bytes)
        return spool

    async def _listen(self, stack: AsyncExitStack) -> None:
        try:
            serving = Server(make_app(self.parts), self.settings, self.parts.metrics)
        except ValueError as error:
            raise OSError(f"server.tls: {error}") from error
        await serving.start()
        stack.push_async_callback(serving.close)
        # Close the WebSockets while the server drains, because it would else wait for them until its time is over.
        stack.push_async_callback(self.parts.hub.close)
        self._serving, self.port = serving, serving.port

    def reload(self) -> None:
        """Read the certificate again while the gateway serves. A change of the configuration needs a restart."""
        has_certificate = self.settings.server.tls.certificate is not None
        _log.info("reload_requested", rereads="server.tls.certificate" if has_certificate else "nothing")
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
