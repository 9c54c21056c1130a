"""Bound of the bytes that wait for slow readers of event streams, of one tenant and of all. Pure.

Past a bound streams are told no previews. Statuses, progress and outputs are short, and always told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class StreamBuffers:
    """Count of the bytes that event streams are sending.

    Args:
        per_tenant: maximum bytes for one tenant's streams, before previews are left out.
        in_all: the same, for all streams.
    """

    def __init__(self, per_tenant: int, in_all: int) -> None:
        self._per_tenant = per_tenant
        self._in_all = in_all
        self._bytes: Counter[str] = Counter()
        self._total = 0

    def has_room(self, tenant: str, size: int) -> bool:
        """Return True if a preview of this size may be sent to one of a tenant's streams."""
        return self._bytes[tenant] + size <= self._per_tenant and self._total + size <= self._in_all

    @contextmanager
    def holding(self, tenant: str, size: int) -> Iterator[None]:
        """Count bytes until their reader has taken them."""
        self._bytes[tenant] += size
        self._total += size
        try:
            yield
        finally:
            self._total -= size
            self._bytes[tenant] -= size
            if not self._bytes[tenant]:
                del self._bytes[tenant]
