"""Bytes that the gateway received and sent. Plain numbers, because they are counted for each piece that is read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """Bytes since the start of the process. TLS is not counted."""

    from_clients: int = 0
    to_clients: int = 0
    from_backends: int = 0
    to_backends: int = 0
