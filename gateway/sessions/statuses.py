"""Status frames for a tenant's sockets, when its counts change. A burst gets one frame, the last change always."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gateway.bus import Bus, status_topic
from gateway.comfy import events
from gateway.comfy.events import Frame
from gateway.jobs.state.ledger import Ledger

# Maximum ``status`` messages a second for all of a tenant's sockets together, in the long run.
MESSAGES_A_SECOND = 1000.0
# Maximum wait of a socket for a ``status``, in seconds, even if that passes MESSAGES_A_SECOND.
LONGEST_SECONDS = 0.25


class Receiver(Protocol):
    """Socket, as `Statuses` sees it."""

    def send(self, frame: Frame) -> None:
        """Take a frame for its client."""


@dataclass(slots=True)
class _Told:
    """Sockets of one tenant. `due` is the timer of the next ``status``, `told_at` the time of the last one."""

    unsubscribe: Callable[[], None]
    receivers: dict[Receiver, None] = field(default_factory=dict)
    due: asyncio.Handle | None = None
    told_at: float = float("-inf")


class Statuses:
    """Sender of ``status`` frames. It makes each from the ledger when it is sent, so that none is stale."""

    def __init__(self, ledger: Ledger, bus: Bus) -> None:
        self._ledger = ledger
        self._bus = bus
        self._tenants: dict[str, _Told] = {}

    def join(self, tenant: str, receiver: Receiver) -> None:
        """Add an open socket."""
        told = self._tenants.get(tenant)
        if told is None:
            unsubscribe = self._bus.subscribe(status_topic(tenant), lambda _: self._changed(tenant))
            told = self._tenants[tenant] = _Told(unsubscribe)
        told.receivers[receiver] = None

    def leave(self, tenant: str, receiver: Receiver) -> None:
        """Remove a closed socket."""
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
