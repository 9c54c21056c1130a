"""Addresses that recordings are replayed against."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.lab import Simulator


@dataclass(frozen=True)
class Target:
    """A ComfyUI, or what passes for one."""

    url: str
    kind: str
    simulator: Simulator | None = None
