"""Addresses that third-party clients are pointed at."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.lab import Simulator


@dataclass(frozen=True)
class Target:
    """What a client is pointed at."""

    url: str
    is_gateway: bool
    simulators: tuple[Simulator, ...]
