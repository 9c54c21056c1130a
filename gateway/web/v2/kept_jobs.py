"""The jobs' part of what the Comfy API v2 keeps: notes about jobs, and jobs that were cancelled before they ran.

ComfyUI forgets a prompt that is cancelled in the queue, and leaves no history entry. This API promises that a job stays
what it became. So the gateway remembers such jobs, of all surfaces, the newest.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from gateway.jobs.state.job import Job
from gateway.jobs.state.job_end import End
from gateway.store.protocol import Change, Store
from gateway.store.v2_records import V2CanceledRecord, V2CanceledRemoval, V2NoteRecord, V2NoteRemoval
from gateway.web.v2.labels import NO_NOTE, Note, decode

# Cancelled jobs that are remembered, of one tenant and of all.
MAX_CANCELED, MAX_CANCELED_IN_ALL = 2_000, 50_000
# Bytes of notes, of one tenant and of all. Past that the oldest are forgotten, because they lie in memory.
MAX_NOTES, MAX_NOTES_IN_ALL = 16 * 1024**2, 256 * 1024**2
_PER_NOTE = 200
# Notes and cancelled jobs that are looked at, or forgotten, in one turn of the event loop.
BATCH = 5_000
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Unconfirmed(V2CanceledRecord):
    """A cancelled job whose end the journal does not have yet. On a full disk it may run after another start."""


def _size(note: Note) -> int:
    """Return about how many bytes a note takes in memory."""
    return _PER_NOTE + 2 * len(note.encode())


class KeptJobs:
    """Notes and cancelled jobs. It is a part of the ledger that has work at the end of each job (`job_end.py`).

    Args:
        keep_ms: time for which a cancelled job is remembered, in milliseconds.
    """

    def __init__(self, store: Store, keep_ms: int) -> None:
        self._store = store
        self._keep_ms = keep_ms
        self._notes: dict[str, dict[str, Note]] = {}
        self._sizes: Counter[str] = Counter()
        self._canceled: dict[str, dict[str, V2CanceledRecord]] = {}
        self._count = 0
        # Ends that are in the journal's queue, but not told yet.
        self._ending: dict[_Key, V2CanceledRecord] = {}
        self._waiting: dict[_Key, set[asyncio.Event]] = {}
        self._swept: Iterator[_Key] = iter(())

    async def restore(self) -> None:
        """Read notes and cancelled jobs of earlier runs.

        Raises:
            StoreError: the journal can't be read.
        """
        for note in await self._store.v2_notes():
            self._put_note(note.tenant, note.prompt_id, decode(note.note))
        for record in await self._store.v2_canceled():
            self._put(record)

    # -- notes ---------------------------------------------------------------------------------------------------

    def note(self, tenant: str, prompt_id: str) -> Note:
        """Return the note about a job; an empty one if there is none."""
        return self._notes.get(tenant, {}).get(prompt_id, NO_NOTE)

    def put_note(self, tenant: str, prompt_id: str, note: Note) -> None:
        """Keep a note about a job that is about to be accepted."""
        if note.is_empty:
            return
        # The job's own record is behind it in the queue of the journal.
        record = V2NoteRecord(tenant, prompt_id, note.encode())
        self._store.try_write([record]).add_done_callback(lambda done: self._note_written(done, record))
        gone = self._put_note(tenant, prompt_id, note)
        if gone:
            self._store.write(gone)

    def _note_written(self, done: asyncio.Future[None], record: V2NoteRecord) -> None:
        is_refused = not done.cancelled() and done.exception() is not None
        if is_refused and not self.note(record.tenant, record.prompt_id).is_empty:
            # The disk may take the job's record by now, so this one must not be missing.
            self._store.write([record])

    def drop_note(self, tenant: str, prompt_id: str) -> None:
        """Forget a note, because its job was not accepted, or is forgotten."""
        if prompt_id in self._notes.get(tenant, {}):
            self._store.write([self._drop_note(tenant, prompt_id)])

    def _put_note(self, tenant: str, prompt_id: str, note: Note) -> list[V2NoteRemoval]:
        """Put a note into memory. Return the removals of those that have no room any more."""
        own = self._notes.setdefault(tenant, {})
        own[prompt_id] = note
        self._sizes[tenant] += _size(note)
        gone: list[V2NoteRemoval] = []
        while self._sizes[tenant] > MAX_NOTES:
            gone.append(self._drop_note(tenant, next(iter(own))))
        while self._sizes.total() > MAX_NOTES_IN_ALL:
            largest = self._sizes.most_common(1)[0][0]
            gone.append(self._drop_note(largest, next(iter(self._notes[largest]))))
        return gone

    def _drop_note(self, tenant: str, prompt_id: str) -> V2NoteRemoval:
        own = self._notes[tenant]
        self._sizes[tenant] -= _size(own.pop(prompt_id))
        if not own:
            del self._notes[tenant], self._sizes[tenant]
        return V2NoteRemoval(tenant, prompt_id)

    # -- cancelled jobs ------------------------------------------------------------------------------------------

    def canceled(self, tenant: str, prompt_id: str) -> V2CanceledRecord | None:
        """Return a job of a tenant that was cancelled before it ran; None if there is none."""
        return self._canceled.get(tenant, {}).get(prompt_id)

    def canceled_any(self, prompt_id: str) -> V2CanceledRecord | None:
        """Return such a job of any tenant, for an admin."""
        return next((own[prompt_id] for own in self._canceled.values() if prompt_id in own), None)

    def canceled_of(self, tenant: str | None) -> Iterator[V2CanceledRecord]:
        """Yield such jobs of a tenant, or of all tenants (None), the oldest first within each tenant."""
        for own in list(self._canceled.values()) if tenant is None else [self._canceled.get(tenant, {})]:
            yield from own.values()

    def _put(self, record: V2CanceledRecord) -> list[V2CanceledRemoval]:
        """Remember a cancelled job. Return the removals of those that are remembered no more."""
        own = self._canceled.setdefault(record.tenant, {})
        self._count += record.prompt_id not in own
        own.pop(record.prompt_id, None)
        own[record.prompt_id] = record
        gone: list[V2CanceledRemoval] = []
        while len(own) > MAX_CANCELED:
            gone.append(self._drop(record.tenant, next(iter(own))))
        while self._count > MAX_CANCELED_IN_ALL:
            tenant = max(self._canceled, key=lambda each: len(self._canceled[each]))
            gone.append(self._drop(tenant, next(iter(self._canceled[tenant]))))
        return gone

    def _drop(self, tenant: str, prompt_id: str) -> V2CanceledRemoval:
        own = self._canceled[tenant]
        del own[prompt_id]
        self._count -= 1
        if not own:
            del self._canceled[tenant]
        return V2CanceledRemoval(tenant, prompt_id)

    # -- steps of jobs -------------------------------------------------------------------------------------------

    def changes(self, job: Job, end: End) -> Sequence[Change]:
        """Return the row of a job that is cancelled without a history entry."""
        if end.outcome != "cancelled" or end.entry is not None:
            return ()
        record = V2CanceledRecord(*job.key, job.create_time, job.start_time, int(time.time() * 1000))
        self._ending[job.key] = record
        return [record]

    def ended(self, job: Job) -> None:
        """Remember a cancelled job, and wake those that wait for the job's end, once the journal has it."""
        record = self._ending.pop(job.key, None)
        if record is None:
            self._wake(job.key)
            return
        unsure = Unconfirmed(record.tenant, record.prompt_id, record.created_at, record.started_at, record.ended_at)
        if gone := self._put(unsure):
            self._store.write(gone)
        self._store.write([]).add_done_callback(lambda _: self._confirm(record, unsure))

    def _confirm(self, record: V2CanceledRecord, unsure: Unconfirmed) -> None:
        own = self._canceled.get(record.tenant, {})
        if own.get(record.prompt_id) is unsure:
            own[record.prompt_id] = record
        self._wake((record.tenant, record.prompt_id))

    def _wake(self, key: _Key) -> None:
        for event in self._waiting.get(key, ()):
            event.set()

    def undone(self, job: Job) -> Sequence[Change]:
        """Return the removal of a cancelled job, because it did not end so after all."""
        record = self._ending.pop(job.key, None)
        return () if record is None else [V2CanceledRemoval(record.tenant, record.prompt_id)]

    def forgotten(self, tenant: str, deleted: Collection[str], named: Collection[str] | None) -> Sequence[Change]:
        """Forget notes and cancelled jobs, because their owner deletes them. Return the removals."""
        canceled = self._canceled.get(tenant, {})
        gone = [each for each in (list(canceled) if named is None else named) if each in canceled]
        noted = self._notes.get(tenant, {})
        notes = [each for each in dict.fromkeys((*deleted, *gone)) if each in noted]
        changes: list[Change] = [self._drop(tenant, each) for each in dict.fromkeys(gone)]
        return [*changes, *(self._drop_note(tenant, each) for each in notes)]

    def wait_for(self, tenant: str, prompt_id: str, event: asyncio.Event) -> Callable[[], None]:
        """Set an event when a job ends. Return a function that ends this."""
        waiting = self._waiting.setdefault((tenant, prompt_id), set())
        waiting.add(event)

        def leave() -> None:
            waiting.discard(event)
            if not waiting and self._waiting.get((tenant, prompt_id)) is waiting:
                del self._waiting[tenant, prompt_id]

        return leave

    # -- upkeep --------------------------------------------------------------------------------------------------

    def sweep(self, now: int, is_known: Callable[[str, str], bool]) -> None:
        """Forget some cancelled jobs that are too old, and notes about jobs that are forgotten.

        Args:
            now: milliseconds since 1970.
            is_known: returns True for a job that is open or in the history.
        """
        gone: list[Change] = []
        for tenant, own in list(self._canceled.items()):
            old = [each for each in islice(own.values(), BATCH) if now - each.ended_at > self._keep_ms]
            gone += [self._drop(tenant, each.prompt_id) for each in old]
        looked = list(islice(self._swept, BATCH))
        if not looked:
            self._swept = iter([(tenant, prompt_id) for tenant, own in self._notes.items() for prompt_id in own])
        for key in looked:
            if self.note(*key) is not NO_NOTE and not is_known(*key) and self.canceled(*key) is None:
                gone.append(self._drop_note(*key))
        if gone:
            self._store.write(gone)
