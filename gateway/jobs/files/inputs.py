"""Inputs: the files that a prompt names. May its tenant use them, and does its backend have them?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.catalogue.catalogue import Catalogue
from gateway.comfy.client import BackendError, BadAnswer, Refused, Unreachable
from gateway.comfy.file_refs import FileRef, is_pattern, leads_to
from gateway.comfy.graph import FileInput, survey
from gateway.files.identity import UNTOLD, Fresh, Known, has
from gateway.files.index import FileIndex, Holder, Stored, Upload
from gateway.files.placements import Placements, spelled_alike
from gateway.files.transfer import FileMissing, FileTransfer, ReadStored, SourceDown, StoreDown
from gateway.files.uploads import Uploads
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.files.outputs import Outputs
from gateway.jobs.isolation.upload_folders import UploadPlaces
from gateway.jobs.state.job import Job
from gateway.store.protocol import StoreError
from gateway.telemetry import logs
from gateway.tenants.keys import FileVisibility
from gateway.tenants.policy import CALLER, Policies

_log = logs.get("files")

# ComfyUI opens what these name without having looked whether it is there (nodes_painter.py, nodes_audio.py,
# nodes_load_3d.py): a prompt that waits would get what is uploaded under the name meanwhile.
_UNCHECKED = frozenset({("Painter", "mask"), ("RecordAudio", "audio"), ("Load3D", "image")})
# Maximum number of a refused job's files that are looked at. If a folder was emptied, its first file shows that.
MAX_LOOKS = 8
# Maximum number of different paths in a prompt that lead out of their folder, if owners have deleted files.
MAX_LEADING = 100
# Maximum characters of these: those that Unicode folds slowest take 1.5 ms a KiB.
MAX_LEADING_CHARACTERS = 32_768
# Seconds after which a job is offered again if object storage can't give a file that it names.
STORE_PAUSE_SECONDS = 5.0
# Path of a text in a graph: the node's id, the input's name, then the path inside the input.
GraphPath = tuple[str | int, ...]


class InputMissing(Exception):
    """Loss of a file that a prompt needs: no backend has it. The text says which file, and why."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Input files of prompts.

    Args:
        visibility: returns the visibility of files for a tenant.
        judged: returns True for a tenant that shares backends with strangers.
        is_reviewed: returns True for a class whose file inputs take any name below a folder.
        read_stored: returns the bytes of a file in object storage; None if there is no such storage.
    """

    fleet: Fleet
    files: FileIndex
    outputs: Outputs
    placements: Placements
    transfer: FileTransfer
    uploads: Uploads
    catalogue: Catalogue
    policies: Policies
    visibility: Callable[[str], FileVisibility]
    judged: Callable[[str], bool]
    places: UploadPlaces
    is_reviewed: Callable[[str], bool]
    read_stored: ReadStored | None = None

    def foreign(self, tenant: str, files: Collection[FileInput]) -> list[FileInput]:
        """Return the files of a prompt that its tenant must not name. Clients get the answer for a missing file."""
        visibility = self.visibility(tenant)
        if visibility is FileVisibility.ALL or not self.judged(tenant):
            return []
        # Look each folder up once, because a prompt may name one ten thousand times, and it may hold as many files.
        folders: dict[FileRef, bool] = {}
        return [file for file in files if self._is_foreign(tenant, file, visibility, folders)]

    def deleted(self, tenant: str, files: Collection[FileInput]) -> list[FileInput]:
        """Return the files of a prompt that their owner deleted, and that a backend may have still.

        Past `MAX_LEADING` paths that lead out of their folder, or `MAX_LEADING_CHARACTERS` of them, all others count,
        because each takes long to look up.
        """
        if not len(self.files.deleted):
            return []
        leading: dict[str, bool] = {}
        return [file for file in files if self._is_deleted(tenant, file, leading, MAX_LEADING)]

    def _is_deleted(self, tenant: str, file: FileInput, leading: dict[str, bool], maximum: int | None = None) -> bool:
        """Return True if an owner deleted a file that is named.

        Args:
            leading: the answers for paths that lead out of their folder, so that each is looked up once.
            maximum: number of such paths that are looked up; True for all others.
        """
        if file.linked or file.folder or not (file.declared or file.annotated):
            return False
        if file.ref is not None:
            return self.files.find(tenant, file.ref) is None and self.is_hidden(file.ref)
        if file.value not in leading:
            if maximum is not None and (
                len(leading) >= maximum or sum(map(len, leading)) + len(file.value) > MAX_LEADING_CHARACTERS
            ):
                return True
            named = (ref for ref in leads_to(file.value) if self.files.find(tenant, ref) is None)
            leading[file.value] = any(map(self.is_hidden, named))
        return leading[file.value]

    def is_hidden(self, ref: FileRef) -> bool:
        """Return True if a backend may have a deleted file under a name."""
        deleted, digest_at = self.files.deleted, self.placements.digest_at
        if not len(deleted):
            return False
        # Ask once for all backends, because a prompt may name ten thousand files.
        having = deleted.backends_with(ref)
        digests = ((name, digest_at(name, ref)) for name in self.fleet.backends)
        return any(name in having or (digest is not None and deleted.has_upload(digest)) for name, digest in digests)

    def unproven(self, tenant: str, files: Collection[FileInput]) -> set[str]:
        """Return the names of files that are not known to be the tenant's own, whether they exist or not."""
        named = (file for file in files if file.declared or file.annotated)
        return {file.value for file in named if file.ref is None or self.files.find(tenant, file.ref) is None}

    def too_small(self, tenant: str, files: Collection[FileInput]) -> frozenset[str]:
        """Return the backends whose maximum upload size is less than the largest upload among a prompt's files."""
        found = (self.files.find(tenant, file.ref) for file in files if file.ref is not None)
        size = max((each.size for each in found if isinstance(each, Upload)), default=0)
        limits = {name: backend.features.get("max_upload_size") for name, backend in self.fleet.backends.items()}
        return frozenset(name for name, limit in limits.items() if size and limit is not None and limit < size)

    def sees_all(self, tenant: str) -> bool:
        """Return True if a tenant may name all files."""
        return self.visibility(tenant) is FileVisibility.ALL

    def offers_foreign(self, tenant: str, class_type: str, input_name: str, choices: Iterable[Any]) -> bool:
        """Return True if an input's choices hold a file, or a folder with files, that its tenant must not name."""
        named = ((node_id, name) for node_id, name in enumerate(choices) if isinstance(name, str) and name)
        files = survey(
            {str(node_id): {"class_type": class_type, "inputs": {input_name: name}} for node_id, name in named},
            {(class_type, input_name)},
        ).files
        return bool(self.foreign(tenant, files))

    def _is_foreign(
        self, tenant: str, file: FileInput, visibility: FileVisibility, folders: dict[FileRef, bool]
    ) -> bool:
        ref = file.ref
        if ref is None:
            # If the name leads out of its folder, is no text or is a link, the file that it opens is unknown.
            return file.declared or file.annotated
        if file.folder:
            if not ref.subfolder or is_pattern(ref):
                # Refuse the root folder, because all tenants' files lie there.
                return True
            folder = spelled_alike(ref)
            if folder not in folders:
                below = self.placements.below(folder)
                folders[folder] = self.files.is_others_upload(tenant, folder) or any(
                    self.files.find(tenant, each) is None for each in below
                )
            return folders[folder]
        if self.files.find(tenant, ref) is not None:
            return False
        if file.declared and is_pattern(ref):
            return True
        if self.placements.is_name(ref) or self.files.is_others_upload(tenant, ref):
            return True
        return self._is_others(tenant, ref) if visibility is FileVisibility.UNCLAIMED else ref.kind != "input"

    def _is_others(self, tenant: str, ref: FileRef) -> bool:
        """Return True if another tenant has a file of this name, or if a backend has another's file under it."""
        return self.files.find_any(ref) is not None or any(
            self.files.is_others(tenant, backend, ref) for backend in self.fleet.backends
        )

    async def prepare(self, job: Job, backend: Backend) -> Mapping[GraphPath, str]:
        """Put a job's files on a backend, as far as they are not there.

        Return the texts in the graph that must change for this backend, by their paths.

        Raises:
            Refused, Unreachable: the backend does not take files now, or object storage does not give them.
            SourceDown, InputMissing: see there.
        """
        submission = job.submission
        changed: dict[GraphPath, str] = {}
        try:
            judged = self._is_judged(job, backend)
            if judged:
                await self._refuse_foreign(job, backend)
            classes = dict(submission.nodes) if submission.files or submission.separated else {}
            leading: dict[str, bool] = {}
            for file in submission.files:
                if len(self.files.deleted) and self._is_deleted(job.tenant, file, leading):
                    raise FileMissing(f"Invalid file: {file.value}")
                if file.ref is None:
                    # Let others run, because a look for such a path takes long.
                    await asyncio.sleep(0)
                there = await self._there(job.tenant, file, classes[file.node_id], backend, judged)
                if there is not None and there != file.ref:
                    changed[file.node_id, file.input_name, *file.path] = file.renamed(there)
        except StoreDown as error:
            _hold_back(job, error)
            raise
        except (Refused, Unreachable):
            raise
        except BadAnswer as error:
            if error.status >= 500:
                raise Unreachable(str(error)) from error
            raise InputMissing(str(error)) from error
        except BackendError as error:
            # Treat any other error as unreachable, because the prompt was not sent yet.
            raise Unreachable(str(error)) from error
        except (FileMissing, StoreError) as error:
            raise InputMissing(str(error)) from error
        for node_id, name, value in submission.separated:
            spelled = self.catalogue.spelled(backend.name, classes[node_id], name, value)
            if spelled != value:
                changed[node_id, name] = spelled
        return changed

    async def _refuse_foreign(self, job: Job, backend: Backend) -> None:
        """Refuse a job that names another tenant's file, or a missing file that may become another's.

        An existing file keeps its name, because ComfyUI gives a new upload another one.

        Raises:
            FileMissing: the job names such a file.
            BackendError: the backend did not answer.
        """
        classes = dict(job.submission.nodes)
        for file in job.submission.files:
            if not file.declared or (classes[file.node_id], file.input_name) not in _UNCHECKED:
                continue
            if file.ref is None or self.files.find(job.tenant, file.ref) is not None:
                continue
            if not await self.transfer.has(backend, file.ref):
                raise FileMissing(f"Invalid file: {file.value}")
        # Check after the backend was asked, because an upload may have come meanwhile.
        for file in self.foreign(job.tenant, job.submission.files):
            raise FileMissing(f"Invalid file: {file.value}")

    def _is_judged(self, job: Job, backend: Backend) -> bool:
        """Return True if a job names files, and may not name all files on a backend.

        An admin's job may name all files, and so may any job on a backend that is dedicated to its tenant.
        """
        if not job.submission.files or not self.judged(job.tenant):
            return False
        return not job.submission.by_admin and backend.name not in self.policies.of(job.tenant).dedicated

    async def _there(
        self, tenant: str, file: FileInput, class_type: str, backend: Backend, judged: bool
    ) -> FileRef | None:
        """Return a file's name on the backend, and put the file there; None to leave the text as it is."""
        ref = file.ref
        found = self.files.find(tenant, ref) if ref is not None else None
        match found:
            case Upload():
                assert ref is not None
                place = self._place_of(tenant, file, ref, class_type, backend)
                if place is None:
                    return None
                self.uploads.use(found.digest)
                return await self.transfer.ensure(backend, place, found, shown=ref.filename, judged=judged)
            case Holder(stored=Stored() as stored):
                return await self._from_store(tenant, file, stored, found, backend, judged)
            case Stored() as stored:
                return await self._from_store(tenant, file, stored, None, backend, judged)
            case Holder():
                return await self._from_owner(tenant, found, backend, judged)
        # Look for a file only if the input is one, because a text that ends like a file's name is most likely a text.
        may_look = (file.declared or file.annotated) and self.visibility(tenant) is not FileVisibility.OWN
        return await self._unknown(tenant, ref, backend) if may_look and ref is not None else None

    def _place_of(
        self, tenant: str, file: FileInput, ref: FileRef, class_type: str, backend: Backend
    ) -> FileRef | None:
        """Return the name that an upload is to have on a backend; None to leave the text as it is."""
        is_reviewed = self.is_reviewed(class_type)
        place = self.places.of(tenant, ref, backend.name, in_root=not is_reviewed)
        # If a reviewed class does not declare the input as a file, keep the text, because it may be no file's name.
        return None if place != ref and is_reviewed and not file.declared else place

    async def are_lost(self, job: Job, backend: Backend, nodes: Collection[str]) -> bool:
        """Return True if a backend has lost a file that the gateway put there for one of these nodes of a job.

        If so, the job's files are checked before the next offer. Other files of the backend are not looked at.
        """
        judged, classes = self._is_judged(job, backend), dict(job.submission.nodes)
        since = job.assignment.made_at if job.assignment is not None else 0.0
        named = [file for file in job.submission.files if file.node_id in nodes and not file.linked]
        for file in named[:MAX_LOOKS]:
            found = self.files.find(job.tenant, file.ref) if file.ref is not None else None
            if isinstance(found, Holder) and await self.transfer.is_lost_copy(
                found.backend, found.there, backend, since
            ):
                return True
            stored = found.stored if isinstance(found, Holder) else found
            if isinstance(stored, Stored):
                if await self.transfer.is_lost_stored(stored, backend, since):
                    return True
            elif isinstance(found, Upload) and file.ref is not None:
                place = self._place_of(job.tenant, file, file.ref, classes[file.node_id], backend)
                if place is not None and await self.transfer.is_lost(backend, place, found, since, judged=judged):
                    return True
        return False

    async def _from_owner(self, tenant: str, holder: Holder, backend: Backend, judged: bool) -> FileRef:
        owner, ref = holder.backend, holder.there
        if owner == backend.name and self.visibility(tenant) is FileVisibility.ALL:
            return ref
        # Copy the file even on its own backend, because another's file may get its name while the prompt is pending.
        allowed = self.policies.of(tenant).allowed
        if allowed is not None and owner not in allowed:
            raise FileMissing(f"'{ref.filename}' is on a backend that is not for {CALLER} any more; upload it again")
        source = self.fleet.backends.get(owner)
        if source is None:
            raise FileMissing(f"the backend '{owner}' that has it is not configured any more")
        if not source.pulse.alive:
            raise SourceDown(owner)
        return await self.transfer.copy(source, ref, backend, self.outputs.expected(tenant, ref, holder), judged=judged)

    async def copy_stored(
        self, tenant: str, ref: FileRef, stored: Stored, backend: Backend, *, judged: bool = False
    ) -> FileRef:
        """Put a tenant's stored file on a backend, and return its name there. `ref` is the tenant's name for it.

        Raises:
            BackendError, FileMissing, StoreDown, StoreError: as `FileTransfer.copy_stored`.
        """
        if self.read_stored is None:
            raise FileMissing(f"'{ref.filename}' is in object storage, which is not configured any more")
        place = self.places.of(tenant, ref, backend.name)
        return await self.transfer.copy_stored(
            stored, place, backend, self.read_stored, shown=ref.filename, judged=judged
        )

    async def _from_store(
        self, tenant: str, file: FileInput, stored: Stored, holder: Holder | None, backend: Backend, judged: bool
    ) -> FileRef:
        """Put a stored file on a backend. If object storage can't give it, the backend that wrote it may."""
        ref = file.ref
        assert ref is not None
        known = UNTOLD if holder is None else identity_there(holder, stored)
        sees_all = self.visibility(tenant) is FileVisibility.ALL
        if (
            holder is not None
            and holder.backend == backend.name
            and sees_all
            and not self.placements.is_leaving(backend.name, holder.there, time.monotonic())
            and await has(backend, holder.there, known)
        ):
            return holder.there
        try:
            return await self.copy_stored(tenant, ref, stored, backend, judged=judged)
        except (StoreDown, FileMissing):
            allowed = self.policies.of(tenant).allowed
            source = self.fleet.backends.get(holder.backend) if holder is not None else None
            if holder is None or source is None or not source.pulse.alive:
                raise
            if allowed is not None and source.name not in allowed:
                raise
        return await self.transfer.copy(source, holder.there, backend, known, judged=judged)

    async def _unknown(self, tenant: str, ref: FileRef, backend: Backend) -> FileRef | None:
        """Find a file that the gateway does not know, and copy it to a backend. Return its name there; None to keep it.

        Somebody put such a file on a backend by hand, or an earlier gateway did.
        """
        if await self.transfer.has(backend, ref):
            return None
        other = await self.transfer.holder_of(ref, backend, allowed=self.policies.of(tenant).allowed)
        return await self.transfer.copy(other, ref, backend) if other is not None else None

    async def absent(self, tenant: str, files: Collection[FileInput]) -> list[FileInput]:
        """Return the inputs declared as files that name a missing file."""
        named = [file for file in files if file.declared and not file.linked]
        return [file for file in named if not await self._exists(tenant, file.ref)]

    async def _exists(self, tenant: str, ref: FileRef | None) -> bool:
        if ref is None:
            return False
        if self.files.find(tenant, ref) is not None:
            return True
        if self.is_hidden(ref):
            return False
        alive = self.fleet.alive(self.policies.of(tenant).allowed)
        for backend in alive:
            try:
                if await self.transfer.has(backend, ref):
                    return True
            except BackendError:
                # If a backend does not answer, don't refuse here: the backend that runs the prompt will check.
                return True
        return not alive

    def holders(self, tenant: str, files: Collection[FileInput]) -> frozenset[str]:
        """Return the backends that have an output among these files already."""
        found = (self.files.find(tenant, file.ref) for file in files if file.ref is not None)
        return frozenset(holder.backend for holder in found if isinstance(holder, Holder))


def identity_there(holder: Holder, stored: Stored) -> Known:
    """Return the identity of a stored file on the backend that wrote it.

    If its ETag is unknown, the time of its last change decides: another file of its name is newer than the copy.
    """
    return holder.etag or Fresh(until=stored.stored_at / 1000)


def _hold_back(job: Job, error: StoreDown) -> None:
    """Let a job wait for object storage. Log the first of several attempts in a row."""
    now = time.monotonic()
    if job.not_before < now - 2 * STORE_PAUSE_SECONDS:
        _log.warning("stored_input_unreachable", **job.log_ids, error=str(error))
    job.not_before = now + STORE_PAUSE_SECONDS
