"""Keys that are made, rotated and revoked while the gateway runs. The journal has each change before its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import replace

from gateway.settings import AuthSettings
from gateway.settings.base import checked_name
from gateway.store.protocol import KeyRecord, KeyRemoval, KeyUse, Store, StoreError
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks
from gateway.tenants.keys import Key, Keyring, Role, Source, digest_of, mint

_log = logs.get("keys")

FLUSH_SECONDS = 60.0
# Seconds for which an answer waits for the disk. A revoked key is refused from the first moment.
ANSWER_WITHIN = 5.0

ISOLATION_HINT = (
    "a second tenant has a key, so isolated tenants on shared backends may use only reviewed node classes and trusted "
    "packs from now on; GET /gateway/packs shows which packs wait for trust"
)


class KeyRefused(Exception):
    """Refusal of an operation on a key; the text gives the reason, and tells what to do."""


class NoSuchKey(Exception):
    """There is no key of that name."""


class StoredKeys:
    """The keys in the store. Call `restore` before the first request, `start` and `close` around serving."""

    def __init__(self, settings: AuthSettings, store: Store, keyring: Keyring) -> None:
        self._settings = settings
        self._store = store
        self._keyring = keyring
        self._shadowed: dict[str, Key] = {}
        self._written: dict[str, float] = {}
        self._count = 0
        self._one_at_a_time = asyncio.Lock()
        self._tasks = Tasks("keys")

    async def restore(self) -> None:
        """Read the keys from the store into the keyring.

        Raises:
            StoreError: the journal can't be read.
        """
        if await self._store.had_keys():
            self._keyring.close()
        digests = {key.digest for key in self._keyring.all()}
        for record in await self._store.keys():
            key = self._key_of(record)
            if self._keyring.key(key.name) is not None or key.digest in digests:
                # Two keys of one name would be one owner, so the operator has to choose between them.
                self._shadowed[key.name] = key
                _log.warning("key_shadowed", key=key.name, reason="auth.keys has this name or key too")
                continue
            self._add(key)

    def start(self) -> None:
        """Begin to write the last uses of keys now and then."""
        self._tasks.repeat(self._flush_again, "flush", FLUSH_SECONDS, at_once=False)

    async def close(self) -> None:
        """Stop, and write the last uses once more."""
        await self._tasks.close()
        self._flush()

    def all(self) -> list[Key]:
        """Return all keys of the configuration and of the store, also the keys that the configuration shadows."""
        return [*self._keyring.all(), *self._shadowed.values()]

    def is_shadowed(self, key: Key) -> bool:
        """Return True if a key of the store is refused because the configuration has its name, or the same key."""
        return self._shadowed.get(key.name) is key

    async def make(self, name: str, role: Role, tenant: str, expires: float | None) -> tuple[Key, str]:
        """Make a key. `expires` is in seconds since 1970. Return the key and its secret, which is not kept.

        Raises:
            KeyRefused: the name or tenant is malformed, the name is taken, there are too many keys, the expiry is past,
                or the first key is not an admin's.
            StoreError: the key can't be journalled.
        """
        async with self._one_at_a_time:
            self._check_new(name, role, tenant, expires)
            secret = mint()
            identity = self._keyring.identity_of(name, role, tenant)
            key = Key(identity, Source.STORE, digest_of(secret), tenant, time.time(), expires)
            await self._store.try_write([_record_of(key)])
            had_strangers = self._keyring.has_strangers
            self._keyring.close()
            self._add(key)
            if self._keyring.has_strangers and not had_strangers:
                _log.warning("isolation_started", tenants=sorted(self._keyring.user_tenants), hint=ISOLATION_HINT)
            return key, secret

    def _check_new(self, name: str, role: Role, tenant: str, expires: float | None) -> None:
        for what, value in (("name", name), ("tenant", tenant)):
            try:
                if value or what == "name":
                    checked_name(value)
            except ValueError as error:
                raise KeyRefused(f"{what} {error}") from error
        if (taken := self._keyring.key(name) or self._shadowed.get(name)) is not None:
            raise KeyRefused(
                f"there is a key '{name}' in the {taken.source} already; rotate it, or choose another name"
            )
        if self._count >= self._settings.max_keys:
            raise KeyRefused(f"there are {self._count} keys, as many as auth.max_keys allows; revoke some, or raise it")
        if expires is not None and expires <= time.time():
            raise KeyRefused("expires is in the past")
        if self._keyring.is_open and not self._keyring.is_disabled and role is not Role.ADMIN:
            raise KeyRefused(
                "the first key must be an admin's: with it the gateway closes to all who have none, and nobody could "
                "make another"
            )

    async def rotate(self, name: str, overlap: float | None) -> tuple[Key, str]:
        """Give a key a new secret. The old one is valid for `overlap` seconds more (None: as configured, 0: no longer).

        If a secret from the rotation before is still valid, it ends now.

        Raises:
            NoSuchKey: there is no key of that name.
            KeyRefused: the key is the configuration's.
            StoreError: the new secret can't be journalled.
        """
        async with self._one_at_a_time:
            key = self._own(name)
            secret, now = mint(), time.time()
            overlap = self._settings.rotation_overlap if overlap is None else overlap
            fresh = replace(key, digest=digest_of(secret), old_digest=key.digest, old_until=now + overlap)
            await self._store.try_write([_record_of(fresh)])
            self._keyring.replace(key, fresh)
            return fresh, secret

    async def revoke(self, name: str) -> Key:
        """Revoke a key, at once and for good.

        Raises:
            NoSuchKey: there is no key of that name.
            KeyRefused: the key is the configuration's.
            StoreError: the disk has not taken it yet. The key is revoked all the same, unless the gateway crashes.
        """
        async with self._one_at_a_time:
            if (key := self._shadowed.pop(name, None)) is None:
                key = self._own(name)
                self._keyring.remove(key)
                self._written.pop(name, None)
                self._count -= 1
            await durable(self._store.write([KeyRemoval(name)]), f"the key '{name}' is revoked")
            return key

    def _own(self, name: str) -> Key:
        key = self._keyring.key(name)
        if key is None:
            raise NoSuchKey(name)
        if key.source is Source.FILE:
            raise KeyRefused(
                f"the key '{name}' is in the configuration (auth.keys, or a flag): change it there, and restart"
            )
        return key

    def _add(self, key: Key) -> None:
        self._count += 1
        self._keyring.add(key)
        self._written[key.name] = key.used_at or 0.0

    def _key_of(self, record: KeyRecord) -> Key:
        return Key(
            self._keyring.identity_of(record.name, record.role, record.tenant),
            Source.STORE,
            record.digest,
            record.tenant,
            record.created / 1000,
            _seconds(record.expires),
            record.old_digest,
            _seconds(record.old_until),
            _seconds(record.used_at),
        )

    async def _flush_again(self) -> None:
        self._flush()

    def _flush(self) -> None:
        """Write the uses of keys since the last time."""
        uses = []
        for name, written in self._written.items():
            key = self._keyring.key(name)
            if key is not None and key.used_at is not None and key.used_at > written:
                self._written[name] = key.used_at
                uses.append(KeyUse(name, round(key.used_at * 1000)))
        if uses:
            self._store.write(uses)


async def durable(write: Awaitable[None], what: str) -> None:
    """Wait for a write that is kept until the disk takes it, but not for ever.

    Raises:
        StoreError: the write takes longer than `ANSWER_WITHIN`, or fails.
    """
    done, _ = await asyncio.wait([asyncio.ensure_future(write)], timeout=ANSWER_WITHIN)
    if not done:
        raise StoreError(f"{what}, but the disk has not taken it yet: after a crash it would not be; ask again")
    done.pop().result()


def _record_of(key: Key) -> KeyRecord:
    return KeyRecord(
        key.name,
        key.digest,
        str(key.identity.role),
        key.tenant,
        _milliseconds(key.created) or 0,
        _milliseconds(key.expires),
        key.old_digest,
        _milliseconds(key.old_until),
        _milliseconds(key.used_at),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
