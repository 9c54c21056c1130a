"""Limits of tenants: requests, prompts, jobs, bytes, sockets, whatever keys they use. Pure: time is passed in.

This module counts requests and prompts in token buckets, and open sockets and bodies. Other packages count jobs and the
bytes of uploads, and pass their counts in; this module makes the refusal if there are too many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.settings import LimitSettings
from gateway.tenants.guesses import Guesses
from gateway.tenants.policy import CALLER, Policies
from gateway.tenants.token_bucket import TokenBucket, whole_seconds

SWEEP_SECONDS = 60.0
# Smaller bodies are not counted, because connections have a bound of their own.
UNCOUNTED_BODY = 64 * 1024
# Retry-After if only the tenant itself can make room, or if the time is unknown.
UNKNOWN_SECONDS = 10
LONGEST_SECONDS = 3_600
# Test events of webhooks that a tenant may send in a minute. Each makes a write and a request to somebody's server.
WEBHOOK_TESTS = 10

_WHAT = {
    "requests_per_second": "Too many requests",
    "prompts_per_minute": "Too many prompts",
    "jobs_waiting": "Too many prompts of yours are waiting",
    "open_bytes": "Your prompts that have not ended take too many bytes",
    "bodies_bytes": "The bodies of requests under way take too many bytes",
    "body_bytes": "The request body is too large",
    "upload_bytes": "There is no room for the file",
    "sockets": "Too many WebSockets of yours are open",
    "bad_names_per_minute": "Too many prompts name files that are not yours",
    "bad_names_per_prompt": "The prompt names too many files that are not yours",
    "webhook_tests_per_minute": "Too many test events",
}


class LimitReached(Exception):
    """A tenant's limit is reached; the text gives details and tells what to do.

    `limit` is its name, in the configuration if it can be set there, `value` its setting, `used` the amount in use.
    `retry_after` is the whole seconds until a retry may succeed, None if none will. A rate is `quota` in a `window` of
    seconds.
    """

    def __init__(
        self,
        limit: str,
        value: float,
        used: float,
        details: str,
        retry_after: int | None,
        quota: int | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__(details)
        self.limit = limit
        self.value = value
        self.used = used
        self.retry_after = retry_after
        self.quota = int(value) if quota is None else quota
        self.window = window

    @property
    def message(self) -> str:
        """Return the summary of the refusal, in a few words."""
        return _WHAT[self.limit]


@dataclass(frozen=True, slots=True)
class Quota:
    """A rate and its remainder: `value` in `window` seconds, `left` now, and all of it again in `resets_in` seconds."""

    limit: str
    value: int
    window: int
    left: int
    resets_in: int


class Limits:
    """The use of every limit by every tenant.

    Args:
        max_bodies_bytes: the bytes of the bodies that are read at a time, of all tenants together.
    """

    def __init__(self, policies: Policies, max_bodies_bytes: int = 256 * 1024**2) -> None:
        self._max_bodies_bytes = max_bodies_bytes
        self._bodies: Counter[str] = Counter()
        self._bodies_in_all = 0
        self._policies = policies
        self._requests: dict[str, TokenBucket] = {}
        self._prompts: dict[str, TokenBucket] = {}
        self._tests: dict[str, TokenBucket] = {}
        self._sockets: dict[str, int] = {}
        self._guesses = Guesses()
        self._sweep_at = 0.0
        # If no tenant has such a limit, callers leave the look-up out.
        self.counts_requests = any(p.limits.requests_per_second is not None for p in policies.all)
        self.bounds_bodies = any(p.limits.body_bytes is not None for p in policies.all)
        self.bounds_running = any(p.limits.jobs_running is not None for p in policies.all)

    def __len__(self) -> int:
        buckets = len(self._requests) + len(self._prompts) + len(self._tests)
        return buckets + len(self._sockets) + len(self._guesses)

    def of(self, tenant: str) -> LimitSettings:
        """Return a tenant's limits."""
        return self._policies.of(tenant).limits

    # -- rates ---------------------------------------------------------------------------------------------------

    def request(self, tenant: str, now: float) -> LimitReached | None:
        """Count a request, at `now` (seconds of a monotonic clock). Return the reached limit; None if there is none.

        The limit is returned and not raised, because every request passes here.
        """
        bucket = self._requests.get(tenant)
        if bucket is None:
            limits = self._policies.of(tenant).limits
            if limits.requests_per_second is None:
                return None
            self._sweep(now)
            rate = limits.requests_per_second
            bucket = self._requests[tenant] = TokenBucket.full(rate, burst(limits), now)
        if bucket.take(now):
            return None
        return _too_fast("requests_per_second", bucket.rate, bucket, now)

    def prompt(self, tenant: str, now: float) -> None:
        """Count a prompt.

        Raises:
            LimitReached: the tenant sent too many prompts in the last minute.
        """
        maximum = self._policies.of(tenant).limits.prompts_per_minute
        if maximum is None:
            return
        bucket = self._prompts.get(tenant)
        if bucket is None:
            self._sweep(now)
            bucket = self._prompts[tenant] = TokenBucket.full(maximum / 60.0, maximum, now)
        if not bucket.take(now):
            raise _too_fast("prompts_per_minute", maximum, bucket, now)

    def webhook_test(self, tenant: str, now: float) -> None:
        """Count a test event of a webhook.

        Raises:
            LimitReached: the tenant sent too many in the last minute.
        """
        bucket = self._tests.get(tenant)
        if bucket is None:
            self._sweep(now)
            bucket = self._tests[tenant] = TokenBucket.full(WEBHOOK_TESTS / 60.0, WEBHOOK_TESTS, now)
        if not bucket.take(now):
            raise _too_fast("webhook_tests_per_minute", WEBHOOK_TESTS, bucket, now)

    def bad_names(self, tenant: str, names: Collection[str], now: float) -> None:
        """Count the file names of a prompt that are not known to be its tenant's own, before any is looked for.

        Callers must pass the same names if the files exist or not, because the response would else reveal the files.

        Raises:
            LimitReached: the prompt has too many such names, or the tenant's prompts of the last minute had.
        """
        limits, tried = self._policies.of(tenant).limits, set(names)
        if not tried:
            return
        maximum = limits.bad_names_per_prompt
        if maximum is not None and len(tried) > maximum:
            details = "name files that you uploaded, or that your prompts made"
            raise LimitReached("bad_names_per_prompt", maximum, len(tried), details, None)
        rate = limits.bad_names_per_minute
        if rate is None:
            return
        bucket = self._guesses.take(tenant, tried, rate, now)
        if bucket is not None:
            raise _too_many_names(rate, len(tried), bucket, now)

    def quotas(self, tenant: str, now: float) -> list[Quota]:
        """Return the rates for a tenant's prompts, with the remainder of each."""
        limits, found = self._policies.of(tenant).limits, []
        if limits.prompts_per_minute is not None:
            found.append(_quota("prompts_per_minute", limits.prompts_per_minute, 60, self._prompts.get(tenant), now))
        if limits.requests_per_second is not None:
            maximum = burst(limits)
            window = whole_seconds(maximum / limits.requests_per_second)
            found.append(_quota("requests_per_second", maximum, window, self._requests.get(tenant), now))
        return found

    def _sweep(self, now: float) -> None:
        """Drop the buckets that are full again, because a new bucket is full as well."""
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_SECONDS
        for buckets in (self._requests, self._prompts, self._tests):
            for tenant in [tenant for tenant, bucket in buckets.items() if bucket.full_in(now) <= 0.0]:
                del buckets[tenant]

    # -- amounts in use ------------------------------------------------------------------------------------------

    @contextmanager
    def socket(self, tenant: str) -> Iterator[None]:
        """Count a WebSocket while it is open.

        Raises:
            LimitReached: the tenant has as many open WebSockets as it may.
        """
        maximum, now_open = self._policies.of(tenant).limits.sockets, self._sockets.get(tenant, 0)
        if maximum is not None and now_open >= maximum:
            raise LimitReached("sockets", maximum, now_open, "close one, and connect again", UNKNOWN_SECONDS)
        self._sockets[tenant] = now_open + 1
        try:
            yield
        finally:
            self._sockets[tenant] -= 1
            if not self._sockets[tenant]:
                del self._sockets[tenant]

    @contextmanager
    def body(self, tenant: str) -> Iterator[Callable[[int], None]]:
        """Count a body while it is read. Yield a function, to be called with the number of bytes received so far.

        The function raises `LimitReached` if this body and the tenant's others, or those of all tenants, are too large.
        """
        held = 0

        def grow(size: int) -> None:
            nonlocal held
            if size <= UNCOUNTED_BODY:
                return
            maximum, used = self._policies.of(tenant).limits.bodies_bytes, self._bodies[tenant] - held
            if maximum is not None and used + size > maximum:
                raise LimitReached("bodies_bytes", maximum, used, "send fewer at a time", 1)
            if self._bodies_in_all - held + size > self._max_bodies_bytes:
                maximum, used = self._max_bodies_bytes, self._bodies_in_all
                raise LimitReached("bodies_bytes", maximum, used, "of all callers together; send it again", 1)
            self._bodies[tenant] += size - held
            self._bodies_in_all += size - held
            held = size

        try:
            yield grow
        finally:
            self._bodies[tenant] -= held
            self._bodies_in_all -= held
            if self._bodies[tenant] <= 0:
                del self._bodies[tenant]

    def one_more_waits(self, tenant: str, waiting: int, starts_in: float | None) -> None:
        """Check that one more prompt of a tenant may wait.

        Args:
            waiting: the number of the tenant's prompts that have not started.
            starts_in: seconds until the next of them may start; None if nobody can tell.

        Raises:
            LimitReached: `waiting` is as many as may wait.
        """
        maximum = self._policies.of(tenant).limits.jobs_waiting
        if maximum is not None and waiting >= maximum:
            details = "send it again when one of them has started, or cancel one of them"
            raise LimitReached("jobs_waiting", maximum, waiting, details, _soon(starts_in))

    def more_bytes_open(self, tenant: str, opened: int, size: int, ends_in: float | None) -> None:
        """Check that a prompt of `size` bytes may join the tenant's open prompts, which have `opened` bytes.

        Args:
            ends_in: seconds until one of them may end; None if nobody can tell.

        Raises:
            LimitReached: together they are too large.
        """
        maximum = self._policies.of(tenant).limits.open_bytes
        if maximum is None or opened + size <= maximum:
            return
        if size > maximum:
            raise LimitReached("open_bytes", maximum, size, f"this prompt alone takes {size} bytes", None)
        details = f"this prompt takes {size} bytes; send it again when one of them has ended, or cancel one"
        raise LimitReached("open_bytes", maximum, opened, details, _soon(ends_in))

    def may_run_more(self, tenant: str, placed: int) -> bool:
        """Return True if one more job of a tenant may go to a backend, beside the `placed` jobs that backends have."""
        maximum = self._policies.of(tenant).limits.jobs_running
        return maximum is None or placed < maximum


def burst(limits: LimitSettings) -> int:
    """Return the number of requests that may come at once: as configured, else those of a second, at least one."""
    return limits.requests_burst or whole_seconds(limits.requests_per_second or 1.0)


def body_too_large(maximum: int, size: int) -> LimitReached:
    """Return the refusal of a body that is larger than its tenant may send. A retry does not help."""
    return LimitReached("body_bytes", maximum, size, f"at most {maximum} bytes are taken from {CALLER}", None)


def no_room(maximum: int, used: int, size: int) -> LimitReached:
    """Return the refusal of an upload that does not fit beside the uploads that the tenant's open jobs need."""
    if size > maximum:
        return LimitReached(
            "upload_bytes", maximum, used, f"this file has {size} bytes, more than may ever be kept", None
        )
    details = f"this file has {size}; what is kept is needed by open jobs, send it again when they have ended"
    return LimitReached("upload_bytes", maximum, used, details, UNKNOWN_SECONDS)


def starts_in(run_seconds: float | None, running: int) -> float | None:
    """Return the seconds until the next of a tenant's jobs may start, from a job's run time; None if that is unknown.

    `running` of its jobs share the fleet, so one ends every `run_seconds` / `running`.
    """
    return run_seconds / max(running, 1) if run_seconds is not None else None


def _soon(seconds: float | None) -> int:
    return UNKNOWN_SECONDS if seconds is None else min(whole_seconds(seconds), LONGEST_SECONDS)


def _too_fast(limit: str, value: float, bucket: TokenBucket, now: float) -> LimitReached:
    wait = whole_seconds(bucket.next_in(now))
    window = whole_seconds(bucket.capacity / bucket.rate)
    details = f"wait {wait} s; then one more is taken"
    return LimitReached(limit, value, value, details, wait, int(bucket.capacity), window)


def _too_many_names(rate: int, names: int, bucket: TokenBucket, now: float) -> LimitReached:
    # If some of the names were tried before, the real wait is shorter than this one.
    wait = whole_seconds(bucket.next_in(now, min(names, rate)))
    details = f"wait {wait} s, or name files that you uploaded, or that your prompts made"
    return LimitReached("bad_names_per_minute", rate, rate, details, wait, int(bucket.capacity), 60)


def _quota(limit: str, value: int, window: int, bucket: TokenBucket | None, now: float) -> Quota:
    if bucket is None:
        return Quota(limit, value, window, value, 0)
    return Quota(limit, value, window, int(bucket.left(now)), whole_seconds(bucket.full_in(now)))
