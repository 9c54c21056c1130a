"""The bus inside one process: a publish is a call, so order is kept and nothing is buffered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class LocalBus:
    """`Bus` for a single gateway."""

    def __init__(self) -> None:
        self._receivers: dict[str, list[Callable[[Any], None]]] = {}

    def publish(self, topic: str, message: Any) -> None:
        """Deliver to the subscribers there are; nobody listening is not an error."""
        for receive in tuple(self._receivers.get(topic, ())):
            receive(message)

    def subscribe(self, topic: str, receive: Callable[[Any], None]) -> Callable[[], None]:
        """Add a receiver; call what is returned to remove it."""
        self._receivers.setdefault(topic, []).append(receive)

        def unsubscribe() -> None:
            receivers = self._receivers.get(topic, [])
            if receive in receivers:
                receivers.remove(receive)
            if not receivers:
                self._receivers.pop(topic, None)

        return unsubscribe
