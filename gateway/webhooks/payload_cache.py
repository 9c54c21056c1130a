"""Payloads in memory, so that most attempts need not read the journal."""

from __future__ import annotations

from collections import OrderedDict

# Bytes of payloads in memory.
MAX_CACHED = 16 * 1024**2


class PayloadCache:
    """Payloads by their event. Beyond `maximum` bytes, those go that were used longest ago."""

    def __init__(self, maximum: int = MAX_CACHED) -> None:
        self._maximum = maximum
        self._payloads: OrderedDict[str, bytes] = OrderedDict()
        self.bytes = 0

    def put(self, event_id: str, payload: bytes) -> None:
        """Keep a payload, or replace it."""
        self.bytes += len(payload) - len(self._payloads.pop(event_id, b""))
        self._payloads[event_id] = payload
        while self.bytes > self._maximum:
            _, oldest = self._payloads.popitem(last=False)
            self.bytes -= len(oldest)

    def get(self, event_id: str) -> bytes | None:
        """Return a payload if memory has it. It then stays longer than those that are not used."""
        payload = self._payloads.get(event_id)
        if payload is not None:
            self._payloads.move_to_end(event_id)
        return payload

    def remove(self, event_id: str) -> None:
        """Forget a payload."""
        self.bytes -= len(self._payloads.pop(event_id, b""))
