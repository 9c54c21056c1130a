"""Delete an ended job for its owner: its history entry, the names of its files, and its uploads if wanted.

What is deleted is in the journal before the caller is answered. The entry goes last, because it tells the rest: if the
gateway ends before that, the same order again deletes what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from gateway.comfy.file_refs import FileRef
from gateway.comfy.history_files import EntryFiles
from gateway.files.identity import MAX_FILES
from gateway.files.index import FileIndex, Holder, Stored, Upload
from gateway.files.placements import Placements
from gateway.files.uploads import UploadInUse, Uploads
from gateway.fleet.fleet import Fleet
from gateway.jobs.admission.admission import Admission
from gateway.jobs.files.copies import copies_of
from gateway.jobs.isolation.upload_folders import UploadPlaces
from gateway.jobs.lifecycle.cancellation import Cancellation
from gateway.jobs.parsing.json_reader import JsonReader
from gateway.jobs.state.ledger import Ledger
from gateway.store.protocol import Change, FileRemoval, HistoryRecord, Store
from gateway.telemetry import logs

_log = logs.get("jobs")

# Names that are forgotten in one turn of the event loop.
AT_ONCE = 250


class NoSuchJob(Exception):
    """The caller has no job of this id."""


class JobOpen(Exception):
    """The job has not ended, so it can't be deleted."""


class FileInUse(Exception):
    """An open job names a file of the job as its input. The text is the file's name."""


@dataclass(frozen=True, slots=True)
class DeletedJob:
    """A deleted job: its tenant, the number of forgotten names, and the deleted uploads."""

    tenant: str
    files: int
    uploads: tuple[FileRef, ...]


@dataclass(frozen=True, slots=True)
class OwnerDeletion:
    """Deletion of ended jobs."""

    ledger: Ledger
    fleet: Fleet
    files: FileIndex
    placements: Placements
    uploads: Uploads
    store: Store
    reader: JsonReader
    admission: Admission
    cancellation: Cancellation
    places: UploadPlaces

    async def delete_job(self, tenant: str, prompt_id: str, *, sees_all: bool, with_uploads: bool) -> DeletedJob:
        """Delete a job of a tenant; with `sees_all` another tenant's job, if this tenant has none of the id.

        Args:
            with_uploads: True to delete the uploads that the job named, too, except those that an open job names.

        Raises:
            NoSuchJob, JobOpen, FileInUse: see there.
            NotRead: the entry can't be read at the moment.
            StoreError: the entry can't be read, or it is done, but a restart might bring it back.
        """
        ended = self._find(tenant, prompt_id, sees_all=sees_all)
        found = await self._files_of(ended)
        if self._find(tenant, prompt_id, sees_all=sees_all) is not ended:
            # Another request has deleted it meanwhile.
            raise NoSuchJob
        self._check_use(ended.tenant, found.made)
        uploads = await self._delete_uploads(ended.tenant, found.named) if with_uploads else ()
        count = await self._forget(ended.tenant, found.made)
        _log.info("job_deleted", prompt_id=prompt_id, tenant=ended.tenant, files=count, uploads=len(uploads))
        await self.cancellation.forget(ended.tenant, [prompt_id])
        return DeletedJob(ended.tenant, count, uploads)

    def _find(self, tenant: str, prompt_id: str, *, sees_all: bool) -> HistoryRecord:
        job, ended = self.ledger.find(tenant, prompt_id), self.ledger.history.find(tenant, prompt_id)
        if job is None and ended is None and sees_all:
            job, ended = self.ledger.find_any(prompt_id), self.ledger.history.find_any(prompt_id)
        if job is not None:
            raise JobOpen
        if ended is None:
            raise NoSuchJob
        return ended

    async def _files_of(self, ended: HistoryRecord) -> EntryFiles:
        async with self.ledger.history.reading(ended):
            entry = await self.ledger.history.entry(ended)
            if entry is None:
                raise NoSuchJob
            return await self.reader.files_of(ended.tenant, entry, self.admission.file_inputs, MAX_FILES)

    def _check_use(self, tenant: str, made: Collection[FileRef]) -> None:
        for ref in made:
            if self.ledger.named.has(tenant, ref) and isinstance(self.files.find(tenant, ref), (Holder, Stored)):
                raise FileInUse(ref.filename)

    async def _delete_uploads(self, tenant: str, named: Collection[FileRef]) -> tuple[FileRef, ...]:
        deleted = []
        for ref in named:
            found = self.files.find(tenant, ref)
            if isinstance(found, Upload):
                try:
                    if await self.uploads.delete(tenant, ref) is not None:
                        deleted.append(ref)
                except UploadInUse:
                    continue
            elif isinstance(found, Stored) and found.upload and not self.ledger.named.has(tenant, ref):
                # The gateway itself has the upload no more.
                self.files.drop_stored(tenant, ref)
                self.store.write([*self.files.deleted.add_upload(found.upload), *self.files.take_dropped()])
                deleted.append(ref)
        return tuple(deleted)

    async def _forget(self, tenant: str, made: Collection[FileRef]) -> int:
        """Forget names, and remember their files as deleted. Return how many there were."""
        count, refs = 0, list(made)
        for start in range(0, len(refs), AT_ONCE):
            if start:
                await asyncio.sleep(0)
            changes: list[Change] = []
            for ref in refs[start : start + AT_ONCE]:
                match self.files.find(tenant, ref):
                    case Holder() as holder:
                        changes += self._forgotten(tenant, ref, holder)
                        count += 1
                    case Stored() as stored:
                        self.files.drop_stored(tenant, ref)
                        changes += self._hide_copies(tenant, ref, stored)
                        count += 1
            self.store.write([*changes, *self.files.take_dropped()])
        return count

    def _forgotten(self, tenant: str, ref: FileRef, holder: Holder) -> list[Change]:
        changes: list[Change] = [FileRemoval(tenant, ref.kind, ref.subfolder, ref.filename)]
        changes += self.files.delete(tenant, holder)
        return changes + self._hide_copies(tenant, ref, holder)

    def _hide_copies(self, tenant: str, ref: FileRef, place: Holder | Stored) -> list[Change]:
        """Remember that copies of a file are deleted, too. Other backends may have some, because prompts read the file.

        If an earlier copy has the name, this one has a number.
        """
        changes: list[Change] = []
        for backend in self.fleet.backends:
            for copy in copies_of(tenant, ref, place, backend, self.places):
                for digest in self.placements.digests_of(backend, copy):
                    changes += self.files.deleted.add_upload(digest)
        return changes
