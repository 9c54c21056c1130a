"""Signed links to stored files: a URL that anybody may GET for a time.

An object store's server signs its own. For a folder, or memory, the gateway signs links to itself.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol
from urllib.parse import quote

from gateway.artifacts.storage_errors import StorageError
from gateway.files.index import Stored
from gateway.settings.storage import StorageSettings
from gateway.telemetry import logs

_log = logs.get("artifacts")

# The path of the gateway's own links.
OWN_PATH = "/gateway/stored/"
# Links that are kept for readers to come. Each takes less than a kilobyte.
MAX_KEPT = 20_000
# Links that are signed in one call.
AT_ONCE = 500
# Digits of a time in an own link.
_MAX_DIGITS = 15
# Seconds between two log lines about links that can't be signed.
_LOG_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Link:
    """A signed URL, and the time at which it ends, in seconds since 1970."""

    url: str
    expires_at: int

    def under(self, base: str) -> str:
        """Return the URL for readers who reach the gateway's own paths below `base`: an address, or a path prefix."""
        return base + self.url if self.url.startswith("/") else self.url


class Verdict(Enum):
    """Judgement of an own link."""

    GOOD = auto()
    EXPIRED = auto()
    FORGED = auto()


class OwnLinks:
    """The gateway's own signed links: paths, which begin with a slash. Pure.

    Args:
        key: the key of the signatures.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def url(self, key: str, expires_at: int) -> str:
        """Return a link to an object."""
        return f"{OWN_PATH}{quote(key)}?expires={expires_at}&signature={self._signature(key, expires_at)}"

    def judge(self, key: str, expires: str, signature: str, now: float) -> Verdict:
        """Judge the parts of a link."""
        if not (expires.isascii() and expires.isdigit() and len(expires) <= _MAX_DIGITS):
            return Verdict.FORGED
        own = self._signature(key, int(expires))
        if not hmac.compare_digest(own.encode(), signature.encode("utf-8", "surrogatepass")):
            return Verdict.FORGED
        return Verdict.GOOD if now < int(expires) else Verdict.EXPIRED

    def _signature(self, key: str, expires_at: int) -> str:
        # The number has no newline, so no other key and time read the same.
        message = f"{expires_at}\n{key}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, message, hashlib.sha256).hex()


class Signer(Protocol):
    """Object store that may sign URLs: `gateway.artifacts.object_store.ObjectStore`."""

    @property
    def can_sign(self) -> bool:
        """Return True if the store's server takes signed URLs."""

    async def sign(self, keys: Sequence[str], seconds: float) -> Sequence[str]:
        """Return a URL for each key."""


class Links:
    """Links to stored files, as readers get them. A link is used again until half its lifetime is over.

    Args:
        own: signs links for a store that can't sign.
        is_in_store: returns True if the store has a file, so that a link works.
        clock: returns seconds since 1970.

    Attributes:
        is_on: True if readers get links (``storage.links``).
    """

    def __init__(
        self,
        settings: StorageSettings,
        store: Signer,
        own: OwnLinks,
        is_in_store: Callable[[Stored], bool] = lambda _: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.is_on = settings.links == "signed"
        self.own = own
        self._store = store
        self._is_in_store = is_in_store
        self._clock = clock
        self._lifetime = settings.link_lifetime
        self._is_stripped = settings.strip_metadata
        # Each with the time until which it is used again.
        self._kept: OrderedDict[str, tuple[Link, float]] = OrderedDict()
        self._logged_at = -_LOG_SECONDS

    def shown_key(self, stored: Stored) -> str:
        """Return the key of the object that links lead to; empty if no link may lead to the file.

        If links lead to copies without metadata, a file without such a copy has no link.
        """
        return stored.shared_key if self._is_stripped else stored.key

    @property
    def is_stripped(self) -> bool:
        """Return True if links lead to copies without metadata."""
        return self._is_stripped

    async def of(self, files: Sequence[Stored]) -> list[Link | None]:
        """Return a link to each file; None for a file that has none, or if the store can't sign now."""
        return await self._to([self.shown_key(each) if self._is_in_store(each) else "" for each in files])

    async def to_original(self, stored: Stored) -> Link | None:
        """Return a link to a file as its tenant made it; None if it is not in the store yet, or can't be signed."""
        return (await self._to([stored.key if self._is_in_store(stored) else ""]))[0]

    async def _to(self, keys: Sequence[str]) -> list[Link | None]:
        """Return a link to each object; None for an empty key, or if the store can't sign now."""
        now = self._clock()
        found: dict[str, Link] = {}
        for key in keys:
            kept = self._kept.get(key)
            # If the clock was set back, a link seems to be good for longer than its lifetime.
            if kept is not None and now < kept[1] <= now + self._lifetime:
                found[key] = kept[0]
                self._kept.move_to_end(key)
        wanted = list(dict.fromkeys(key for key in keys if key and key not in found))
        for start in range(0, len(wanted), AT_ONCE):
            found |= await self._signed(wanted[start : start + AT_ONCE])
        return [found.get(key) for key in keys]

    async def _signed(self, keys: Sequence[str]) -> dict[str, Link]:
        now = self._clock()
        if self._store.can_sign:
            try:
                urls = await self._store.sign(keys, self._lifetime)
            except StorageError as error:
                self._log(error)
                return {}
            # The store counts from when it signs, so the link is good for at least this long.
            expires_at = int(now + self._lifetime)
        else:
            expires_at = math.ceil(now + self._lifetime)
            urls = [self.own.url(key, expires_at) for key in keys]
        made = {key: Link(url, expires_at) for key, url in zip(keys, urls, strict=True)}
        for key, link in made.items():
            self._kept[key] = link, now + self._lifetime / 2
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return made

    def _log(self, error: StorageError) -> None:
        now = time.monotonic()
        if now >= self._logged_at + _LOG_SECONDS:
            self._logged_at = now
            _log.warning("links_not_signed", error=error.message)
