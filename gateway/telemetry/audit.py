"""The audit log: who did what to keys, to the gateway and to others' jobs, and which keys were refused.

A line each (``event: audit``), written whatever `log.level` is. Refused keys are counted after the first, so that
one who guesses keys does not fill the disk.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum

from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks

INTERVAL_SECONDS = 60.0
MOST_PLACES = 1000
# Where the refusals of all addresses past `MOST_PLACES` are counted.
ELSEWHERE = "elsewhere"


class Action(StrEnum):
    """What is told. The table of docs/operations.md is compared with this."""

    SIGN_IN = "sign_in"
    SIGN_OUT = "sign_out"
    KEY_REFUSED = "key_refused"
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
    """Why a key was refused."""

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    LOCKED_OUT = "locked out"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True, slots=True)
class Who:
    """Who acted: the name of a key, its tenant and role; all None where no key is known."""

    name: str | None = None
    tenant: str | None = None
    role: str | None = None


NOBODY = Who()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Keys refused to one place for one reason: `count` of them since the last line."""

    place: str
    reason: Reason
    name: str | None
    count: int


@dataclass(slots=True)
class _Counted:
    began: float
    count: int = 0


class RefusalTally:
    """Which refusals are told at once, and which counted: one a place, reason and key in `INTERVAL_SECONDS`. Pure."""

    def __init__(self, most: int = MOST_PLACES, interval: float = INTERVAL_SECONDS) -> None:
        self._most = most
        self._interval = interval
        self._counted: dict[tuple[str, Reason, str | None], _Counted] = {}

    def __len__(self) -> int:
        return len(self._counted)

    def add(self, place: str, reason: Reason, name: str | None, now: float) -> Refusal | None:
        """A key was refused. Returns what to tell of it now, if anything."""
        what = (place, reason, name)
        if what not in self._counted and len(self._counted) >= self._most:
            what = (ELSEWHERE, reason, None)
        counted = self._counted.get(what)
        if counted is None:
            self._counted[what] = _Counted(now)
            return Refusal(*what, count=1)
        counted.count += 1
        return None

    def due(self, now: float) -> list[Refusal]:
        """What was counted in intervals that are over."""
        over = [what for what, counted in self._counted.items() if now - counted.began >= self._interval]
        told = []
        for what in over:
            if count := self._counted.pop(what).count:
                told.append(Refusal(*what, count=count))
                # Whoever goes on is told of once an interval, not anew.
                self._counted[what] = _Counted(now)
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
        self._tasks = Tasks("audit")

    def start(self) -> None:
        """Begin to tell of what is counted."""
        self._tasks.start(self._tell_for_ever(), "tell")

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
            fields = {"who": who.name, "tenant": who.tenant, "role": who.role, "from": address}
            self._log.info("audit", action=str(action), **fields, what=what, outcome=outcome, **more)

    def refused(self, reason: Reason, address: str | None, place: str | None, name: str | None) -> None:
        """A key was refused.

        Args:
            place: what is counted as one place: an address, or a network of them.
            name: the key's name, where it is known.
        """
        if not self._enabled:
            return
        now = asyncio.get_running_loop().time()
        refusal = self._refusals.add(place or "", reason, name, now)
        if refusal is not None:
            self._line(refusal, address if refusal.place != ELSEWHERE else ELSEWHERE)

    def _line(self, refusal: Refusal, address: str | None) -> None:
        who = Who(refusal.name)
        self.note(Action.KEY_REFUSED, who, address, "key", "refused", reason=str(refusal.reason), count=refusal.count)

    async def _tell_for_ever(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_SECONDS / 4)
            self._tell(asyncio.get_running_loop().time())

    def _tell(self, now: float) -> None:
        for refusal in self._refusals.due(now):
            self._line(refusal, refusal.place)
