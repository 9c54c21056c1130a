"""Index of the files that open jobs name."""

from __future__ import annotations

from collections import Counter

from gateway.comfy.file_refs import FileRef
from gateway.jobs.state.job import Job


class InputIndex:
    """Index of the ledger's open jobs by the files that they name. A job leaves when it ends or is withdrawn."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, FileRef]] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def has(self, tenant: str, ref: FileRef) -> bool:
        """Return True if an open job of a tenant names a file."""
        return (tenant, ref) in self._counts

    def enter(self, job: Job) -> None:
        """Count the files that a job names, because the job is open now."""
        for ref in _refs(job):
            self._counts[job.tenant, ref] += 1

    def leave(self, job: Job) -> None:
        """Uncount the files that a job names, because it ended or was withdrawn."""
        for ref in _refs(job):
            self._counts[job.tenant, ref] -= 1
            if not self._counts[job.tenant, ref]:
                del self._counts[job.tenant, ref]


def _refs(job: Job) -> set[FileRef]:
    return {file.ref for file in job.submission.files if file.ref is not None}
