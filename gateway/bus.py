"""The bus: it reaches every subscriber of a topic, and stores nothing. It has topics for counts and for frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Bus(Protocol):
    """Publish and subscribe: a message reaches every subscriber of a topic, in the order of publishing."""

    def publish(self, topic: str, message: Any) -> None:
        """Deliver `message` to each subscriber of `topic`."""

    def subscribe(self, topic: str, receive: Callable[[Any], None]) -> Callable[[], None]:
        """Call `receive` with each message from now on. Return a function that ends it."""


class LocalBus:
    """Bus of a single gateway, inside its process: a publish is a call, so order is kept and nothing is buffered."""

    def __init__(self) -> None:
        self._receivers: dict[str, list[Callable[[Any], None]]] = {}

    def publish(self, topic: str, message: Any) -> None:
        """Deliver to the present subscribers. A topic without any is no error."""
        for receive in tuple(self._receivers.get(topic, ())):
            receive(message)

    def subscribe(self, topic: str, receive: Callable[[Any], None]) -> Callable[[], None]:
        """Add a receiver. Return a function that removes it."""
        self._receivers.setdefault(topic, []).append(receive)

        def unsubscribe() -> None:
            receivers = self._receivers.get(topic, [])
            if receive in receivers:
                receivers.remove(receive)
            if not receivers:
                self._receivers.pop(topic, None)

        return unsubscribe


def status_topic(tenant: str) -> str:
    """Return the bus topic on which a tenant's sessions hear that its counts changed."""
    return f"status:{tenant}"


def session_topic(tenant: str, session_id: str) -> str:
    """Return the bus topic of one session's frames, with a length, so that no tenant's name runs into a clientId."""
    return f"session:{len(tenant)}:{tenant}:{session_id}"
