"""The audit log: actions on keys, on the gateway and on others' jobs, and refusals of keys and requests.

Each is a line (``event: audit``), written at any `log.level`. After the first refusal the gateway counts further ones.
So a caller who guesses keys, or repeats forbidden requests, does not fill the disk.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks

INTERVAL_SECONDS = 60.0
MAX_PLACES = 1000
# Maximum number of different requests that a line about counted refusals names.
MAX_NAMED = 5
# The place for counting the refusals of all addresses past `MAX_PLACES`.
ELSEWHERE = "elsewhere"


class Action(StrEnum):
    """Action of a line. A test compares the table in docs/operations.md with this."""

    SIGN_IN = "sign_in"
    SIGN_OUT = "sign_out"
    KEY_REFUSED = "key_refused"
    FORBIDDEN = "forbidden"
    KEY_MADE = "key_made"
    KEY_ROTATED = "key_rotated"
    KEY_REVOKED = "key_revoked"
    BACKEND_DRAINED = "backend_drained"
    BACKEND_RESUMED = "backend_resumed"
    BACKEND_RESTARTED = "backend_restarted"
    BACKEND_SWEPT = "backend_swept"
    GRAPH_FORGOTTEN = "graph_forgotten"
    TIMES_FORGOTTEN = "times_forgotten"
    OUT_OF_MEMORY_FORGOTTEN = "out_of_memory_forgotten"
    ADMIN_WRITE = "admin_write"
    JOB_CANCELLED = "job_cancelled"
    JOB_INTERRUPTED = "job_interrupted"
    HISTORY_DELETED = "history_deleted"
    JOB_DELETED = "job_deleted"
    UPLOAD_DELETED = "upload_deleted"
    WEBHOOK_CREATED = "webhook_created"
    WEBHOOK_CHANGED = "webhook_changed"
    WEBHOOK_ROTATED = "webhook_rotated"
    WEBHOOK_DISABLED = "webhook_disabled"
    WEBHOOK_ENABLED = "webhook_enabled"
    WEBHOOK_DELETED = "webhook_deleted"
    WORKFLOW_STORED = "workflow_stored"
    WORKFLOW_DELETED = "workflow_deleted"


class Reason(StrEnum):
    """Reason of a refusal. ROLE: the key is valid, but the route is for another role."""

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    LOCKED_OUT = "locked out"
    AMBIGUOUS = "ambiguous"
    ROLE = "role"


@dataclass(frozen=True, slots=True)
class Who:
    """The actor of a line: the name of a key, its tenant and role; all None if no key is known."""

    name: str | None = None
    tenant: str | None = None
    role: str | None = None


NOBODY = Who()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Refusals of one caller at one place for one reason: `count` of them since the last line."""

    place: str
    reason: Reason
    who: Who
    count: int
    what: str


@dataclass(slots=True)
class _Counted:
    began: float
    count: int = 0
    # The first few different requests, in their order.
    named: dict[str, None] = field(default_factory=dict)


class RefusalTally:
    """Tally of refusals: the first of a place, reason and key is due at once, others after `INTERVAL_SECONDS`. Pure."""

    def __init__(self, maximum: int = MAX_PLACES, interval: float = INTERVAL_SECONDS) -> None:
        self._maximum = maximum
        self._interval = interval
        self._counted: dict[tuple[str, Reason, Who], _Counted] = {}

    def __len__(self) -> int:
        return len(self._counted)

    def add(self, place: str, reason: Reason, who: Who, what: str, now: float) -> Refusal | None:
        """Count a refusal and return None; if the tally has none like it, return it, because a line is due now."""
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
        """Return the refusals that were counted in intervals that are over."""
        over = [key for key, counted in self._counted.items() if now - counted.began >= self._interval]
        told = []
        for key in over:
            counted = self._counted.pop(key)
            if counted.count:
                told.append(Refusal(*key, counted.count, ", ".join(counted.named)))
                # If the refusals go on, they get one line an interval: the next one is counted.
                self._counted[key] = _Counted(now)
        return told


class Audit:
    """Writer of the audit log. `start` and `close` around serving.

    Args:
        enabled: True if lines are written at all.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._log = logs.get_always("audit")
        self._refusals = RefusalTally()
        # A tally of its own, so that callers without a key can't push out the refusals of callers with one.
        self._forbidden = RefusalTally()
        self._tasks = Tasks("audit")

    def start(self) -> None:
        """Begin to write lines about counted refusals."""
        self._tasks.repeat(self._tell_again, "tell", INTERVAL_SECONDS / 4, at_once=False)

    async def close(self) -> None:
        """Write the lines about refusals that are counted and not yet written."""
        await self._tasks.close()
        self._tell(float("inf"))

    def note(
        self, action: Action, who: Who, address: str | None, what: str, outcome: str = "ok", **more: str | int
    ) -> None:
        """Write a line.

        Args:
            address: the client address.
            what: the object of the action: a key's name, a prompt_id, a backend, a route.
            outcome: the result of the action.
        """
        if self._enabled:
            fields = {"who": who.name, "tenant": who.tenant, "role": who.role, "client_address": address}
            self._log.info("audit", action=str(action), **fields, what=what, outcome=outcome, **more)

    def refused(self, reason: Reason, address: str | None, place: str | None, name: str | None) -> None:
        """Count a refused key, and write a line if one is due.

        Args:
            place: the address, or the network, that counts as one place.
            name: the key's name, if it is known.
        """
        self._count(self._refusals, reason, address, place, Who(name), "key")

    def forbidden(self, who: Who, address: str | None, place: str | None, what: str) -> None:
        """Count a request that the role of a valid key does not permit, and write a line if one is due.

        Args:
            place: the address, or the network, that counts as one place.
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
