"""Common part of the policies that take jobs in order and bind them at once."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from gateway.jobs.routing.snapshot import BackendView, Head, Snapshot

_order = attrgetter("order")


def in_order(snapshot: Snapshot) -> Iterator[Head]:
    """Yield the heads, the earliest first."""
    yield from sorted(snapshot.heads, key=_order)


def open_views(snapshot: Snapshot, head: Head) -> Iterator[BackendView]:
    """Yield the backends that can take a head's job now, those with the fewest pending prompts first.

    Backends that are slow to answer come only if no other can take it.
    """
    slow: list[BackendView] = []
    has_other = False
    for view in snapshot.board.in_queue_order():
        if snapshot.fits(view) and snapshot.may(head, view):
            if view.slow:
                slow.append(view)
            else:
                has_other = True
                yield view
    if not has_other:
        yield from slow
