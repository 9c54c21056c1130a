"""Addresses that recordings are replayed against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A ComfyUI, or what passes for one."""

    url: str
    kind: str
