"""Names of results that ComfyUI repeats from its cache, once a name there may mean two files.

After a folder was emptied, ComfyUI counts from 1 again. A node that need not run again still reports the name of its
old file, which another node may have written anew since. So the gateway notes each name together with the digest of the
part of the graph that wrote the file. ComfyUI's cache compares the same parts (`gateway.comfy.subgraph`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from gateway.comfy import json_codec
from gateway.comfy.file_refs import FileRef
from gateway.comfy.subgraph import digests
from gateway.files.index import FileIndex, Holder, Origin, Stored
from gateway.jobs.isolation.visible_names import is_steered
from gateway.jobs.state.job import Job

# Files whose names are remembered. A start reads those that are stored again.
MAX_NAMES = 100_000
# A longer prompt is not parsed for this, because that would hold up others.
MAX_PROMPT = 256 * 1024
# Nodes of a job of an earlier run whose digests are computed. The prompt is parsed for each.
MAX_COMPUTED = 64
# Hexadecimal digits of a digest that are kept.
_DIGITS = 16


def saver_of(job: Job, node_id: str) -> str:
    """Return the digest of the part of a job's graph that a node depends on; empty if it is unknown.

    A node may have made the node (comfy_execution/graph.py, expand). Its id then begins with its maker's id.
    """
    savers, (maker, _, rest) = job.live.savers, node_id.partition(".")
    known = node_id if not rest or node_id in job.outputs else maker
    # A job of an earlier run does not know its output nodes, so some are computed when they are asked for.
    if known not in savers and (not savers or (not job.outputs and len(savers) < MAX_COMPUTED)):
        savers.update({known: "", **_savers(job, {*job.outputs, known})})
    saver = savers.get(known, "")
    return f"{saver}.{rest}" if saver and known != node_id else saver


def _savers(job: Job, nodes: Collection[str]) -> dict[str, str]:
    """Return the digests of nodes of a job, all at once, because they share what they depend on."""
    prompt = job.submission.prompt
    if len(prompt) > MAX_PROMPT:
        return {}
    try:
        graph = json_codec.loads(prompt)
    except json_codec.MalformedJson:
        return {}
    if not isinstance(graph, dict):
        return {}
    found = digests(graph, [node_id for node_id in nodes if node_id in graph])
    return {node_id: digest.hex()[:_DIGITS] for node_id, digest in found.items()}


class ResultNames:
    """Names that tenants see for files that backends wrote, by the digests of their savers. The last ones are kept.

    Files of secret folders are left out, because each such folder is of one saver.

    Args:
        are_stored: True if files are copied to object storage, so that any name may come to mean two files.
    """

    def __init__(self, files: FileIndex, are_stored: bool) -> None:
        self._files = files
        self._are_stored = are_stored
        self._names: OrderedDict[tuple[str, str, FileRef, str], FileRef] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def note(self, tenant: str, backend: str, there: FileRef, saver: str, visible: FileRef) -> None:
        """Note the name that a tenant sees for a file that a backend wrote."""
        if not saver:
            return
        key = (tenant, backend, there, saver)
        self._names.pop(key, None)
        self._names[key] = visible
        if len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)

    def note_origin(
        self, job: Job, backend: str, there: FileRef, node_id: str, origin: Origin, visible: FileRef
    ) -> None:
        """Note the name that a tenant sees for a file, if its job wrote the file."""
        may_mean_two = self._are_stored or (job.tenant, backend, there) in self._files.left
        if origin is Origin.WROTE and may_mean_two and not is_steered(there):
            self.note(job.tenant, backend, there, saver_of(job, node_id), visible)

    def of_cached(self, job: Job, backend: str, there: FileRef, node_id: str) -> FileRef | None:
        """Return the name of a result from a backend's cache. Return None if it is the file that lies there now.

        If the result's file is unknown, or the tenant has it no more, return a name that leads nowhere.
        """
        if is_steered(there) or (job.tenant, backend, there) not in self._files.left:
            return None
        visible = self._names.get((job.tenant, backend, there, saver_of(job, node_id)))
        place = self._files.find(job.tenant, visible) if visible is not None else None
        if isinstance(place, Stored):
            return visible
        if isinstance(place, Holder) and (place.backend, place.there) == (backend, there):
            return None
        return self._files.free_name(job.tenant, backend, there)
