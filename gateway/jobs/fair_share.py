"""Whose turn it is: weighted fair queueing over tenants, as start-time tags (SFQ).

Each job gets a tag when it is accepted; the lowest tag goes first. A tenant's tags are spaced by the inverse of its
weight and start at the virtual time, the tag of the newest job that left, so a tenant that was idle neither saves up
credit nor waits behind another's long queue. ComfyUI's queue is a heap on ``number`` and takes floats from the body
(execution.py), so the same tag orders the jobs on each backend.

Pure: no clock and no I/O.
"""

from __future__ import annotations

# One slot before the tenant's first: far below any spacing, far above a double's resolution at a billion jobs.
FRONT_STEP = 1e-3


class FairShare:
    """The tags of all tenants."""

    def __init__(self) -> None:
        self._virtual_time = 0.0
        self._next: dict[str, float] = {}

    def tag(self, tenant: str, weight: float = 1.0) -> float:
        """The tag of a job that joins the end of its tenant's queue."""
        start = max(self._virtual_time, self._next.get(tenant, 0.0))
        self._next[tenant] = start + 1.0 / weight
        return start

    def front_tag(self, tenant: str, first: float | None, weight: float = 1.0) -> float:
        """The tag of a job that goes before its tenant's others, of which `first` has the lowest tag.

        It takes that turn and not one more: the tenant's queue moves back by one.
        """
        end = self.tag(tenant, weight)
        return end if first is None else first - FRONT_STEP

    def left(self, tag: float) -> None:
        """A job was sent out: virtual time is its tag."""
        self._virtual_time = max(self._virtual_time, tag)

    def restore(self, tenant: str, tag: float, weight: float = 1.0) -> None:
        """A job of an earlier run has this tag."""
        self._next[tenant] = max(self._next.get(tenant, 0.0), tag + 1.0 / weight)

    def forget_idle(self, active: set[str]) -> None:
        """Drop what is kept of tenants that have no jobs and whose next tag is in the past."""
        for tenant in [t for t, tag in self._next.items() if t not in active and tag <= self._virtual_time]:
            del self._next[tenant]
