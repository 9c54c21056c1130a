"""Tells a tenant's sockets that its counts have changed: a burst of changes is told once, the last one always."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gateway.bus import Bus, status_topic
from gateway.comfy import events
from gateway.comfy.events import Frame
from gateway.jobs.state.ledger import Ledger

# A tenant's sockets together get no more ``status`` messages a second, in the long run,
MESSAGES_A_SECOND = 1000.0
# but each gets one after so many seconds.
LONGEST_SECONDS = 0.25


class Receiver(Protocol):
    """A socket, as `Statuses` sees it."""

    def send(self, frame: Frame) -> None:
        """Take a frame for its client."""


@dataclass(slots=True)
class _Told:
    """One tenant's sockets. `due` is when they are told next, `told_at` when they were last."""

    unsubscribe: Callable[[], None]
    receivers: dict[Receiver, None] = field(default_factory=dict)
    due: asyncio.Handle | None = None
    told_at: float = float("-inf")


class Statuses:
    """Made from the ledger when they are told, so that none is stale."""

    def __init__(self, ledger: Ledger, bus: Bus) -> None:
        self._ledger = ledger
        self._bus = bus
        self._tenants: dict[str, _Told] = {}

    def join(self, tenant: str, receiver: Receiver) -> None:
        """A socket is open."""
        told = self._tenants.get(tenant)
        if told is None:
            unsubscribe = self._bus.subscribe(status_topic(tenant), lambda _: self._changed(tenant))
            told = self._tenants[tenant] = _Told(unsubscribe)
        told.receivers[receiver] = None

    def leave(self, tenant: str, receiver: Receiver) -> None:
        """A socket is gone."""
        told = self._tenants[tenant]
        del told.receivers[receiver]
        if not told.receivers:
            del self._tenants[tenant]
            told.unsubscribe()
            if told.due is not None:
                told.due.cancel()

    def _changed(self, tenant: str) -> None:
        told = self._tenants[tenant]
        if told.due is not None:
            return
        loop = asyncio.get_running_loop()
        pause = told.told_at - loop.time() + min(len(told.receivers) / MESSAGES_A_SECOND, LONGEST_SECONDS)
        if pause > 0:
            told.due = loop.call_later(pause, self._tell, tenant)
        else:
            told.due = loop.call_soon(self._tell, tenant)

    def _tell(self, tenant: str) -> None:
        told = self._tenants[tenant]
        told.due, told.told_at = None, asyncio.get_running_loop().time()
        frame = events.status_frame(self._ledger.remaining(tenant))
        for receiver in tuple(told.receivers):
            receiver.send(frame)
