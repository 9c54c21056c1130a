"""The webhooks of a gateway in the test's own loop: a real journal, a real sender, and a port where nobody listens."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from gateway.settings.webhooks import WebhookEndpointSettings, WebhookSettings
from gateway.store.sqlite import FILE_NAME, SqliteStore
from gateway.telemetry.metrics import Metrics
from gateway.webhooks.lookups import Lookup, Lookups
from gateway.webhooks.receivers import Receivers
from gateway.webhooks.sender import Sender
from gateway.webhooks.service import Webhooks
from gateway.webhooks.urls import Rules

SECRET = "whsec_" + "A" * 40
RULES = Rules.of(True, ["127.0.0.0/8"], None)


def closed_port() -> int:
    """A port where nobody listens."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


URL = f"http://127.0.0.1:{closed_port()}/hunter2"


@asynccontextmanager
async def served(
    directory: Path,
    *,
    starts: bool = False,
    made: type[SqliteStore] = SqliteStore,
    lookup: Lookup | None = None,
    timeout: float = 20.0,
    **settings: Any,
) -> AsyncIterator[Webhooks]:
    """Webhooks on the journal of a directory."""
    # No machine loses its power here, so no commit waits for the disk.
    store = made(directory, "OFF")
    await store.open()
    sender = Sender(Receivers(RULES, lookup or Lookups(64, 4), list, lambda: set()), timeout)
    webhooks = Webhooks(WebhookSettings(allow_http=True, **settings), RULES, sender, store, Metrics())
    await webhooks.restore()
    if starts:
        webhooks.start()
    yield webhooks
    await webhooks.close()
    await sender.close()
    await store.close()


def of_file(url: str = URL, name: str = "ops", **more: Any) -> WebhookEndpointSettings:
    """An endpoint of the file."""
    return WebhookEndpointSettings(name=name, tenant="boss", url=url, secret=SECRET, **more)


def rows(directory: Path, table: str) -> int:
    """The number of rows of a table of the journal."""
    with closing(sqlite3.connect(f"file:{directory / FILE_NAME}?mode=ro", uri=True)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
