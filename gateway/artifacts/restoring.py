"""Give the index back the copies that earlier runs stored. This is done with storage off, too: the names stay taken."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.artifacts.model import UPLOADS, State, is_of, stored_of, there_of, visible_of
from gateway.comfy.file_refs import FileRef
from gateway.files.index import FileIndex, Holder, Upload
from gateway.store.artifact_records import ArtifactDeletion, ArtifactRecord

Name = tuple[str, FileRef]
_SAFE = (State.STORED, State.SPOOLED)


class StoredNames:
    """The copies of earlier runs that names lead to.

    Call `restore_alone`, then restore the files of backends, then `attach`; then restore the uploads, then
    `attach_uploads`.
    """

    def __init__(self, records: Iterable[ArtifactRecord]) -> None:
        self._named, self._uploads = dict[Name, ArtifactRecord](), dict[Name, ArtifactRecord]()
        for each in records:
            if each.state in _SAFE:
                (self._uploads if each.backend == UPLOADS else self._named)[each.tenant, visible_of(each)] = each

    def restore_alone(self, files: FileIndex, names: Iterable[tuple[str, FileRef]]) -> None:
        """Give back the names that lead to object storage alone.

        They come before all others, because what a job has written over is old.

        Args:
            names: the (tenant, name) of each file that a backend has.
        """
        if not self._named:
            return
        known = frozenset(names)
        for name in [each for each in self._named if each not in known]:
            record = self._named.pop(name)
            files.restore_stored(*name, stored_of(record))
            files.left.add((record.tenant, record.backend, there_of(record)))

    def attach(self, files: FileIndex) -> list[ArtifactDeletion]:
        """Let the names of backends' files lead to the copies of these files.

        Return the orders to delete copies of other files that had these names.
        """
        orders = []
        for name, record in self._named.items():
            held = files.find(*name)
            if isinstance(held, Holder) and is_of(record, held):
                files.restore_stored(*name, stored_of(record))
            else:
                orders.append(ArtifactDeletion(record.key))
        self._named.clear()
        return orders

    def attach_uploads(self, files: FileIndex) -> list[ArtifactDeletion]:
        """Let the names of uploads lead to their copies, those that the gateway itself has no more, too.

        Return the orders to delete copies of other files that had these names.
        """
        orders = []
        for name, record in self._uploads.items():
            is_free = files.find(*name) is None or isinstance(files.find(*name), Upload)
            if not is_free or not files.restore_stored(*name, stored_of(record)):
                orders.append(ArtifactDeletion(record.key))
        self._uploads.clear()
        return orders
