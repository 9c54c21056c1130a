"""What a job's nodes put out: its files get the names that the job's tenant knows, and are its from then on.

A name on a backend may come to mean another's file (its folder was emptied, it counts from 1 again). So whoever writes
a file takes its name from others, and once a job is over its files are known by their ETags as well: see
`gateway.fleet.etags`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from gateway.comfy import events, history
from gateway.comfy.outputs import FileRef, can_be_asked_for, rename
from gateway.fleet import etags
from gateway.fleet.backend import Backend
from gateway.fleet.files import FileIndex, Holder, Origin
from gateway.fleet.placements import Placements
from gateway.jobs.job import Job, State
from gateway.jobs.ledger import Ledger
from gateway.store.protocol import FileRecord, FileRemoval, Store
from gateway.tenants.keys import Sight

_AT_WORK = (State.RUNNING, State.COLLECTING)


class Outputs:
    """The files that jobs leave on backends.

    Args:
        sight: which files a tenant may name.
    """

    def __init__(
        self, files: FileIndex, placements: Placements, store: Store, ledger: Ledger, sight: Callable[[str], Sight]
    ) -> None:
        self._files = files
        self._placements = placements
        self._store = store
        self._ledger = ledger
        self._sight = sight

    def expected(self, tenant: str, holder: Holder) -> str:
        """What a tenant's file is known by.

        Until its job is over that is not known, but nobody else's writes there.
        """
        if holder.etag is not None:
            return holder.etag
        return etags.UNTOLD if self._is_at_work(tenant, holder.backend) else etags.GONE

    def _is_at_work(self, tenant: str, backend: str) -> bool:
        return any(job.tenant == tenant and job.state in _AT_WORK for job in self._ledger.jobs_on(backend))

    def written_since(self, tenant: str, backend: str) -> float | None:
        """From when on what is written on a backend may be what the tenant must not see: seconds since 1970 there.

        None if what runs there is the tenant's own, or nobody's who is kept apart.
        """
        others = [
            job.start_time or job.create_time
            for job in self._ledger.jobs_on(backend)
            if job.tenant != tenant and job.state in _AT_WORK and self._sight(job.tenant) is Sight.OWN
        ]
        return min(others) / 1000 if others else None

    async def learn(self, job: Job, backend: Backend, entry: Mapping[str, Any]) -> Mapping[FileRef, str]:
        """What to know the files of a history entry by, those that an earlier job left and that are known aside.

        Raises:
            BackendError: the backend does not say.
        """
        if self._sight(job.tenant) is Sight.ALL:
            return {}
        wanted: dict[FileRef, None] = {}
        cached = _cached(entry.get("status"))

        def note(ref: FileRef, is_made: bool, node_id: str) -> str:
            wrote = is_made and node_id not in cached
            is_named = can_be_asked_for(ref.kind + ref.subfolder + ref.filename) and not self._is_upload(ref)
            if is_named and (wrote or self._files.etag(job.tenant, backend.name, ref) is None):
                wanted[ref] = None
            return ref.filename

        _each(entry.get("outputs"), note)
        return await etags.learn(backend, wanted, _ended(entry.get("status"))) if wanted else {}

    def of_entry(self, job: Job, backend: str, entry: Mapping[str, Any], known: Mapping[FileRef, str]) -> Any:
        """An entry's outputs with the names that the job's tenant knows; `known` is what was learnt of its files."""
        cached = _cached(entry.get("status"))
        fresh: list[FileRecord | FileRemoval] = []

        def name(ref: FileRef, is_made: bool, node_id: str) -> str:
            return self._name(job, backend, ref, _origin(is_made, node_id not in cached), fresh, known.get(ref))

        renamed = _each(entry.get("outputs"), name)
        if fresh:
            self._store.write(fresh)
        return renamed

    def of_node(self, job: Job, backend: str, output: Any, *, ran: bool) -> Any:
        """A node's output with the names that the job's tenant knows.

        Args:
            ran: whether the node is known to have run for this job.
        """
        fresh: list[FileRecord | FileRemoval] = []
        renamed = rename(output, lambda ref, is_made: self._name(job, backend, ref, _origin(is_made, ran), fresh, None))
        if fresh:
            self._store.write(fresh)
        return renamed

    def _name(
        self,
        job: Job,
        backend: str,
        ref: FileRef,
        origin: Origin,
        fresh: list[FileRecord | FileRemoval],
        etag: str | None,
    ) -> str:
        """The tenant's name for a file; what is to be remembered for ever goes into `fresh`."""
        if not can_be_asked_for(ref.kind + ref.subfolder + ref.filename):
            return ref.filename
        if self._is_upload(ref):
            # An upload is not made one's own by a node that shows it.
            return self._uploaded_as(job.tenant, backend, ref)
        if origin is Origin.WROTE and ref.kind != "input":
            gone = self._files.replaced(job.tenant, backend, ref)
            fresh += [FileRemoval(tenant, each.kind, each.subfolder, each.filename) for tenant, each in gone]
        visible, is_news = self._files.claim(job.tenant, backend, ref, origin)
        if etag is None and self._sight(job.tenant) is Sight.ALL:
            etag = etags.UNTOLD
        is_known = self._files.etag(job.tenant, backend, ref) is not None
        is_learnt = etag is not None and not is_known and self._files.know(job.tenant, backend, ref, etag)
        if is_news or is_learnt:
            fresh.append(self._record(job.tenant, backend, ref, visible))
        return visible

    def _record(self, tenant: str, backend: str, ref: FileRef, visible: str) -> FileRecord:
        etag, is_anew = self._files.etag(tenant, backend, ref), self._files.is_anew(backend, ref)
        return FileRecord(tenant, ref.kind, ref.subfolder, visible, backend, ref.filename, etag, int(is_anew))

    def _is_upload(self, ref: FileRef) -> bool:
        return ref.kind == "input" and self._placements.is_name(ref)

    def _uploaded_as(self, tenant: str, backend: str, ref: FileRef) -> str:
        """What the tenant calls its upload that is so named on a backend; the same name if it is none of its."""
        digest = self._placements.digest_at(backend, ref)
        for own, upload in self._files.uploads(tenant).items():
            if upload.digest == digest and (own.kind, own.subfolder) == (ref.kind, ref.subfolder):
                return own.filename
        return ref.filename


def _origin(is_made: bool, ran: bool) -> Origin:
    if not is_made:
        return Origin.NAMED
    return Origin.WROTE if ran else Origin.EARLIER


def _each(outputs: Any, new_name: Callable[[FileRef, bool, str], str]) -> Any:
    """An entry's outputs, each file in them with a new name, for which the node's id is given as well."""
    if not isinstance(outputs, dict):
        return rename(outputs, lambda ref, is_made: new_name(ref, is_made, ""))
    return {
        node_id: rename(output, lambda ref, is_made, node_id=node_id: new_name(ref, is_made, node_id))  # type: ignore[misc]
        for node_id, output in outputs.items()
    }


def _cached(status: Any) -> Collection[str]:
    """The nodes of an entry whose results an earlier prompt left."""
    told = [data.get("nodes") for name, data in history.messages_of(status) if name == "execution_cached"]
    return {node for nodes in told if isinstance(nodes, list) for node in nodes if isinstance(node, str)}


def _ended(status: Any) -> int | None:
    """When an entry's job was over: milliseconds since 1970, by its backend's clock."""
    for name, data in reversed(history.messages_of(status)):
        if name in events.TERMINAL and (timestamp := events.timestamp_of(data)) is not None:
            return timestamp
    return None
