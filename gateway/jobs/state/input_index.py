"""Index of the files that open jobs name."""

from __future__ import annotations

from collections import Counter

from gateway.comfy.file_refs import FileRef
from gateway.jobs.state.job import Job


class InputIndex:
    """Index of the ledger's open jobs by the files that they name. A job leaves when it ends or is withdrawn."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, FileRef]] = Counter()
        # The same of all tenants together. A folder is a file without a name.
        self._of_all: Counter[FileRef] = Counter()
        # Jobs that name a path which leads out of its folder, so that it may open any file.
        self._leading = 0

    def __len__(self) -> int:
        return len(self._counts)

    def has(self, tenant: str, ref: FileRef) -> bool:
        """Return True if an open job of a tenant names a file."""
        return (tenant, ref) in self._counts

    def may_open(self, ref: FileRef) -> bool:
        """Return True if an open job of any tenant names a file, a folder that it lies in, or a path to any folder."""
        if self._leading or ref in self._of_all:
            return True
        folder = ref.subfolder
        while folder:
            if FileRef(ref.kind, folder, "") in self._of_all:
                return True
            folder = folder.rpartition("/")[0]
        return FileRef(ref.kind, "", "") in self._of_all

    def enter(self, job: Job) -> None:
        """Count the files that a job names, because the job is open now."""
        self._leading += _leads_out(job)
        for ref in _refs(job):
            self._counts[job.tenant, ref] += 1
            self._of_all[ref] += 1

    def leave(self, job: Job) -> None:
        """Uncount the files that a job names, because it ended or was withdrawn."""
        self._leading -= _leads_out(job)
        for ref in _refs(job):
            self._counts[job.tenant, ref] -= 1
            if not self._counts[job.tenant, ref]:
                del self._counts[job.tenant, ref]
            self._of_all[ref] -= 1
            if not self._of_all[ref]:
                del self._of_all[ref]


def _refs(job: Job) -> set[FileRef]:
    return {file.ref for file in job.submission.files if file.ref is not None}


def _leads_out(job: Job) -> bool:
    """Return True if a job names a path that leads out of its folder. Nobody knows yet what a linked input names."""
    files = job.submission.files
    return any(file.ref is None and not file.linked and (file.declared or file.annotated) for file in files)
