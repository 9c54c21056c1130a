"""Count the file names that a tenant's prompts try out. Pure: time is passed in.

A refusal reveals if a file of that name exists, so a prompt is a guess. A ComfyUI answers 3,000 names a second, and
some of its names are five letters long. Each name that is not known to be the tenant's own costs a token. The cost is
the same if the file exists or not, because another cost would reveal the file.

The bucket holds a minute's tokens. With the default, 100, a workflow from elsewhere may name its dozen missing files
again and again while its user mends it, and to try half of the 25^5 names of ComfyUI's previews takes 34 days.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from gateway.tenants.token_bucket import TokenBucket

# Time in which the same name is no new guess, because jobs of one workflow name an operator's file a thousand times.
REMEMBER_SECONDS = 600.0
MAX_REMEMBERED = 256
SWEEP_SECONDS = 60.0


@dataclass(slots=True)
class _Guesser:
    bucket: TokenBucket
    # Digests of names, each with the time at which it was paid for; the oldest first.
    paid: OrderedDict[bytes, float] = field(default_factory=OrderedDict)


class Guesses:
    """The names that tenants have tried. A tenant that has tried none for a while is forgotten."""

    def __init__(self) -> None:
        self._guessers: dict[str, _Guesser] = {}
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return len(self._guessers)

    def take(self, tenant: str, names: Collection[str], per_minute: int, now: float) -> TokenBucket | None:
        """Pay for names, at `now` (seconds of a monotonic clock); return the bucket if it does not hold enough.

        In that case no token is taken. Names beyond the capacity of the bucket cost no more than the whole bucket.
        """
        guesser = self._guessers.get(tenant)
        if guesser is None:
            self._sweep(now)
            guesser = _Guesser(TokenBucket.full(per_minute / 60.0, per_minute, now))
        _forget(guesser, now)
        new = {_digest(name) for name in names} - guesser.paid.keys()
        if new and not guesser.bucket.take(now, cost(len(new), per_minute)):
            return guesser.bucket
        if new:
            self._guessers[tenant] = guesser
        guesser.paid.update(dict.fromkeys(new, now))
        while len(guesser.paid) > MAX_REMEMBERED:
            guesser.paid.popitem(last=False)
        return None

    def _sweep(self, now: float) -> None:
        """Forget tenants with no remembered name and a full bucket, because a new bucket is full as well."""
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_SECONDS
        for tenant, guesser in list(self._guessers.items()):
            _forget(guesser, now)
            if not guesser.paid and guesser.bucket.full_in(now) <= 0.0:
                del self._guessers[tenant]


def cost(names: int, per_minute: int) -> int:
    """Return the tokens that so many new names cost."""
    return min(names, per_minute)


def _forget(guesser: _Guesser, now: float) -> None:
    paid = guesser.paid
    while paid and now - next(iter(paid.values())) >= REMEMBER_SECONDS:
        paid.popitem(last=False)


def _digest(name: str) -> bytes:
    """Return the digest by which a name is remembered, because a name may be 32,767 characters long."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
