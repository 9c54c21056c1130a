"""Pinned: all jobs of a tenant go to one backend."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from gateway.jobs.routing.policies.heads import in_order
from gateway.jobs.routing.snapshot import Choice, Snapshot


class Pinned:
    """Policy that binds all jobs of a tenant to one backend, by a hash of both names.

    If a backend leaves, only its tenants move. If a tenant's backend is full, its jobs wait.
    """

    binds_late = False

    def choose(self, snapshot: Snapshot) -> Choice | None:
        """Return the earliest head whose own backend has a slot, and that backend."""
        everything = tuple(snapshot.board.views.values())
        for head in in_order(snapshot):
            able = [view for view in everything if snapshot.may(head, view)]
            own = max(able, key=lambda view: _rank(head.tenant, view.name), default=None)
            if own is not None and snapshot.fits(own):
                return Choice(head, own.name)
        return None


@lru_cache(65_536)
def _rank(tenant: str, name: str) -> bytes:
    return blake2b(f"{tenant}\n{name}".encode("utf-8", "replace"), digest_size=8).digest()
