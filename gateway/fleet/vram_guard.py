"""Decisions of the VRAM guard: keep work away from a backend whose VRAM is nearly full, free it once it is idle. Pure.

ComfyUI keeps models in memory and counts them as used, so a high share alone is normal. The guard acts on a share that
stays above a threshold, and at most once in `free_every`: until then a backend that is full again is left alone.
All times are seconds on one monotonic clock, passed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any


class Action(StrEnum):
    """Action of the guard. TELL: the VRAM was freed and is as full as before, so somebody has to look."""

    NONE = "none"
    GUARD = "guard"
    FREE = "free"
    RELEASE = "release"
    TELL = "tell"


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of the guard, as `vram_guard` has them. After `settle` seconds a freed backend has a new reading."""

    above: float = 0.95
    after: float = 60.0
    free_every: float = 600.0
    settle: float = 5.0


@dataclass(frozen=True, slots=True)
class Guard:
    """State of a backend. `freed_at` is the time of the last POST /free, `is_told` if its failure was told."""

    above_since: float | None = None
    is_guarded: bool = False
    freed_at: float | None = None
    is_told: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """Reading of a backend.

    Attributes:
        used: the used share of its VRAM; None if it has none, or does not say.
        is_idle: True if nothing runs or is queued there.
        is_needed: True if a job waits that no other eligible backend can run.
    """

    used: float | None
    is_idle: bool = False
    is_needed: bool = False


def used_share(devices: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the used share of the fullest device. A CPU counts as none: it reports its host's memory as VRAM."""
    shares = []
    for device in devices:
        total, free = device.get("vram_total", 0), device.get("vram_free")
        if device.get("type") != "cpu" and free is not None and total > 0:
            shares.append(min(max(1 - free / total, 0.0), 1.0))
    return max(shares, default=None)


def may_act(guard: Guard, now: float, rules: Rules) -> bool:
    """Return True if a backend that is above the threshold is guarded, or is to be guarded now if nothing needs it."""
    since = now if guard.above_since is None else guard.above_since
    is_due = now - since >= rules.after
    return guard.is_guarded or (is_due and (guard.freed_at is None or now - guard.freed_at >= rules.free_every))


def decide(guard: Guard, reading: Reading, now: float, rules: Rules) -> tuple[Guard, Action]:
    """Decide about a backend. Return its new state, and the action to take."""
    if reading.used is None or reading.used < rules.above:
        return replace(guard, above_since=None, is_guarded=False), Action.RELEASE if guard.is_guarded else Action.NONE
    since = now if guard.above_since is None else guard.above_since
    guard = replace(guard, above_since=since)
    if reading.is_needed:
        return replace(guard, is_guarded=False), Action.RELEASE if guard.is_guarded else Action.NONE
    may_free = guard.freed_at is None or now - guard.freed_at >= rules.free_every
    if not guard.is_guarded:
        if now - since < rules.after or not may_free:
            return guard, Action.NONE
        return replace(guard, is_guarded=True), Action.GUARD
    if not reading.is_idle:
        return guard, Action.NONE
    if may_free:
        return replace(guard, freed_at=now, is_told=False), Action.FREE
    if not guard.is_told and guard.freed_at is not None and now - guard.freed_at >= rules.settle:
        return replace(guard, is_told=True), Action.TELL
    return guard, Action.NONE
