"""Policy of restarts: which backend is restarted now, if any. Pure; all times are seconds, passed in.

A backend is restarted if it is poisoned, or if it has been gone or lost for long. The pause doubles with each attempt
of the last hour, and there is a maximum an hour. One restart runs at a time. If more than half of the fleet is dead,
the network may be at fault: then the next backend waits until the one before it is back, or its pause is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

HOUR = 3600.0


class Reason(StrEnum):
    """Reason of a restart. DEAD: no connection, or no sign of life, for `after` seconds."""

    POISONED = "poisoned"
    DEAD = "dead"


class Outcome(StrEnum):
    """Outcome of a restart.

    STARTED: the command ended with 0, or the call was answered 2xx. LIMITED: it is needed, but there were
    `max_per_hour`. UNKNOWN: the gateway ended meanwhile, and the backend is well.
    """

    STARTED = "started"
    FAILED = "failed"
    TIMEOUT = "timeout"
    LIMITED = "limited"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of a backend's restarts, as `backends[].restart` has them."""

    after: float = 60.0
    backoff: float = 120.0
    max_per_hour: int = 4


@dataclass(frozen=True, slots=True)
class Patient:
    """A backend that can be restarted.

    Attributes:
        dead_for: seconds for which it has been gone or lost; None if it is neither.
        is_well: True if it can run jobs.
        attempts: times of the last restarts, the oldest first, in seconds since 1970.
        is_unfinished: True if the gateway ended during the last restart, so that its effect is not known.
    """

    name: str
    rules: Rules
    poisoned: bool = False
    drained: bool = False
    dead_for: float | None = None
    is_well: bool = False
    attempts: tuple[float, ...] = ()
    is_unfinished: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The backend to restart now, if any, and those that need a restart but had their maximum."""

    name: str | None = None
    reason: Reason = Reason.DEAD
    limited: frozenset[str] = frozenset()
    is_most_dead: bool = False


def recent(attempts: Sequence[float], now: float) -> list[float]:
    """Return the attempts of the last hour. If the clock was set back, an attempt in the future counts as now."""
    return [min(each, now) for each in attempts if each > now - HOUR]


def next_allowed(patient: Patient, now: float) -> float:
    """Return the time from which a backend may be restarted again.

    If the last restart is unfinished, there is no pause, because it may have had no effect. The maximum holds.
    """
    rules, last = patient.rules, recent(patient.attempts, now)
    if not last:
        return now
    pause = 0.0 if patient.is_unfinished else rules.backoff * 2.0 ** (len(last) - 1)
    allowed = last[-1] + pause
    if len(last) >= rules.max_per_hour:
        allowed = max(allowed, last[-rules.max_per_hour] + HOUR)
    return allowed


def reason_of(patient: Patient) -> Reason | None:
    """Return why a backend needs a restart; None if it needs none.

    A drained backend is in its operator's hands. A dead one that was restarted may still be starting, also if it was
    poisoned, so it gets the same time.
    """
    if patient.drained or patient.is_well:
        return None
    if patient.dead_for is not None:
        is_due = patient.dead_for >= patient.rules.after or patient.is_unfinished
        return Reason.DEAD if is_due else None
    return Reason.POISONED if patient.poisoned else None


def choose(patients: Sequence[Patient], dead: int, total: int, now: float) -> Decision:
    """Choose the backend to restart now: poisoned before dead, then the least tried, then the one dead for longest.

    Args:
        dead: number of backends that are gone or lost.
        total: number of all backends.
    """
    needy = [(patient, reason) for patient in patients if (reason := reason_of(patient)) is not None]
    limited = {each.name for each, _ in needy if len(recent(each.attempts, now)) >= each.rules.max_per_hour}
    is_most_dead = 2 * dead > total
    if is_most_dead and total > 1 and any(_is_awaited(each, now) for each in patients):
        return Decision(limited=frozenset(limited), is_most_dead=True)
    due = [(patient, reason) for patient, reason in needy if next_allowed(patient, now) <= now]
    due.sort(key=lambda each: _rank(each[0], each[1], now))
    if not due:
        return Decision(limited=frozenset(limited), is_most_dead=is_most_dead)
    patient, reason = due[0]
    return Decision(patient.name, reason, frozenset(limited), is_most_dead)


def _rank(patient: Patient, reason: Reason, now: float) -> tuple[bool, int, float, str]:
    # One that was tried less often goes first, because else the one that is dead for longest would be tried for ever.
    tries = len(recent(patient.attempts, now))
    return reason is not Reason.POISONED, tries, -(patient.dead_for or 0.0), patient.name


def _is_awaited(patient: Patient, now: float) -> bool:
    """Return True if a backend was just restarted and is not back yet."""
    last = recent(patient.attempts, now)
    return bool(last) and not (patient.is_well or patient.is_unfinished) and now - last[-1] < patient.rules.backoff
