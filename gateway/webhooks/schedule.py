"""Decide when a delivery is tried again, and when a receiver is left alone. Pure: times and chance are passed in.

The waits are those of the Standard Webhooks specification. They end with the retention of events.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto

from gateway.telemetry.times import HOLD_SECONDS
from gateway.webhooks.model import (
    MAX_ATTEMPTS_KEPT,
    Attempt,
    Delivery,
    DeliveryState,
    Endpoint,
    EndpointState,
    Reason,
)

# Seconds before each attempt, from the end of the one before it.
WAITS = (0.0, 5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
# A wait is longer by up to this part of it, so that what failed together is not tried again together.
JITTER = 0.1
# Maximum wait that a receiver may ask for by Retry-After.
MAX_RETRY_AFTER = 86_400.0
# The longest time for which a delivery may be planned.
MAX_WAIT = WAITS[-1] * (1 + JITTER)
# Statuses of a receiver that is overloaded.
_SLOW_DOWN = frozenset({429, 502, 503, 504})
_GONE = 410


class Verdict(Enum):
    """Meaning of an attempt for its receiver. GONE: it wants no more events. SLOW_DOWN: it is overloaded."""

    SUCCESS = auto()
    FAILURE = auto()
    SLOW_DOWN = auto()
    GONE = auto()


def verdict_of(attempt: Attempt) -> Verdict:
    """Return the meaning of an attempt: 2xx alone is a success; a redirect is a failure like all others."""
    if attempt.is_success:
        return Verdict.SUCCESS
    if attempt.outcome or attempt.status is None:
        return Verdict.FAILURE
    if attempt.status == _GONE:
        return Verdict.GONE
    return Verdict.SLOW_DOWN if attempt.status in _SLOW_DOWN else Verdict.FAILURE


def wait_after(tries: int, retry_after: float | None, chance: float) -> float | None:
    """Return the seconds from a failed attempt to the next; None if there is none.

    Args:
        tries: the number of attempts so far.
        retry_after: the seconds that the receiver asked for.
        chance: a random number from 0 to 1.
    """
    if tries >= len(WAITS):
        return None
    wait = WAITS[tries]
    if retry_after is not None:
        wait = max(wait, min(retry_after, MAX_RETRY_AFTER))
    return wait * (1 + JITTER * chance)


def after_attempt(
    delivery: Delivery, attempt: Attempt, retry_after: float | None, now: float, ends_at: float, chance: float
) -> Delivery:
    """Return a delivery after an attempt: delivered, to be tried again, or dead.

    Args:
        now: the end of the attempt.
        ends_at: the time at which its event is kept no more. No attempt is planned after it.
    """
    attempts, tries = (*delivery.attempts, attempt)[-MAX_ATTEMPTS_KEPT:], delivery.tries + 1
    tried = replace(delivery, attempts=attempts, tries=tries, next_at=None)
    verdict = verdict_of(attempt)
    if verdict is Verdict.SUCCESS:
        return replace(tried, state=DeliveryState.DELIVERED)
    wait = None if verdict is Verdict.GONE else wait_after(tries, retry_after, chance)
    next_at = None if wait is None else now + wait
    if next_at is None or next_at > ends_at:
        return replace(tried, state=DeliveryState.DEAD)
    return replace(tried, state=DeliveryState.PENDING, next_at=next_at)


def after_verdict(endpoint: Endpoint, verdict: Verdict, now: float, seen_for: float, disable_after: float) -> Endpoint:
    """Return an endpoint after an attempt: disabled if its receiver is gone, or has failed for `disable_after`.

    Args:
        now: seconds since 1970.
        seen_for: the seconds for which this run of the gateway has seen it fail. The time counts by both clocks,
            because the one that outlasts the process may be set.
    """
    if verdict is Verdict.SUCCESS:
        return endpoint if endpoint.failing_since is None else replace(endpoint, failing_since=None)
    if verdict is Verdict.GONE:
        return replace(endpoint, state=EndpointState.DISABLED, reason=Reason.GONE)
    if endpoint.failing_since is None:
        return replace(endpoint, failing_since=now)
    is_long = now - endpoint.failing_since >= disable_after and seen_for >= min(disable_after, HOLD_SECONDS)
    if is_long and endpoint.is_enabled:
        return replace(endpoint, state=EndpointState.DISABLED, reason=Reason.FAILING)
    return endpoint


# Failures in a row after which a receiver is left alone, and for how long: doubled with each further failure.
BREAKER_FAILURES = 5
FIRST_PAUSE, MAX_PAUSE = 30.0, 600.0


@dataclass(slots=True)
class Breaker:
    """Circuit breaker of one receiver. While it is open, no delivery is tried; each of them keeps its own schedule.

    After the pause one delivery is tried alone. Its success closes the breaker, its failure opens it for longer. If a
    delivery that was under way before fails in the pause, the pause stays. Times are seconds of the monotonic clock.
    """

    failures: int = 0
    opened: int = 0
    until: float = 0.0

    @property
    def is_open(self) -> bool:
        """Return True from the pause on until a success."""
        return self.opened > 0

    @property
    def is_fresh(self) -> bool:
        """Return True if nothing counts against the receiver."""
        return not (self.failures or self.opened or self.until)

    def admits(self, now: float, in_flight: int) -> bool:
        """Return True if a delivery may be tried, while `in_flight` others are."""
        return now >= self.until and (not self.is_open or in_flight == 0)

    def note(self, verdict: Verdict, now: float, chance: float, retry_after: float | None = None) -> bool:
        """Note an attempt. Return True if its success closed the breaker.

        Args:
            chance: a random number from 0 to 1.
            retry_after: the seconds that the receiver asked for.
        """
        if verdict is Verdict.SUCCESS:
            was_open, self.failures, self.opened, self.until = self.is_open, 0, 0, 0.0
            return was_open
        self.failures += 1
        # If the pause is on, the attempt was under way before it, and tells nothing new of the receiver.
        is_late = self.is_open and now < self.until
        is_bad = verdict is Verdict.SLOW_DOWN or self.failures >= BREAKER_FAILURES or self.is_open
        if is_bad and not is_late:
            self.opened += 1
            pause = min(FIRST_PAUSE * 2.0 ** min(self.opened - 1, 10), MAX_PAUSE) * (1 + JITTER * chance)
            self.until = max(self.until, now + pause)
        if verdict is Verdict.SLOW_DOWN and retry_after is not None:
            self.until = max(self.until, now + min(retry_after, MAX_RETRY_AFTER))
        return False


# With a pause before each of so many attempts, a breaker has the longest pause, whatever came before them.
_JUDGED = 16


def breaker_after(attempts: Iterable[Attempt], wall: float, monotonic: float) -> Breaker:
    """Return the circuit breaker of a receiver to which an earlier run made attempts. The times are the present ones.

    Retry-After is not in an attempt, so it counts for its own delivery alone.
    """
    breaker = Breaker()
    for attempt in sorted(attempts, key=lambda each: each.at)[-_JUDGED:]:
        ended = min(attempt.at + attempt.seconds, wall)
        breaker.note(verdict_of(attempt), monotonic - (wall - ended), 0.0)
    return breaker
