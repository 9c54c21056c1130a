"""One backend: its last probe, its health, and whether it may get jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from gateway.comfy.client import Access, ComfyClient
from gateway.comfy.responses import Queue, SystemStats
from gateway.fleet.health import Health, Pulse
from gateway.settings import BackendSettings, Settings

_EMPTY_QUEUE = Queue((), ())


def client_of(entry: BackendSettings, settings: Settings, session: aiohttp.ClientSession) -> ComfyClient:
    """Return a client for a backend, with the credentials, TLS and limits of the settings."""
    access = Access(entry.auth.header if entry.auth else "", entry.tls.context() if entry.tls else None)
    limits = settings.dispatch.connect_timeout, settings.probe.timeout
    return ComfyClient(entry.url, session, *limits, access, settings.history.max_result)


@dataclass(slots=True, eq=False)
class Backend:
    """A ComfyUI process and its newest answers.

    The fleet alone changes it, save `guarded` (the VRAM guard keeps work away from it), `used_at`, `run_seconds`,
    `stopping`, `stalled` and `interrupted`. `interrupted` is the prompt that was told to stop, and when (monotonic
    seconds). Interrupts are sent one at a time, under `ordering`. `poisoned` is the upstream id of the prompt that
    showed that the process can't use the GPU any more. `stopping` is the upstream id of a prompt that was given up
    while it ran: until it ends, nothing else can run there. It is `stalled` while a job that runs there has no events.
    `ejected_for` is the reason of the last ejection. While it `is_reading` a large message, the messages behind that
    are not known yet.
    """

    name: str
    url: str
    max_queue: int
    primary: bool
    client: ComfyClient
    pulse: Pulse
    connected: bool = False
    drained: bool = False
    guarded: bool = False
    queue: Queue = _EMPTY_QUEUE
    foreign_pending: int = 0
    foreign_running: int = 0
    stats: SystemStats | None = None
    features: Mapping[str, Any] = field(default_factory=dict)
    used_at: float = 0.0
    # When the last event about a prompt came, by the monotonic clock.
    heard_prompt_at: float = 0.0
    # When the newest message on its socket came, by that clock.
    message_at: float = 0.0
    poisoned: str | None = None
    ejected_for: str = ""
    stopping: str | None = None
    stalled: bool = False
    run_seconds: float | None = None
    interrupted: tuple[str, float] = ("", 0.0)
    is_reading: bool = False
    ordering: asyncio.Lock = field(default_factory=asyncio.Lock)
    # The tenants that it is dedicated to; none: all share it.
    tenants: frozenset[str] = frozenset()
    # The operator's weight: a backend of weight 2 is expected to be twice as fast as one of weight 1.
    weight: float = 1.0

    def ran(self, seconds: float) -> None:
        """Note the seconds for which a job ran here: the newest job counts for a third of `run_seconds`."""
        self.run_seconds = seconds if self.run_seconds is None else self.run_seconds + (seconds - self.run_seconds) / 3

    @property
    def health(self) -> Health:
        """Return the backend's health."""
        return self.pulse.health

    @property
    def eligible(self) -> bool:
        """Return True if the backend may get jobs: it can run them, and neither a drain nor the VRAM guard forbids it.

        While a prompt is `stopping`, nothing else can run there.
        """
        return self.able and not (self.drained or self.guarded) and self.stopping is None

    @property
    def able(self) -> bool:
        """Return True if it can run jobs: alive, heard, reconciled, and able to use its GPU."""
        return self.pulse.alive and self.connected and self.poisoned is None

    @property
    def version(self) -> str:
        """Return the backend's ComfyUI version; ``?`` while it is unknown."""
        return "?" if self.stats is None else self.stats.version

    def describe(self) -> dict[str, Any]:
        """Return the backend's description for the admin API."""
        return {
            "name": self.name,
            "url": self.url,
            "state": str(self.health),
            "connected": self.connected,
            "drained": self.drained,
            "vram_guarded": self.guarded,
            "poisoned": self.poisoned is not None,
            "primary": self.primary,
            "tenants": sorted(self.tenants),
            "version": self.version,
            "max_queue": self.max_queue,
            "weight": self.weight,
            "queue_running": len(self.queue.running),
            "queue_pending": len(self.queue.pending),
            "devices": [] if self.stats is None else list(self.stats.devices),
        }
