"""Restore, at a start, what the gateway knows of files: on backends, in object storage, deleted and forgotten ones."""

from __future__ import annotations

from gateway.artifacts.model import State, there_of, visible_of
from gateway.artifacts.restoring import StoredNames
from gateway.artifacts.service import Artifacts
from gateway.comfy.file_refs import FileRef
from gateway.files.index import FileIndex, Holder
from gateway.files.placements import Placement, Placements
from gateway.jobs.files.outputs import Outputs
from gateway.store.artifact_records import ArtifactDeletion, ArtifactRecord
from gateway.store.protocol import Store
from gateway.telemetry import logs

_log = logs.get("storage")


async def restore_files(
    store: Store, files: FileIndex, placements: Placements, artifacts: Artifacts | None, outputs: Outputs
) -> tuple[list[ArtifactRecord], StoredNames, list[ArtifactDeletion]]:
    """Give the index its files back, and the placements theirs.

    Return the rows of copies, the names of uploads' copies, and the orders to delete copies that no name leads to any
    more.
    """
    records, rows = await store.files(), await store.artifacts()
    if artifacts is not None:
        rows = await artifacts.check_spool(rows)
    elif kept := sum(each.state in (State.STORED, State.SPOOLED) for each in rows):
        _log.error("storage_turned_off", files=kept)
    stored = StoredNames(rows)
    refs = ((each.tenant, FileRef(each.kind, each.subfolder, each.filename)) for each in records)
    stored.restore_alone(files, refs)
    for file in records:
        visible = FileRef(file.kind, file.subfolder, file.filename)
        folder = file.subfolder if file.upstream_subfolder is None else file.upstream_subfolder
        there = FileRef(file.kind, folder, file.upstream)
        files.restore(file.tenant, visible, Holder(file.backend, there, file.etag), bool(file.anew))
    orders = stored.attach(files)
    for row in rows:
        if row.saver and row.filename:
            outputs.results.note(row.tenant, row.backend, there_of(row), row.saver, visible_of(row))
    for deleted in await store.deleted():
        files.deleted.restore(deleted)
    for forgotten in await store.forgotten():
        files.forgotten.restore(forgotten)
    for placed in await store.placements():
        ref = FileRef(placed.kind, placed.subfolder, placed.filename)
        wanted = FileRef(placed.kind, placed.subfolder, placed.wanted)
        placements.put(placed.backend, wanted, placed.digest, Placement(ref, placed.etag))
    return rows, stored, orders
