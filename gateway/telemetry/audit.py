"""The audit log: who did what to keys, to the gateway and to others' jobs, and which keys and requests were refused.

A line each (``event: audit``), written whatever `log.level` is. What is refused is counted after the first, so that
one who guesses keys, or asks again and again for what is not his to ask for, does not fill the disk.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks

INTERVAL_SECONDS = 60.0
MAX_PLACES = 1000
# Different requests that are named in a line of those that were counted.
MAX_NAMED = 5
# Where the refusals of all addresses past `MAX_PLACES` are counted.
ELSEWHERE = "elsewhere"


class Action(StrEnum):
    """What is told. The table of docs/operations.md is compared with this."""

    SIGN_IN = "sign_in"
    SIGN_OUT = "sign_out"
    KEY_REFUSED = "key_refused"
    FORBIDDEN = "forbidden"
    KEY_MADE = "key_made"
    KEY_ROTATED = "key_rotated"
    KEY_REVOKED = "key_revoked"
    BACKEND_DRAINED = "backend_drained"
    BACKEND_RESUMED = "backend_resumed"
    ADMIN_WRITE = "admin_write"
    JOB_CANCELLED = "job_cancelled"
    JOB_INTERRUPTED = "job_interrupted"
    HISTORY_DELETED = "history_deleted"


class Reason(StrEnum):
    """Why a key was refused, or what one asked for who has a valid key (ROLE: it is for another role)."""

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    LOCKED_OUT = "locked out"
    AMBIGUOUS = "ambiguous"
    ROLE = "role"


@dataclass(frozen=True, slots=True)
class Who:
    """Who acted: the name of a key, its tenant and role; all None where no key is known."""

    name: str | None = None
    tenant: str | None = None
    role: str | None = None


NOBODY = Who()


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was refused to one caller at one place for one reason: `count` times since the last line."""

    place: str
    reason: Reason
    who: Who
    count: int
    what: str


@dataclass(slots=True)
class _Counted:
    began: float
    count: int = 0
    # What it was, the first few; in their order.
    named: dict[str, None] = field(default_factory=dict)


class RefusalTally:
    """Which refusals are told at once, and which counted: one a place, reason and key in `INTERVAL_SECONDS`. Pure."""

    def __init__(self, maximum: int = MAX_PLACES, interval: float = INTERVAL_SECONDS) -> None:
        self._maximum = maximum
        self._interval = interval
        self._counted: dict[tuple[str, Reason, Who], _Counted] = {}

    def __len__(self) -> int:
        return len(self._counted)

    def add(self, place: str, reason: Reason, who: Who, what: str, now: float) -> Refusal | None:
        """Something was refused. Returns what to tell of it now, if anything."""
        key = (place, reason, who)
        if key not in self._counted and len(self._counted) >= self._maximum:
            key = (ELSEWHERE, reason, NOBODY)
        counted = self._counted.get(key)
        if counted is None:
            self._counted[key] = _Counted(now)
            return Refusal(*key, count=1, what=what)
        counted.count += 1
        if len(counted.named) < MAX_NAMED:
            counted.named[what] = None
        return None

    def due(self, now: float) -> list[Refusal]:
        """What was counted in intervals that are over."""
        over = [key for key, counted in self._counted.items() if now - counted.began >= self._interval]
        told = []
        for key in over:
            counted = self._counted.pop(key)
            if counted.count:
                told.append(Refusal(*key, counted.count, ", ".join(counted.named)))
                # Whoever goes on is told of once an interval, not anew.
                self._counted[key] = _Counted(now)
        return told


class Audit:
    """Writes the audit log. `start` and `close` around serving.

    Args:
        enabled: whether anything is written.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._log = logs.get_always("audit")
        self._refusals = RefusalTally()
        # Apart from those: who has no key can't push out what is told of those who have one.
        self._forbidden = RefusalTally()
        self._tasks = Tasks("audit")

    def start(self) -> None:
        """Begin to tell of what is counted."""
        self._tasks.repeat(self._tell_again, "tell", INTERVAL_SECONDS / 4, at_once=False)

    async def close(self) -> None:
        """Tell of what is counted still."""
        await self._tasks.close()
        self._tell(float("inf"))

    def note(
        self, action: Action, who: Who, address: str | None, what: str, outcome: str = "ok", **more: str | int
    ) -> None:
        """Write a line.

        Args:
            address: where it came from.
            what: whom or what it was done to: a key's name, a prompt_id, a backend, a route.
            outcome: what came of it.
        """
        if self._enabled:
            fields = {"who": who.name, "tenant": who.tenant, "role": who.role, "client_address": address}
            self._log.info("audit", action=str(action), **fields, what=what, outcome=outcome, **more)

    def refused(self, reason: Reason, address: str | None, place: str | None, name: str | None) -> None:
        """A key was refused.

        Args:
            place: what is counted as one place: an address, or a network of them.
            name: the key's name, where it is known.
        """
        self._count(self._refusals, reason, address, place, Who(name), "key")

    def forbidden(self, who: Who, address: str | None, place: str | None, what: str) -> None:
        """A valid key asked for what its role may not.

        Args:
            place: what is counted as one place: an address, or a network of them.
            what: method and path.
        """
        self._count(self._forbidden, Reason.ROLE, address, place, who, what)

    def _count(
        self, tally: RefusalTally, reason: Reason, address: str | None, place: str | None, who: Who, what: str
    ) -> None:
        if not self._enabled:
            return
        refusal = tally.add(place or "", reason, who, what, asyncio.get_running_loop().time())
        if refusal is not None:
            self._line(refusal, address if refusal.place != ELSEWHERE else ELSEWHERE)

    def _line(self, refusal: Refusal, address: str | None) -> None:
        action, outcome = (
            (Action.FORBIDDEN, "403") if refusal.reason is Reason.ROLE else (Action.KEY_REFUSED, "refused")
        )
        reason, count = str(refusal.reason), refusal.count
        self.note(action, refusal.who, address, refusal.what, outcome, reason=reason, count=count)

    async def _tell_again(self) -> None:
        self._tell(asyncio.get_running_loop().time())

    def _tell(self, now: float) -> None:
        for refusal in (*self._refusals.due(now), *self._forbidden.due(now)):
            self._line(refusal, refusal.place)
