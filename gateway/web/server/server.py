"""The front of the gateway: its listening sockets, and everything between them and the application."""

from __future__ import annotations

from contextlib import AsyncExitStack

import aiohttp.web_response
from aiohttp import web

from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics, one
from gateway.web.http.allowed_hosts import configured_hosts
from gateway.web.http.client_address import TrustedProxies
from gateway.web.http.request_ids import requests_of
from gateway.web.http.request_log import RequestLog
from gateway.web.server.certificates import Certificates
from gateway.web.server.connections import Connections
from gateway.web.server.https_redirect import redirecting
from gateway.web.server.listener import Listener, files_for
from gateway.web.server.parser_feed import INTAKES, MAX_FIELD
from gateway.web.server.request_smuggling import quiet_logger

# Files beside those of clients: the journal, and connections to backends.
FILES_BESIDES = 1024
# A handler that did not answer in time may go on for so long before it is cancelled, and for as long behind that.
CUT_SECONDS = 0.5
# Answers that never reach the application (a request that is no HTTP) name it, too; versions are nobody's business.
aiohttp.web_response.SERVER_SOFTWARE = "comfyui-gateway"  # type: ignore[attr-defined]


class Server:
    """Serves an application. `start`, then `close`.

    Args:
        app: the application.
        settings: the configuration.
        metrics: counts connections.

    Raises:
        ValueError: the certificate can't be used any more.
    """

    def __init__(self, app: web.Application, settings: Settings, metrics: Metrics) -> None:
        server = settings.server
        self._settings = settings
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=quiet_logger(),
            # Requests are drained before (`close`).
            shutdown_timeout=CUT_SECONDS,
            keepalive_timeout=server.keepalive_timeout,
            # Heads that come behind another request are bounded by the parser alone.
            max_line_size=MAX_FIELD,
            max_field_size=MAX_FIELD,
            # Bodies are unpacked where they are read (web/http/decompression.py), and passed on as they are.
            auto_decompress=False,
        )
        maximum = files_for(server.max_connections, FILES_BESIDES)
        proxies = TrustedProxies(server.trusted_proxies)
        self._connections = Connections(server, proxies, metrics, maximum, app[INTAKES], RequestLog(settings))
        self._certificates = Certificates(server.tls) if server.tls.certificate is not None else None
        if (certificates := self._certificates) is not None:
            metrics.certificate_expiry.read = lambda: one(certificates.expires) if certificates.expires else ()
        self._stack = AsyncExitStack()
        self._listeners: list[Listener] = []
        self.port = server.port

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: an address can't be listened on.
        """
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def _start(self, stack: AsyncExitStack) -> None:
        server, certificates = self._settings.server, self._certificates
        await self._runner.setup()
        stack.push_async_callback(self._runner.cleanup)
        assert self._runner.server is not None
        self._runner.server.request_factory = requests_of(self._runner.app, self._settings.server.base_path)
        self._connections.start()
        stack.push_async_callback(self._connections.close)
        if certificates is None:
            self.port = await self._listen(stack, self._runner.server, server.port)
            return
        certificates.start()
        stack.push_async_callback(certificates.close)
        self.port = await self._listen(stack, self._runner.server, server.port, certificates)
        if server.tls.redirect_port is not None:
            redirect = redirecting(configured_hosts(self._settings), self.port)
            runner = web.ServerRunner(redirect, shutdown_timeout=CUT_SECONDS)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await self._listen(stack, runner.server, server.tls.redirect_port)

    async def _listen(
        self, stack: AsyncExitStack, server: web.Server | None, port: int, certificates: Certificates | None = None
    ) -> int:
        assert server is not None
        self._connections.watch(server)
        context = None if certificates is None else lambda: certificates.context
        listener = Listener(server, self._connections, context, self._settings.server.header_timeout)
        await listener.start(self._settings.server.host, port)
        stack.push_async_callback(listener.close)
        self._listeners.append(listener)
        return listener.port

    def reload(self) -> None:
        """Read the certificate anew."""
        if self._certificates is not None:
            self._certificates.reload()

    def hurry(self) -> None:
        """Have `close` wait for no request any more."""
        self._connections.hurry()

    async def close(self) -> None:
        """Accept no more, let requests that have begun be read and answered, close all connections."""
        for listener in self._listeners:
            listener.stop_accepting()
        await self._connections.drain(self._settings.server.drain_timeout)
        await self._stack.aclose()
