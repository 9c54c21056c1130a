"""Protocols of parts that have work at the steps of each job."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.comfy.file_refs import FileRef
from gateway.jobs.state.job import Job
from gateway.store.protocol import Change


def no_size(_: FileRef) -> int | None:
    """Return None: no size is known."""
    return None


@dataclass(frozen=True, slots=True)
class End:
    """End of a job.

    `outcome` is ``success``, ``error`` or ``cancelled``. `entry` is its history entry, with the names that its tenant
    knows, but with the backend's ids; None for a job that leaves none. `clean` puts the client's ids into bytes made of
    it. `size_of` returns the bytes of a file in it, None if they are unknown.
    """

    outcome: str
    entry: Mapping[str, Any] | None = None
    clean: Callable[[bytes], bytes] = bytes
    size_of: Callable[[FileRef], int | None] = no_size


def _ignore(_: object) -> None:
    return


class AtEnd(Protocol):
    """Work at the end of each job, however the job ends."""

    def changes(self, job: Job, end: End) -> Sequence[Change]:
        """Return changes for the journal, to be written together with a job's end."""

    def ended(self, job: Job) -> None:
        """Note that a job has ended, and that the journal has its end or will have it."""

    def undone(self, job: Job) -> Sequence[Change]:
        """Return changes that take those of `changes` back, because the job did not end so after all."""


class JobNews(Protocol):
    """Work at the steps of a job before its end. It is none of the job's business how that goes."""

    def queued(self, job: Job) -> None:
        """Note that a job is accepted, and that its client is told so."""

    def started(self, job: Job) -> None:
        """Note that a job runs. It may do so again after it was lost."""


class Forgets(Protocol):
    """Work when a tenant's ended jobs are deleted."""

    def forgotten(self, tenant: str, deleted: Collection[str], named: Collection[str] | None) -> Sequence[Change]:
        """Return changes for the journal, to be written together with the deletion.

        Args:
            deleted: the jobs whose history entries are deleted.
            named: the jobs that were named, also those without an entry; None for all of the tenant.
        """


class JobSteps:
    """The parts that have work at the steps of jobs.

    Attributes:
        at_end: those that have work at the end.
        forgets: those that have work when ended jobs are deleted.
        news: the one that has work at earlier steps; None if there is none.
        on_wait: called with a job that waits in the gateway from now on.
        on_leave: called with a job that waits no longer.
        on_backend: called with a backend's name when a job comes there, leaves, changes its state there, or stalls.
        expect: called with a job that is accepted, before anybody is told so.
        on_end: called with a job that has ended.
        arrived: called with the monotonic clock whenever a job is accepted.
    """

    def __init__(self) -> None:
        self.at_end: tuple[AtEnd, ...] = ()
        self.forgets: tuple[Forgets, ...] = ()
        self.news: JobNews | None = None
        self.on_wait: Callable[[Job], object] = _ignore
        self.on_leave: Callable[[Job], object] = _ignore
        self.on_backend: Callable[[str], object] = _ignore
        self.expect: Callable[[Job], object] = _ignore
        self.on_end: Callable[[Job], object] = _ignore
        self.arrived: Callable[[float], None] = lambda _: None

    def queued(self, job: Job) -> None:
        """Note that a job is accepted, and that its client is told so."""
        self.arrived(time.monotonic())
        self.expect(job)
        if self.news is not None:
            self.news.queued(job)

    def started(self, job: Job) -> None:
        """Note that a job runs."""
        if self.news is not None:
            self.news.started(job)

    def changes(self, job: Job, end: End) -> list[Change]:
        """Return changes for the journal, to be written together with a job's end."""
        return [change for part in self.at_end for change in part.changes(job, end)]

    def ended(self, job: Job) -> None:
        """Note that a job has ended."""
        for part in self.at_end:
            part.ended(job)
        self.on_end(job)

    def forgotten(self, tenant: str, deleted: Collection[str], named: Collection[str] | None) -> list[Change]:
        """Return changes for the journal, to be written together with the deletion of ended jobs."""
        return [change for part in self.forgets for change in part.forgotten(tenant, deleted, named)]

    def undone(self, job: Job) -> list[Change]:
        """Return changes that take those of `changes` back."""
        return [change for part in self.at_end for change in part.undone(job)]
