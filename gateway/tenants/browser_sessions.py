"""Browser sessions: the cookie holds a secret of its own, not the key, until the browser signs out.

A session belongs to one secret of a key. The session ends with that secret: when the secret is revoked, expires, or is
rotated away.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict

from gateway.store.protocol import SignInRecord, SignInRemoval, Store, StoreError
from gateway.tenants.keys import Grant, Keyring, digest_of, mint
from gateway.tenants.stored_keys import durable

PREFIX = "cgs_"
MAX_SESSIONS = 100_000
MAX_OF_A_KEY = 1000


class BrowserSessions:
    """All browser sessions, by the SHA-256 of their secrets. Past a bound the oldest sessions end.

    Args:
        seconds: the time for which a session is valid.
    """

    def __init__(self, seconds: float, store: Store, keyring: Keyring) -> None:
        self._seconds = seconds
        self._store = store
        self._keyring = keyring
        self._grants: OrderedDict[str, Grant] = OrderedDict()
        # The sessions of each key's secret, oldest first.
        self._of: dict[Grant, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._grants)

    async def restore(self) -> None:
        """Read the sessions from the store, and remove expired sessions and sessions of removed keys.

        Raises:
            StoreError: the journal can't be read.
        """
        now, over = time.time(), []
        for record in await self._store.sign_ins():
            key = self._keyring.grant(record.key_digest)
            if key is None or record.expires / 1000 <= now:
                over.append(SignInRemoval(record.digest))
            else:
                self._add(record.digest, Grant(key.identity, record.expires / 1000, key.key, key))
        if over:
            self._store.write(over)

    async def make(self, key: Grant, now: float) -> str:
        """Sign a browser in with a key, also while the disk takes nothing. Return the value of its cookie."""
        secret = mint(PREFIX)
        digest, until = digest_of(secret), now + self._seconds
        self._add(digest, Grant(key.identity, until, key.key, key))
        changes = [SignInRemoval(old) for old in self._excess(key, now)]
        assert key.key is not None
        held = key.key.digest if self._keyring.grant(key.key.digest) is key else key.key.old_digest
        written = self._store.write([*changes, SignInRecord(digest, held or "", round(until * 1000))])
        if not self._store.trouble:
            with contextlib.suppress(StoreError):
                await durable(written, "this browser is signed in")
        return secret

    def grant(self, secret: str) -> Grant | None:
        """Return the grant of a cookie's secret, also if it has expired; None if no session has this secret."""
        return self._grants.get(digest_of(secret))

    async def end(self, secret: str) -> Grant | None:
        """Sign a browser out. Return the grant that has ended; None if no session has this secret.

        Raises:
            StoreError: the disk has not taken the change yet; the session has ended all the same.
        """
        digest = digest_of(secret)
        grant = self._drop(digest)
        if grant is not None:
            await durable(self._store.write([SignInRemoval(digest)]), "this browser is signed out")
        return grant

    def _add(self, digest: str, grant: Grant) -> None:
        self._grants[digest] = grant
        assert grant.within is not None
        self._of.setdefault(grant.within, OrderedDict())[digest] = None

    def _drop(self, digest: str) -> Grant | None:
        grant = self._grants.pop(digest, None)
        if grant is None:
            return None
        assert grant.within is not None
        own = self._of[grant.within]
        del own[digest]
        if not own:
            del self._of[grant.within]
        grant.end()
        return grant

    def _excess(self, key: Grant, now: float) -> list[str]:
        """Drop expired sessions and sessions past the bounds, oldest first. Return their digests.

        All sessions hold for the same time, so the oldest session expires first.
        """
        dropped = []
        while self._grants:
            digest, oldest = next(iter(self._grants.items()))
            if oldest.holds(now) and len(self._grants) <= MAX_SESSIONS:
                break
            self._drop(digest)
            dropped.append(digest)
        own = self._of.get(key, OrderedDict())
        while len(own) > MAX_OF_A_KEY:
            digest = next(iter(own))
            self._drop(digest)
            dropped.append(digest)
        return dropped
