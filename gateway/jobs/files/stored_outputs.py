"""The copies of a job's files in object storage: they are planned at the job's end, in the same commit.

With `storage.when: before` the end waits for them, but not for long: then what is left is made after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.artifacts.keys import job_folder
from gateway.artifacts.model import Copy
from gateway.artifacts.service import Artifacts
from gateway.comfy.file_refs import FileRef
from gateway.files.identity import GONE
from gateway.files.index import FileIndex, Holder, Upload
from gateway.jobs.files.entry_files import file_steps
from gateway.jobs.files.result_names import saver_of
from gateway.jobs.state.history import History
from gateway.jobs.state.job import Job
from gateway.jobs.state.job_end import End
from gateway.settings.storage import StorageSettings
from gateway.store.artifact_records import ArtifactRecord
from gateway.store.protocol import Change, Store
from gateway.telemetry.tasks import in_turns

# Rows in the commit of a job's end. More are written before it, because a long commit delays the prompts that share it.
ROWS_AT_ONCE = 250


class StoredOutputs:
    """A part of the ledger (`job_end.py`)."""

    def __init__(self, settings: StorageSettings, files: FileIndex, artifacts: Artifacts, journal: Store) -> None:
        self._settings = settings
        self._files = files
        self._artifacts = artifacts
        self._journal = journal
        # The copies of jobs that end, those first that are planned for them.
        self._ending: dict[Job, list[Copy]] = {}

    @property
    def is_before(self) -> bool:
        """Return True if a job's end waits for its copies."""
        return self._settings.when == "before"

    async def plan(self, job: Job, backend: str, entry: Mapping[str, Any]) -> Sequence[Copy]:
        """Plan the copies of the files in a history entry, which has the names that the job's tenant knows.

        With `storage.when: before` begin to make them. Return those that the end is to `wait` for.
        """
        copies, others = await in_turns(self._planning(job, backend, entry.get("outputs")))
        if copies:
            self._ending[job] = copies
        if not self.is_before:
            return ()
        for start in range(0, len(copies), ROWS_AT_ONCE):
            self._artifacts.submit(copies[start : start + ROWS_AT_ONCE], urgent=True)
            await asyncio.sleep(0)
        self._artifacts.hurry(others)
        return [*copies, *others]

    def _planning(self, job: Job, backend: str, outputs: Any) -> Generator[None, None, tuple[list[Copy], list[Copy]]]:
        """Plan in short steps. Return the new copies, and those that other jobs planned."""
        folder = job_folder()
        copies, others, seen = list[Copy](), list[Copy](), set[FileRef]()

        def add(ref: FileRef, file: Holder | Upload, node_id: str = "") -> None:
            if (under_way := self._artifacts.under_way(job.tenant, ref, file)) is not None:
                others.append(under_way)
            elif (copy := self._artifacts.plan(job.tenant, ref, file, job.prompt_id, folder)) is not None:
                copy.record = replace(copy.record, saver=saver_of(job, node_id) if node_id else "")
                copies.append(copy)

        def note(ref: FileRef, _: bool, node_id: str) -> FileRef:
            if ref.kind not in self._settings.kinds or ref in seen:
                return ref
            seen.add(ref)
            place = self._files.find(job.tenant, ref)
            if not isinstance(place, Holder) or place.backend != backend or place.stored is not None:
                return ref
            if not place.is_known or place.etag == GONE:
                return ref
            add(ref, place, node_id)
            return ref

        yield from file_steps(outputs, note)
        if "uploads" in self._settings.kinds:
            for ref in {file.ref: None for file in job.submission.files if file.ref is not None}:
                place = self._files.find(job.tenant, ref)
                if isinstance(place, Upload) and place.stored is None:
                    add(ref, place)
                yield
        return copies, others

    async def wait(self, copies: Sequence[Copy]) -> None:
        """Wait for copies, for `storage.max_wait` at most."""
        await self._artifacts.wait(copies, self._settings.max_wait)

    async def write_most(self, job: Job) -> None:
        """Write the rows that the commit of a job's end has no room for."""
        copies = self._ending.get(job, ())
        for start in range(ROWS_AT_ONCE, len(copies), ROWS_AT_ONCE):
            self._journal.write(self._artifacts.rows(copies[start : start + ROWS_AT_ONCE]))
            await asyncio.sleep(0)

    def changes(self, job: Job, end: End) -> Sequence[ArtifactRecord]:  # noqa: ARG002
        """Return the rows of a job's copies, to be written together with its end."""
        copies = self._ending.get(job)
        return self._artifacts.rows(copies[:ROWS_AT_ONCE]) if copies else ()

    def ended(self, job: Job) -> None:
        """Let names lead to what is copied, and copy the rest from now on."""
        copies = self._ending.pop(job, None)
        if copies:
            self._go_on(copies[:ROWS_AT_ONCE])
        if copies and len(copies) > ROWS_AT_ONCE:
            self._artifacts.later(self._go_on_slowly(copies[ROWS_AT_ONCE:]), job.prompt_id)

    def _go_on(self, copies: Sequence[Copy]) -> None:
        if self.is_before:
            self._artifacts.settle(copies)
        else:
            self._artifacts.submit(copies)

    async def _go_on_slowly(self, copies: Sequence[Copy]) -> None:
        """Do the same for many copies, in short steps."""
        for start in range(0, len(copies), ROWS_AT_ONCE):
            await asyncio.sleep(0)
            self._go_on(copies[start : start + ROWS_AT_ONCE])

    def undone(self, job: Job) -> Sequence[Change]:
        """Return nothing: the rows stay, because the files are the tenant's, however the job ends."""
        self.ended(job)
        return ()

    def release(self, job: Job) -> None:
        """Write the rows of a job that did not end, and go on with its copies."""
        copies = self._ending.get(job)
        if copies:
            for start in range(0, len(copies), ROWS_AT_ONCE):
                self._journal.write(self._artifacts.rows(copies[start : start + ROWS_AT_ONCE]))
            self.ended(job)


def delete_with_history(artifacts: Artifacts, history: History, has_open: Callable[[str, str], bool]) -> None:
    """Delete the copies of jobs that leave the history, or left it, if `storage.delete_with_history` says so.

    Args:
        has_open: returns True if a tenant has an open job of an id.
    """
    history.on_removed = artifacts.forget_job
    for tenant, prompt_id in artifacts.jobs_with_copies():
        if history.find(tenant, prompt_id) is None and not has_open(tenant, prompt_id):
            artifacts.forget_job(tenant, prompt_id)
