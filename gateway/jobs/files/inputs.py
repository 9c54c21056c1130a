"""Inputs: the files that a prompt names. May its tenant use them, and does its backend have them?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.catalogue.catalogue import Catalogue
from gateway.comfy.client import BackendError, BadAnswer, Refused, Unreachable
from gateway.comfy.file_refs import FileRef, is_pattern
from gateway.comfy.graph import FileInput, survey
from gateway.files.index import FileIndex, Holder, Upload
from gateway.files.placements import Placements, spelled_alike
from gateway.files.transfer import FileMissing, FileTransfer, SourceDown
from gateway.files.uploads import Uploads
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.files.outputs import Outputs
from gateway.jobs.isolation.upload_folders import UploadPlaces
from gateway.jobs.state.job import Job
from gateway.store.protocol import StoreError
from gateway.tenants.keys import FileVisibility
from gateway.tenants.policy import CALLER, Policies

# ComfyUI opens what these name without having looked whether it is there (nodes_painter.py, nodes_audio.py,
# nodes_load_3d.py): a prompt that waits would get what is uploaded under the name meanwhile.
_UNCHECKED = frozenset({("Painter", "mask"), ("RecordAudio", "audio"), ("Load3D", "image")})
# Maximum number of a refused job's files that are looked at. If a folder was emptied, its first file shows that.
MAX_LOOKS = 8
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

    def foreign(self, tenant: str, files: Collection[FileInput]) -> list[FileInput]:
        """Return the files of a prompt that its tenant must not name. Clients get the answer for a missing file."""
        visibility = self.visibility(tenant)
        if visibility is FileVisibility.ALL or not self.judged(tenant):
            return []
        # Look each folder up once, because a prompt may name one ten thousand times, and it may hold as many files.
        folders: dict[FileRef, bool] = {}
        return [file for file in files if self._is_foreign(tenant, file, visibility, folders)]

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
            Refused, Unreachable: the backend does not take files now.
            SourceDown, InputMissing: see there.
        """
        submission = job.submission
        changed: dict[GraphPath, str] = {}
        try:
            judged = self._is_judged(job, backend)
            if judged:
                await self._refuse_foreign(job, backend)
            classes = dict(submission.nodes) if submission.files or submission.separated else {}
            for file in submission.files:
                there = await self._there(job.tenant, file, classes[file.node_id], backend, judged)
                if there is not None and there != file.ref:
                    changed[file.node_id, file.input_name, *file.path] = file.renamed(there)
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
            if isinstance(found, Holder):
                if await self.transfer.is_lost_copy(found.backend, found.there, backend, since):
                    return True
            elif found is not None and file.ref is not None:
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
