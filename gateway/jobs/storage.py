"""The parts of object storage, put together: those of `gateway/artifacts/`, and those of `gateway/jobs/files/`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gateway.artifacts.object_store import ObjectStore
from gateway.artifacts.service import Artifacts
from gateway.artifacts.stored_files import StoredFiles
from gateway.comfy.file_refs import FileRef
from gateway.files.hidden_texts import Rewrite
from gateway.files.index import FileIndex
from gateway.fleet.fleet import Fleet
from gateway.jobs.files.entry_links import EntryLinks
from gateway.jobs.files.stored_outputs import StoredOutputs
from gateway.jobs.parsing.json_reader import JsonReader
from gateway.settings import Settings
from gateway.store.protocol import Store
from gateway.telemetry.metrics import Metrics
from gateway.tenants.secret_names import SecretNames


class Storage(NamedTuple):
    """The parts that copy files into object storage, serve them from there, and link to them; None if storage is off.

    Attributes:
        artifacts: the copies.
        stored_files: what serves them.
        entry_links: links to them beside the outputs of jobs; None if readers get none (`storage.links`).
        outputs: the part that plans copies at the end of each job.
    """

    artifacts: Artifacts | None = None
    stored_files: StoredFiles | None = None
    entry_links: EntryLinks | None = None
    outputs: StoredOutputs | None = None


def make_storage(
    settings: Settings,
    object_store: ObjectStore | None,
    fleet: Fleet,
    files: FileIndex,
    journal: Store,
    names: SecretNames,
    rewriting: Callable[[str], Rewrite | None],
    upload_path: Callable[[str], Path],
    metrics: Metrics,
    is_named: Callable[[str, FileRef], bool],
    reader: Callable[[], JsonReader],
) -> Storage:
    """Return the parts for a store; none if there is none.

    Args:
        rewriting: returns the function by which a tenant's texts in PNG files are rewritten; None to leave them.
        upload_path: returns the path of an upload's bytes by their SHA-256.
        is_named: returns True if an open job of a tenant names a file.
        reader: returns the reader of long entries, which is made later.
    """
    if object_store is None:
        return Storage()

    own, folder = settings.storage, settings.data_dir / "artifacts"
    parts = fleet, files, journal, names, rewriting
    artifacts = Artifacts(own, object_store, folder, *parts, upload_path, metrics, is_named)
    stored_files = StoredFiles(own, artifacts, files, names)
    links = None
    if stored_files.links.is_on:
        links = EntryLinks(files, stored_files.links, lambda *entry: reader().made_files(*entry))
    return Storage(artifacts, stored_files, links, StoredOutputs(own, files, artifacts, journal))
