"""The started jobs that a caller sees as running.

A ComfyUI runs one prompt at a time, and clients written for one rely on it. So a tenant sees one running job, the one
that its sockets are told of, unless all of its sockets take events as they happen (`Listeners`). No caller ever sees
two running jobs on one backend: one that is collected is shown until its end, and the next behind it as pending.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from gateway.jobs.state.job import Job
from gateway.jobs.state.transitions import SHOWN_RUNNING


class Listener:
    """Open socket of a session. It `interleaves` if its client takes the events of several prompts as they happen."""

    def __init__(self, listeners: Listeners, tenant: str, session_id: str, *, interleaves: bool) -> None:
        self._listeners = listeners
        self._tenant = tenant
        self._session_id = session_id
        self._interleaves = interleaves
        listeners.count(tenant, session_id, 1, interleaves=interleaves)

    def interleave(self) -> None:
        """Note that the socket's client takes events as they happen from now on."""
        if not self._interleaves:
            self.leave()
            self._interleaves = True
            self._listeners.count(self._tenant, self._session_id, 1, interleaves=True)

    def leave(self) -> None:
        """Note that the socket is closed."""
        self._listeners.count(self._tenant, self._session_id, -1, interleaves=self._interleaves)


class Listeners:
    """Count of each tenant's open sockets, apart for those that interleave and those that do not.

    Args:
        changed: called with a tenant whose view may have changed.
    """

    def __init__(self, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._serial: dict[str, Counter[str]] = {}
        self._interleaving: Counter[str] = Counter()

    def join(self, tenant: str, session_id: str, *, interleaves: bool) -> Listener:
        """Return the listener of a socket that was opened."""
        return Listener(self, tenant, session_id, interleaves=interleaves)

    def count(self, tenant: str, session_id: str, change: int, *, interleaves: bool) -> None:
        """Count one socket more or less."""
        if interleaves:
            self._interleaving[tenant] += change
            if not self._interleaving[tenant]:
                del self._interleaving[tenant]
        else:
            sessions = self._serial.setdefault(tenant, Counter())
            sessions[session_id] += change
            if not sessions[session_id]:
                del sessions[session_id]
            if not sessions:
                del self._serial[tenant]
        self._changed(tenant)

    def all_interleave(self, tenant: str) -> bool:
        """Return True if a tenant has sockets, and all of them take events as they happen."""
        return tenant in self._interleaving and tenant not in self._serial

    def is_told(self, job: Job) -> bool:
        """Return True if a socket that is told of one prompt at a time hears of a job."""
        return (job.submission.session_id or "") in self._serial.get(job.tenant, ())


def all_running(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs that run, at most one of each backend, in the order in which they began."""
    running = (job for job in jobs if job.state in SHOWN_RUNNING)
    first: dict[str | None, Job] = {}
    for job in sorted(running, key=lambda job: (job.live.is_overtaken, job.started_at or 0.0)):
        first.setdefault(job.backend, job)
    return sorted(first.values(), key=_turn)


def one_running(jobs: Iterable[Job], is_told: Callable[[Job], bool]) -> list[Job]:
    """Return the job that a tenant sees as running, if any: the one that began first of those not ended.

    A job of which a socket is told goes before the others. For that socket it has begun also while it waits to run
    again, because its backend was lost.

    Args:
        is_told: returns True if a socket that is told of one prompt at a time hears of a job.
    """
    begun = [job for job in jobs if job.live.turn is not None and (job.state in SHOWN_RUNNING or is_told(job))]
    return [min(begun, key=lambda job: (not is_told(job), _turn(job)))] if begun else []


def _turn(job: Job) -> tuple[int, int]:
    return job.live.turn or 0, job.start_time or 0
