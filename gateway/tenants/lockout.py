"""The lock-out: an address that presents wrong keys has to wait, twice as long each time.

Pure: times are passed in (seconds of any clock that does not jump). Of a request only two facts are known: its client
address, and the digest of the key that it carried.

`network_of` tells which addresses count as one. Three rules protect callers that share one from each other's typos:

- a key that was used from there in the last day never waits (the caller of this class checks that);
- if an address presents the same wrong key again and again, only that key waits, because it guesses nothing;
- a right key resets no count, because a guesser who has one would use it between guesses.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from gateway.settings import LockoutSettings
from gateway.tenants.networks import network_of

# Seconds after its last wrong key, or its wait, until an address begins anew.
FORGET_SECONDS = 3600.0
MAX_ADDRESSES = 100_000


@dataclass(slots=True)
class _Failures:
    count: int = 0
    # Digest of the only wrong key so far; None once there were two.
    only: str | None = None
    until: float = 0.0
    last: float = 0.0


class Lockout:
    """Counts wrong keys by address.

    Addresses that were locked out are kept apart from addresses that have only begun to fail. So a crowd of new
    addresses, which any IPv6 prefix has, evicts none of the former.

    Args:
        max_addresses: maximum number of remembered addresses of both kinds together.
    """

    def __init__(self, settings: LockoutSettings, max_addresses: int = MAX_ADDRESSES) -> None:
        self._settings = settings
        self._room = max(max_addresses // 2, 1)
        # Both tables are in the order of the last failures.
        self._suspects: OrderedDict[str, _Failures] = OrderedDict()
        self._locked: OrderedDict[str, _Failures] = OrderedDict()
        # The end of the longest wait; 0 if nobody ever waited.
        self.latest = 0.0

    def __len__(self) -> int:
        return len(self._suspects) + len(self._locked)

    def waiting(self, now: float) -> int:
        """Return the number of addresses that have to wait now."""
        return sum(failures.until > now for failures in self._locked.values())

    def wait(self, address: str, digest: str, now: float) -> float:
        """Return the seconds until a key may be tried from an address; 0 if it may be tried now."""
        failures = self._locked.get(network_of(address))
        if failures is None or now >= failures.until or (failures.only is not None and failures.only != digest):
            return 0.0
        return failures.until - now

    def fail(self, address: str, digest: str, now: float) -> float:
        """Count a wrong key. Return the seconds for which the address has to wait now."""
        settings = self._settings
        if settings.after == 0:
            return 0.0
        network = network_of(address)
        failures = self._suspects.pop(network, None) or self._locked.pop(network, None)
        if failures is None or now - max(failures.last, failures.until) > FORGET_SECONDS:
            failures = _Failures(only=digest)
        if failures.only != digest:
            failures.only = None
        failures.count += 1
        failures.last = now
        if failures.count < settings.after:
            _put(self._suspects, network, failures, self._room)
            return 0.0
        # 2**64 seconds are enough; a larger exponent would end as a float that is too large.
        delay = settings.first * 2.0 ** min(failures.count - settings.after, 64)
        failures.until = now + min(delay, settings.max_time)
        self.latest = max(self.latest, failures.until)
        _put(self._locked, network, failures, self._room)
        # A difference of large numbers may be a little more than what was added.
        return min(failures.until - now, settings.max_time)


def _put(table: OrderedDict[str, _Failures], network: str, failures: _Failures, room: int) -> None:
    table[network] = failures
    if len(table) > room:
        table.popitem(last=False)
