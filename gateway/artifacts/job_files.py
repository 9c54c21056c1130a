"""Files of each job, for `storage.delete_with_history`: they live no longer than the job's history entry.

A start deletes what is left of jobs that are not in the history any more, so nothing is written when an entry goes.
A file that an open job names stays until that job ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from gateway.artifacts.model import Copy, is_of
from gateway.artifacts.queue import CopyQueue
from gateway.artifacts.retention import delete_file
from gateway.comfy.file_refs import FileRef
from gateway.files.index import FileIndex, Holder
from gateway.files.values import stored_key
from gateway.store.protocol import Change

# Files that are deleted in one turn of the event loop.
AT_ONCE = 100
Job = tuple[str, str]


class JobFiles:
    """The names and keys of the copies of each job, a (tenant, prompt_id).

    Args:
        give_up: called with each copy that is not to be made any more.
        is_named: returns True if an open job of a tenant names a file.
    """

    def __init__(
        self,
        files: FileIndex,
        queue: CopyQueue,
        give_up: Callable[[Copy], None],
        is_named: Callable[[str, FileRef], bool],
    ) -> None:
        self._index = files
        self._queue = queue
        self._give_up = give_up
        self._is_named = is_named
        self._files: dict[Job, list[tuple[FileRef, str]]] = {}
        # Jobs that left the history, with their files, because another job may get the id of one meanwhile.
        self._gone: deque[tuple[Job, list[tuple[FileRef, str]]]] = deque()

    def add(self, tenant: str, prompt_id: str, visible: FileRef, key: str) -> None:
        """Note a copy of a job."""
        self._files.setdefault((tenant, prompt_id), []).append((visible, key))

    def drop(self, tenant: str, prompt_id: str) -> None:
        """Note that a job left the history."""
        job = tenant, prompt_id
        if job in self._files:
            self._gone.append((job, self._files.pop(job)))

    def jobs(self) -> list[Job]:
        """Return all jobs with copies."""
        return list(self._files)

    def delete(self) -> Iterator[list[Change]]:
        """Delete the files of jobs that left the history, in short steps. Yield what to write of each step."""
        for _ in range(len(self._gone)):
            job, files = self._gone.popleft()
            kept: list[tuple[FileRef, str]] = []
            try:
                while files:
                    some, files = files[:AT_ONCE], files[AT_ONCE:]
                    yield self._delete_some(job[0], some, kept)
            finally:
                if files or kept:
                    self._gone.append((job, [*files, *kept]))

    def _delete_some(
        self, tenant: str, files: list[tuple[FileRef, str]], kept: list[tuple[FileRef, str]]
    ) -> list[Change]:
        """Delete a tenant's files, and return what to write. Add those to `kept` that must stay."""
        changes: list[Change] = []
        for visible, key in files:
            if self._is_named(tenant, visible):
                kept.append((visible, key))
            elif self._is_there(tenant, visible, key):
                changes += delete_file(self._index, tenant, visible)
        return changes

    def _is_there(self, tenant: str, visible: FileRef, key: str) -> bool:
        """Return True if a name leads to the file whose copy has a key. If the copy is not made, make it no more."""
        place, copy = self._index.find(tenant, visible), self._queue.get(key)
        if copy is not None and not copy.is_settled:
            self._give_up(copy)
            return isinstance(place, Holder) and is_of(copy.record, place)
        return stored_key(place) == key
