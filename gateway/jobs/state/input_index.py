"""The files that open jobs name, counted as jobs come and go."""

from __future__ import annotations

from collections import Counter

from gateway.comfy.file_refs import FileRef
from gateway.jobs.state.job import Job


class InputIndex:
    """An index of the ledger's: a job is entered when it is accepted, and leaves when it is open no more."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, FileRef]] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def has(self, tenant: str, ref: FileRef) -> bool:
        """Whether an open job of a tenant's names a file."""
        return (tenant, ref) in self._counts

    def enter(self, job: Job) -> None:
        """It names its files from now on."""
        for ref in _refs(job):
            self._counts[job.tenant, ref] += 1

    def leave(self, job: Job) -> None:
        """It has ended, or was withdrawn."""
        for ref in _refs(job):
            self._counts[job.tenant, ref] -= 1
            if not self._counts[job.tenant, ref]:
                del self._counts[job.tenant, ref]


def _refs(job: Job) -> set[FileRef]:
    return {file.ref for file in job.submission.files if file.ref is not None}
