"""Outputs: files that a job wrote get the names that its tenant sees, and belong to the tenant from then on.

A name on a backend may come to mean another's file, because its folder was emptied and its counter starts again. So a
job that writes a file takes the name from other tenants. Once a job is over, its files are also known by their ETags:
see `gateway.files.identity`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any

from gateway.comfy import events, json_codec
from gateway.comfy.client import Answer
from gateway.comfy.file_refs import MAX_PATH, FileRef, can_be_asked_for, finished
from gateway.files import identity
from gateway.files.index import FileIndex, Holder, Origin, Stored, Upload
from gateway.files.placements import Placement, Placements
from gateway.fleet.backend import Backend
from gateway.jobs.files.copies import copies_of
from gateway.jobs.files.entry_files import cached_nodes, file_steps, origin_of, time_of
from gateway.jobs.files.ownership import is_theirs, is_unproven
from gateway.jobs.files.result_names import ResultNames
from gateway.jobs.files.wanted_names import wanted_name
from gateway.jobs.isolation.added_nodes import without_added
from gateway.jobs.isolation.reveal_names import STEP, reveal_bytes, reveal_json, revealing_json, revealing_value
from gateway.jobs.isolation.secret_folders import UNCHANGED, Steering
from gateway.jobs.isolation.upload_folders import UploadPlaces, path_of, secret_of
from gateway.jobs.isolation.visible_names import is_steered, secret_folder, visible_name
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import State
from gateway.store.protocol import DeletedRemoval, FileRecord, FileRemoval, Store
from gateway.telemetry import logs
from gateway.telemetry.tasks import in_turns
from gateway.tenants.keys import LOCAL_TENANT, FileVisibility
from gateway.tenants.secret_names import holds_secret

_log = logs.get("files")
OLDER_HINT = "are the clocks of this backend and of the disk that it writes to right?"

# A secret folder makes a path this much longer than the path that the tenant sees.
SECRET_LENGTH = len("o//f/") + 32
# Maximum number of tenants whose uploads are indexed by their secret folders, the last used ones.
MAX_TENANTS = 16
# Files that are written to the journal at a time.
FILES_AT_ONCE = 250
# Maximum number of files of an ``executed`` event that get new names. The history entry has new names for all.
MAX_EVENT_FILES = 1_000
# Changes for the journal.
Fresh = list[FileRecord | FileRemoval | DeletedRemoval]
_AT_WORK = (State.RUNNING, State.COLLECTING)


class Outputs:
    """Output files of jobs on backends.

    Args:
        visibility: returns the visibility of files for a tenant.
        steering: returns the changes by which a job's savers write into secret folders on a backend.
        maximum: maximum number of jobs' files to remember, of all tenants together.
        are_stored: True if files are copied to object storage, so that each must be known by its ETag.

    Attributes:
        results: the names of results that ComfyUI may repeat from its cache.
    """

    def __init__(
        self,
        files: FileIndex,
        placements: Placements,
        store: Store,
        ledger: Ledger,
        visibility: Callable[[str], FileVisibility],
        places: UploadPlaces,
        steering: Callable[[Job, str], Steering | None],
        maximum: int,
        *,
        are_stored: bool = False,
    ) -> None:
        self._files = files
        self._are_stored = are_stored
        self.results = ResultNames(files, are_stored)
        self._placements = placements
        self._store = store
        self._ledger = ledger
        self._visibility = visibility
        self._places = places
        self._steering = steering
        self._by_secret: dict[str, tuple[int, Mapping[str, FileRef]]] = {}
        self._maximum = maximum

    def expected(self, tenant: str, ref: FileRef, holder: Holder) -> identity.Known:
        """Return the identity of a tenant's file that its backend calls `ref`.

        Until its job is over, the identity is the file that this job wrote: no other tenant's job ran there meanwhile,
        except one that began later.
        """
        if holder.etag is not None and holder.is_known:
            # Whoever may see all files sees what is there, with object storage as without.
            sees_all = self._are_stored and self._visibility(tenant) is FileVisibility.ALL
            return identity.UNTOLD if sees_all else holder.etag
        at_work = [job for job in self._ledger.jobs_on(holder.backend) if job.state in _AT_WORK]
        own = [job for job in at_work if job.tenant == tenant]
        others = self._files.others(tenant, holder.backend, ref) if ref.kind != "input" else {}
        if not own or any(job.tenant in others and others[job.tenant] is None for job in at_work):
            # If no own job is at work, or another's unfinished job may have written the file, the file counts as gone.
            return identity.GONE
        is_new = holder.etag is None and ref.kind != "input"
        is_over = all(job.state is State.COLLECTING for job in own)
        began = [_began(job) for job in at_work if job.tenant != tenant and job.state is State.RUNNING]
        deleted = self._files.deleted.find(holder.backend, ref)
        besides = {*others.values(), deleted.etag if deleted is not None and is_new else None}
        return identity.Fresh(
            min(_began(job) for job in own) if is_new else None,
            min(began) if began and is_over else None,
            frozenset(etag for etag in besides if etag) - {identity.GONE, identity.CACHED, holder.before},
            holder.before,
        )

    def written_since(self, tenant: str, backend: str) -> float | None:
        """Return the time since which files written on a backend may be hidden from a tenant: seconds since 1970 there.

        Return None if no other tenant's job is at work there whose files are visible to its own tenant alone.
        """
        others = [
            _began(job)
            for job in self._ledger.jobs_on(backend)
            if _is_at_work_for_another(job, tenant) and self._visibility(job.tenant) is FileVisibility.OWN
        ]
        return min(others) if others else None

    async def learn(
        self, job: Job, backend: Backend, entry: Mapping[str, Any], *, must: bool
    ) -> Mapping[FileRef, identity.Found]:
        """Return the identities of a history entry's files, except earlier jobs' files whose identity is known already.

        If the backend does not answer about a file, raise the error if `must`. Else leave the file out: it is not shown
        once the job is over.

        Raises:
            BackendError: the backend did not answer.
        """
        if (sees_all := self._visibility(job.tenant) is FileVisibility.ALL) and not self._are_stored:
            return {}
        # Each file, with True if the job says that it wrote the file.
        wanted: dict[FileRef, bool] = {}
        cached, status = cached_nodes(entry.get("status")), entry.get("status")

        def note(ref: FileRef, is_made: bool, node_id: str) -> FileRef:
            held, is_new = self._files.held(job.tenant, backend.name, ref), node_id not in cached
            is_wanted = (is_made and is_new) or held is None or not held.is_known
            if is_wanted and self._is_one(ref) and not self._is_strange(job, backend.name, ref):
                wanted[ref] = wanted.get(ref, True) and is_new and ref.kind != "input"
            return ref

        def judge(ref: FileRef, answer: Answer) -> identity.Found:
            if sees_all:
                return identity.Found(identity.told_by(answer.headers) if answer.status == 200 else "", is_new=True)
            held = self._files.held(job.tenant, backend.name, ref)
            before = identity.UNTOLD if held is None else (held.before or held.etag or identity.UNTOLD)
            return identity.examine(answer, times, wrote=wanted[ref], before=before, read=read)

        await in_turns(file_steps(entry.get("outputs"), note))
        if not wanted:
            return {}
        times, read = self._times(job, backend.name, status), self._read_by(job, backend.name)
        known = await identity.learn(backend, wanted, judge, must=must)
        if len(known) < len(wanted):
            _log.warning("outputs_not_examined", **job.log_ids, backend=backend.name)
        if any(found.is_old and found.etag == identity.GONE for found in known.values()):
            _log.warning("output_older_than_job", **job.log_ids, backend=backend.name, hint=OLDER_HINT)
        return known

    def size_of(self, tenant: str, visible: FileRef) -> int | None:
        """Return the size of a tenant's file, as its ETag tells it; None if it is unknown."""
        match self._files.find(tenant, visible):
            case Holder(stored=Stored(size=size)) | Stored(size=size):
                return size
            case Holder(etag=etag):
                return identity.size_in(etag)
        return None

    def _read_by(self, job: Job, backend: str) -> Collection[str]:
        """Return the ETags of the files that the gateway put on a backend for a job to read."""
        placed: list[Placement | None] = []
        for ref in {file.ref for file in job.submission.files if file.ref is not None}:
            match self._files.find(job.tenant, ref):
                case Upload(digest):
                    for in_root in (False, True):
                        place = self._places.of(job.tenant, ref, backend, in_root=in_root)
                        placed.append(self._placements.find(backend, place, digest))
                case Holder() | Stored() as kept:
                    for copy in copies_of(job.tenant, ref, kept, backend, self._places):
                        digest = self._placements.digest_at(backend, copy) or ""
                        placed.append(self._placements.find(backend, copy, digest))
        return {each.etag.removeprefix("W/") for each in placed if each is not None and each.etag}

    def _times(self, job: Job, backend: str, status: Any) -> identity.Times:
        began, ended = time_of(status, ("execution_start",)), time_of(status, events.TERMINAL)
        others = [_began(each) for each in self._ledger.jobs_on(backend) if _is_at_work_for_another(each, job.tenant)]
        followed = min((time for time in others if ended is not None and time >= ended), default=None)
        return identity.Times(began, ended, followed)

    def _is_one(self, ref: FileRef) -> bool:
        """Return True if a name is a file that a client can ask for, and no upload."""
        path = ref.kind + ref.subfolder + ref.filename
        return len(path) <= MAX_PATH + SECRET_LENGTH and can_be_asked_for(path) and not self._is_upload(ref)

    async def of_entry(
        self, job: Job, backend: str, entry: Mapping[str, Any], known: Mapping[FileRef, identity.Found]
    ) -> Any:
        """Return an entry's outputs with the names that the job's tenant knows.

        If there are many files, the event loop runs other tasks between.

        Args:
            known: the identities of its files, from `learn`.
        """
        cached = cached_nodes(entry.get("status"))
        # Name each file once, because equal savers report the same file. Only cached ones may mean different files.
        named: dict[tuple[FileRef, str], FileRef] = {}

        def name(ref: FileRef, is_made: bool, node_id: str, fresh: Fresh) -> FileRef:
            key, ran = (ref, node_id if node_id in cached else ""), node_id not in cached
            if key not in named:
                named[key] = self._name(job, backend, ref, is_made, node_id, ran, fresh, known.get(ref))
            return named[key]

        return await in_turns(self._naming(entry.get("outputs"), name, identity.MAX_FILES))

    def of_node(self, job: Job, backend: str, output: Any, node_id: str, *, ran: bool) -> Generator[None, None, Any]:
        """Return a node's output with the names that the job's tenant knows, in short steps.

        Args:
            ran: True if the node is known to have run for this job.
        """

        def name(ref: FileRef, is_made: bool, _: str, fresh: Fresh) -> FileRef:
            return self._name(job, backend, ref, is_made, node_id, ran, fresh, None)

        return (yield from self._naming({"": output}, name, MAX_EVENT_FILES))[""]

    def _naming(
        self, outputs: Any, name: Callable[[FileRef, bool, str, Fresh], FileRef], maximum: int
    ) -> Generator[None, None, Any]:
        """Name files in short steps, and write the changes even if the caller does not take all steps."""
        fresh: Fresh = []

        def remembered(ref: FileRef, is_made: bool, node_id: str) -> FileRef:
            if len(fresh) >= FILES_AT_ONCE:
                self._remember(fresh)
                fresh.clear()
            return name(ref, is_made, node_id, fresh)

        try:
            return (yield from file_steps(outputs, remembered, maximum))
        finally:
            self._remember(fresh)

    def without_added(self, job: Job, data: dict[str, Any]) -> dict[str, Any] | None:
        """Return a job's data without the nodes that the gateway added; None if the data is about such nodes alone."""
        self._know_steering(job)
        if not job.live.added:
            return data

        added = job.live.added

        def saver(node_id: str) -> tuple[str, str]:
            return added[node_id], dict(job.submission.nodes).get(added[node_id], "")

        return without_added(data, added, saver)

    def _know_steering(self, job: Job) -> None:
        """Compute a job's steering again, if a restart has forgotten it."""
        if job.live.added is None:
            steering = self._steering(job, job.backend) if job.backend else UNCHANGED
            job.live.added = steering.savers if steering is not None else {}
            job.live.folders = frozenset(steering.folders) if steering is not None else None

    def _is_strange(self, job: Job, backend: str, ref: FileRef) -> bool:
        """Return True if a file lies in a secret folder into which no saver of the job writes, and is not the tenant's.

        A custom node may know another tenant's folder, and claim that it wrote there.
        """
        if not is_steered(ref) or self._files.held(job.tenant, backend, ref) is not None:
            return False
        self._know_steering(job)
        # If the prompt's folders are unknown since a restart, because it is judged otherwise now, let its files' times
        # decide.
        return job.live.folders is not None and secret_folder(ref) not in job.live.folders

    def without_added_in_json(self, job: Job, raw: bytes) -> bytes:
        """Return JSON as `without_added` does; unchanged if no nodes were added, or if only such nodes are in it."""
        if not job.live.added:
            return raw
        try:
            data = json_codec.loads(raw)
        except json_codec.MalformedJson:
            return raw
        told = self.without_added(job, data) if isinstance(data, dict) else None
        return raw if told is None else json_codec.dumps(told)

    def reveal(self, job: Job, raw: bytes) -> bytes:
        """Return a job's JSON from its backend with the names that its tenant knows."""
        if not holds_secret(raw):
            return raw
        return reveal_json(raw, self._places.names_of(job.tenant, job.submission.files))

    def revealing(self, job: Job, raw: bytes) -> Generator[None, None, bytes]:
        """Do what `reveal` does in short steps."""
        if len(raw) <= STEP:
            return self.reveal(job, raw)
        return (yield from revealing_json(raw, self._places.names_of(job.tenant, job.submission.files)))

    def reveal_bytes(self, job: Job, data: bytes) -> bytes:
        """Return a binary message with the names that the job's tenant knows. Its texts are not JSON."""
        if not holds_secret(data):
            return data
        return reveal_bytes(data, self._places.names_of(job.tenant, job.submission.files))

    def reveal_text(self, tenant: str, raw: bytes) -> bytes:
        """Return JSON from a tenant's file with the names that the tenant knows; never longer than `raw`."""
        if not holds_secret(raw):
            return raw
        told = reveal_json(raw, {secret: path_of(ref) for secret, ref in self._uploads_of(tenant).items()})
        return told if len(told) <= len(raw) else reveal_json(raw, {})

    def names_of(self, job: Job) -> Mapping[str, str]:
        """Return the paths of a job's uploads as its tenant knows them, by the 32 digits of their secret folders."""
        return self._places.names_of(job.tenant, job.submission.files)

    def reveal_value(self, job: Job, value: Any) -> Any:
        """Return a JSON value with the names that the job's tenant knows."""
        return finished(self.revealing_value(job, value))

    def revealing_value(self, job: Job, value: Any) -> Generator[None, None, Any]:
        """Do what `reveal_value` does in short steps."""
        return revealing_value(value, self._places.names_of(job.tenant, job.submission.files))

    def _remember(self, fresh: Fresh) -> None:
        """Write changes to the journal, and forget files past the maximum."""
        if not fresh:
            return
        gone = self._files.trim(self._maximum, self._may_forget)
        removals = (FileRemoval(tenant, ref.kind, ref.subfolder, ref.filename) for tenant, ref in gone)
        self._store.write([*fresh, *removals, *self._files.forgotten.take_changes(), *self._files.take_dropped()])

    def _may_forget(self, tenant: str) -> bool:
        """Return True if a tenant's files may be forgotten.

        A file without a record is visible to a team, so the files of its guests must stay on record.
        """
        return (
            self._visibility(tenant) is not FileVisibility.OWN or self._visibility(LOCAL_TENANT) is FileVisibility.OWN
        )

    def _name(
        self,
        job: Job,
        backend: str,
        ref: FileRef,
        is_made: bool,
        node_id: str,
        ran: bool,
        fresh: Fresh,
        found: identity.Found | None,
    ) -> FileRef:
        """Return the tenant's name for a file, and add changes for the journal to `fresh`."""
        if self._is_upload(ref):
            # Rename an upload, but don't claim it, because a node that shows an upload did not make it.
            return self._uploaded_as(job.tenant, backend, ref)
        if self._is_strange(job, backend, ref):
            return visible_name(ref, lambda _, parts: parts.number)
        if not self._is_one(ref):
            return ref
        if found is None and self._visibility(job.tenant) is FileVisibility.ALL:
            found = identity.Found(identity.UNTOLD, is_new=True)
        origin, etag = origin_of(is_made, ran), found.etag if found is not None else None
        if origin is Origin.EARLIER and (old := self.results.of_cached(job, backend, ref, node_id)) is not None:
            return old
        is_doubtful = origin is Origin.WROTE or is_unproven(self._files, job.tenant, backend, ref)
        if found is not None and is_doubtful and not found.is_new and ref.kind != "input":
            etag = identity.GONE if is_theirs(self._files, job.tenant, backend, ref, found.etag) else etag
        deleted, is_withheld = self._files.deleted.find(backend, ref), False
        if deleted is not None:
            # The owner deleted the file. Only the same prompt of the same tenant gets it again, from ComfyUI's cache.
            is_repeat = origin is Origin.EARLIER and deleted.tenant == job.tenant and deleted.is_it(etag)
            is_anothers = deleted.tenant != job.tenant and self._files.held(job.tenant, backend, ref) is not None
            is_withheld = origin is not Origin.WROTE and not (is_repeat or is_anothers)
            if is_withheld or (origin is Origin.WROTE and deleted.is_surely(etag)):
                etag = identity.GONE
        if origin is Origin.WROTE and ref.kind != "input":
            is_proven = etag is not None and etag != identity.GONE
            gone = self._files.replaced(job.tenant, backend, ref, proven=is_proven)
            fresh += [FileRemoval(tenant, each.kind, each.subfolder, each.filename) for tenant, each in gone]
            if deleted is not None and is_proven:
                fresh += self._files.deleted.replaced(backend, ref)
                self._files.note_anew(backend, ref)
        first = None if ran else identity.CACHED
        wanted, before, lost = wanted_name(self._files, job.tenant, backend, ref, origin)
        fresh += lost
        visible, is_news = self._files.claim(
            job.tenant, backend, ref, origin, first, wanted, is_withheld=is_withheld, before=before
        )
        self.results.note_origin(job, backend, ref, node_id, origin, visible)
        held = self._files.held(job.tenant, backend, ref)
        is_learnt = etag is not None and held is not None and not held.is_known
        if is_learnt and etag is not None:
            self._files.know(job.tenant, backend, ref, etag)
        if is_news or is_learnt:
            fresh.append(self._record(job.tenant, backend, ref, visible))
        return visible

    def _record(self, tenant: str, backend: str, ref: FileRef, visible: FileRef) -> FileRecord:
        held, is_anew = self._files.held(tenant, backend, ref), self._files.is_anew(backend, ref)
        etag = held.etag if held is not None else None
        now = int(time.time() * 1000)
        return FileRecord(
            tenant,
            visible.kind,
            visible.subfolder,
            visible.filename,
            backend,
            ref.filename,
            etag,
            int(is_anew),
            now,
            None if ref.subfolder == visible.subfolder else ref.subfolder,
        )

    def _is_upload(self, ref: FileRef) -> bool:
        return ref.kind == "input" and self._placements.is_name(ref)

    def _uploaded_as(self, tenant: str, backend: str, ref: FileRef) -> FileRef:
        """Return the tenant's name for its upload with this name on a backend; `ref` if it has no such upload."""
        if secret := secret_of(ref):
            return self._uploads_of(tenant).get(secret, ref)
        digest = self._placements.digest_at(backend, ref)
        for own, upload in self._files.uploads(tenant).items():
            if upload.digest == digest and (own.kind, own.subfolder) == (ref.kind, ref.subfolder):
                return own
        return ref

    def own_name(self, tenant: str, ref: FileRef) -> FileRef:
        """Return a tenant's name for its own upload that is named by a secret folder; `ref` for any other file."""
        secret = secret_of(ref) if ref.kind == "input" else ""
        return self._uploads_of(tenant).get(secret, ref) if secret else ref

    def _uploads_of(self, tenant: str) -> Mapping[str, FileRef]:
        """Return a tenant's uploads by the 32 digits of their secret folders.

        The index is kept until the tenant's uploads change, because a job may report many files.
        """
        version = self._files.version(tenant)
        known = self._by_secret.pop(tenant, None)
        if known is None or known[0] != version:
            known = version, {self._places.secret(tenant, ref): ref for ref in self._files.uploads(tenant)}
        self._by_secret[tenant] = known
        while len(self._by_secret) > MAX_TENANTS:
            del self._by_secret[next(iter(self._by_secret))]
        return known[1]


def _began(job: Job) -> float:
    """Return the time at which a job began, in seconds since 1970, by its backend's clock if known.

    If no start is known, return the time at which the job was created.
    """
    return (job.start_time or job.create_time) / 1000


def _is_at_work_for_another(job: Job, tenant: str) -> bool:
    return job.tenant != tenant and job.state in _AT_WORK
