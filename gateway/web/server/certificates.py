"""The gateway's own certificate, and a new one without a restart."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from gateway.settings import ServerTlsSettings
from gateway.settings.tls import load_chain
from gateway.telemetry import logs
from gateway.telemetry.tasks import Loop, Tasks
from gateway.web.server.certificate_dates import expiry_of

_log = logs.get("tls")

WATCH_SECONDS = 2.0


class Certificates:
    """The certificate for new connections. Open connections keep the certificate that they were made with.

    Attributes:
        expires: end of its validity, in seconds since 1970; None if that can't be read.

    Args:
        settings: names the files, which were valid when the settings were read.

    Raises:
        ValueError: the files are not valid any more.
    """

    def __init__(self, settings: ServerTlsSettings) -> None:
        assert settings.certificate is not None
        assert settings.key is not None
        self._certificate, self._key = settings.certificate, settings.key
        self._seen = self._signature()
        self.expires: float | None = None
        self.context = self._load()
        self._tasks = Tasks("certificates")
        self._loop: Loop | None = None

    def start(self) -> None:
        """Begin to watch the files for changes."""
        self._loop = self._tasks.repeat(self._look, "watch", WATCH_SECONDS, at_once=False)

    async def close(self) -> None:
        """Stop watching."""
        await self._tasks.close()

    def reload(self) -> None:
        """Read the files now, even if they seem unchanged."""
        self._seen = ()
        if self._loop is not None:
            self._loop.wake()

    async def _look(self) -> None:
        signature = await asyncio.to_thread(self._signature)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self.context = await asyncio.to_thread(self._load)
        except ValueError as error:
            # If this is half of a new pair, the other half changes the files again.
            _log.error("certificate_refused", error=str(error))
        else:
            _log.info("certificate_renewed", certificate=str(self._certificate))

    def _signature(self) -> tuple[object, ...]:
        return tuple(_identity(path) for path in (self._certificate, self._key))

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        load_chain(context, self._certificate, self._key)
        self.expires = expiry_of(self._certificate.read_text("ascii", "replace"))
        return context


def _identity(path: Path) -> tuple[int, ...]:
    """Return values that change with a file's content, also if a link is turned to another file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
