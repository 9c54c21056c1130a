"""Health of a backend: up, slow, gone or lost. A pure state machine with no clock of its own.

Slow is not dead. Loading a model blocks ComfyUI's event loop for many seconds, so a probe that times out only makes a
backend less eligible. A refused connection means that the process is gone. Anything heard counts as a sign of life,
events included; without one for `lost_after` seconds it is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    """State of a backend, as the gateway sees it."""

    STARTING = "starting"
    UP = "up"
    SLOW = "slow"
    GONE = "gone"
    LOST = "lost"


@dataclass(slots=True)
class Pulse:
    """The health of one backend. All times are seconds on one monotonic clock, passed in."""

    lost_after: float
    heard_at: float
    health: Health = Health.STARTING

    @property
    def alive(self) -> bool:
        """Return True if the backend is up or slow, so that its jobs may still be running there."""
        return self.health in (Health.UP, Health.SLOW)

    def heard(self, now: float) -> None:
        """Note an event, or an answer that is not a probe's."""
        self.heard_at = now

    def answered(self, now: float) -> Health:
        """Note the answer to a probe. Return the new health."""
        self.heard_at = now
        self.health = Health.UP
        return self.health

    def timed_out(self, now: float) -> Health:
        """Note a probe that was not answered in time. Return the new health."""
        if self.health in (Health.UP, Health.SLOW):
            self.health = Health.LOST if now - self.heard_at >= self.lost_after else Health.SLOW
        elif self.health is Health.STARTING and now - self.heard_at >= self.lost_after:
            self.health = Health.LOST
        return self.health

    def refused(self) -> Health:
        """Note a connection that was refused, or reset and then refused. Return the new health."""
        self.health = Health.GONE
        return self.health
