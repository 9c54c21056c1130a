"""Copies of outputs in object storage, as the rest of the gateway uses them.

The object comes first, then its row. If the gateway ends between the two, the next run makes the copy again, under the
same key. A store that is away or full gets its objects later: until then their bytes wait on the gateway's disk.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import random

from gateway.artifacts.copier import Copier, SourceAway, SourceChanged, SourceMissing
from gateway.artifacts.deletions import Deletions
from gateway.artifacts.gauges import show
from gateway.artifacts.job_files import JobFiles
from gateway.artifacts.keys import new_key, spool_name
from gateway.artifacts.model import (
    SPOOL,
    UPLOADS,
    Copy,
    Outcome,
    State,
    is_of,
    is_of_place,
    new_record,
    stored_of,
    visible_of,
)
from gateway.artifacts.object_store import ObjectStore, StorageError
from gateway.artifacts.queue import CopyQueue
from gateway.artifacts.schedule import MAX_MISSING, Slots, wait_after
from gateway.artifacts.spool import ArtifactSpool, SpoolFull, SpoolLost
from gateway.artifacts.store_watch import StoreWatch
from gateway.artifacts.upkeep import Upkeep
from gateway.comfy.file_refs import FileRef
from gateway.files.hidden_texts import Rewrite
from gateway.files.index import FileIndex, Holder, Stored, Upload
from gateway.files.values import stored_key
from gateway.fleet.fleet import Fleet
from gateway.settings.storage import StorageSettings
from gateway.store.artifact_records import ArtifactRecord, ArtifactRemoval
from gateway.store.protocol import Store
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Failures, Loop, Tasks
from gateway.tenants.secret_names import SecretNames

_log = logs.get("storage")

# Maximum seconds between two rounds of the loops. A backend that comes back is noticed by then.
REST = 5.0
# The least time between two lines that tell that the spool is full, or that too many copies wait.
TELL_SECONDS = 60.0
_OTHER_FILE = "its name means another file by now, or none"


class Artifacts:
    """All copies. Call `check_spool` and `restore`, then `start`, at the end `close`.

    Args:
        rewriting: returns the function by which a tenant's texts in PNG files are rewritten; None to leave them.
        upload_path: returns the path of an upload's bytes by their SHA-256.
        is_named: returns True if an open job of a tenant names a file.
    """

    def __init__(
        self,
        settings: StorageSettings,
        store: ObjectStore,
        directory: Path,
        fleet: Fleet,
        files: FileIndex,
        journal: Store,
        names: SecretNames,
        rewriting: Callable[[str], Rewrite | None],
        upload_path: Callable[[str], Path],
        metrics: Metrics,
        is_named: Callable[[str, FileRef], bool],
    ) -> None:
        self.settings = settings
        self.store = store
        self._fleet = fleet
        self._files = files
        self._journal = journal
        self._names = names
        self._metrics = metrics
        self._queue = CopyQueue()
        self._health = StoreWatch(store, self.wake)
        self.head = self._health.head
        self._spool = ArtifactSpool(directory, settings.max_spool)
        self._copier = Copier(fleet, store, self._spool, rewriting, upload_path, settings.timeout)
        self._deletions = Deletions(store, self._spool, journal, self._health)
        self._tasks, self._attempts = Tasks("storage"), Tasks("storage")
        self._failures = Failures()
        give_up = partial(self._give_up, outcome=Outcome.CHANGED, reason="its job is not in the history any more")
        of_jobs = JobFiles(files, self._queue, give_up, is_named)
        self._of_jobs = of_jobs if settings.delete_with_history else None
        self._upkeep = Upkeep(settings, store, files, journal, is_named)
        self._loops: list[Loop] = []
        self._slots = Slots(settings.max_concurrency)
        self._told: dict[str, float] = {}
        files.on_dropped = self._dropped
        show(metrics, self._queue, self._health, self._spool, settings.max_spool, self._is_known)

    # -- life ----------------------------------------------------------------------------------------------------

    async def check_spool(self, records: Collection[ArtifactRecord]) -> list[ArtifactRecord]:
        """Find the bytes that wait on the disk. Return all records; those whose bytes are lost are pending again.

        Raises:
            OSError: the folder can't be used.
        """
        await self._spool.open({spool_name(each.key) for each in records if each.state == State.SPOOLED})
        lost = [each for each in records if each.state == State.SPOOLED and not self._spool.has(spool_name(each.key))]
        if lost:
            _log.warning("spooled_files_lost", files=len(lost))
        keys = {each.key for each in lost}
        return [replace(each, state=State.PENDING, digest="") if each.key in keys else each for each in records]

    def restore(self, records: Iterable[ArtifactRecord]) -> None:
        """Go on with what an earlier run left, the oldest first, once the index has its files back."""
        for record in records:
            self._note_job(record)
            place = self._files.find(record.tenant, visible_of(record))
            if record.state == State.DELETING or (record.state != State.PENDING and stored_key(place) != record.key):
                # In the latter case the index has ordered its deletion, because no name leads there.
                self._deletions.add(record.key, record.shared_key)
            elif record.state == State.SPOOLED:
                self._queue.add(Copy(record, None, is_journalled=True, is_settled=True, may_exist=True))
            elif record.state == State.PENDING:
                file = place if isinstance(place, (Holder, Upload)) and is_of(record, place) else None
                copy = Copy(record, file, is_journalled=True, may_exist=True)
                self._queue.add(copy)
                if file is None:
                    self._give_up(copy, Outcome.CHANGED, "no name leads to it any more")

    def start(self) -> None:
        """Begin to copy and to delete."""
        self._loops = [
            self._tasks.repeat(self._round, "copy", self._rest),
            self._tasks.repeat(self._delete, "delete", REST),
        ]
        self._upkeep.start()
        self._tasks.start(self._health.try_out(), "try")

    async def close(self) -> None:
        """Stop. The next start makes the copies that are not made."""
        await self._upkeep.close()
        await self._tasks.close()
        await self._attempts.close()

    def look(self) -> None:
        """Look at once what can be done, because a backend may be back."""
        if len(self._queue):
            self.wake()

    def wake(self) -> None:
        """Look at once what can be done, because there is something new."""
        for loop in self._loops:
            loop.wake()

    # -- what jobs' ends do --------------------------------------------------------------------------------------

    def plan(self, tenant: str, visible: FileRef, file: Holder | Upload, prompt_id: str, folder: str) -> Copy | None:
        """Return the copy that is to be made of a tenant's file; None if there is one, or if too many wait.

        Nothing happens before `submit`.
        """
        if self._queue.is_full(tenant):
            self._metrics.storage_copies.labels(str(Outcome.SKIPPED)).inc()
            if self._is_news("queue"):
                _log.warning("storage_queue_full", waiting=len(self._queue), tenant=tenant)
            return None
        key = new_key(self._names.storage_folder(tenant), folder, visible.filename)
        record = new_record(key, tenant, visible, file, prompt_id)
        return Copy(record, file)

    def under_way(self, tenant: str, visible: FileRef, file: Holder | Upload) -> Copy | None:
        """Return the copy of a tenant's file that is planned already; None if there is none."""
        copy = self._queue.of_name(tenant, visible)
        return copy if copy is not None and copy.file is not None and is_of(copy.record, file) else None

    def submit(self, copies: Iterable[Copy], *, urgent: bool = False) -> None:
        """Make copies from now on; `urgent` ones before all others, for `wait`."""
        for copy in copies:
            if urgent:
                copy.tried = asyncio.Event()
            self._queue.add(copy)
        self.wake()

    def hurry(self, copies: Iterable[Copy]) -> None:
        """Let `wait` wait for copies that are planned already, too, unless they failed and are tried again later."""
        for copy in copies:
            is_under_way = self._queue.get(copy.key) is copy and not copy.is_dropped
            if is_under_way and copy.tried is None and not copy.tries:
                copy.tried = asyncio.Event()

    async def wait(self, copies: Iterable[Copy], seconds: float) -> None:
        """Wait until each copy was tried once, or for so many seconds. Don't wait for what can't be tried now."""
        try:
            async with asyncio.timeout(seconds):
                for copy in copies:
                    if copy.tried is not None and (copy.is_running or self._is_usable(copy.source)):
                        await copy.tried.wait()
        except TimeoutError:
            pass

    def later(self, work: Coroutine[None, None, None], name: str) -> None:
        """Do some work on copies in the background. If the gateway stops before it, the journal has their rows."""
        self._tasks.start(work, name)

    def rows(self, copies: Iterable[Copy]) -> list[ArtifactRecord]:
        """Return the rows of copies, which the caller writes at once."""
        wanted = [copy for copy in copies if not copy.is_dropped]
        for copy in wanted:
            copy.is_journalled = True
            self._note_job(copy.record)
        return [copy.record for copy in wanted]

    def settle(self, copies: Iterable[Copy]) -> None:
        """Let the names lead to the copies that are made already. The journal has their rows, or will have them."""
        self._settle([copy for copy in copies if copy.record.state != State.PENDING and not copy.is_settled])

    def _note_job(self, record: ArtifactRecord) -> None:
        if self._of_jobs is not None and record.state != State.DELETING and record.backend != UPLOADS:
            self._of_jobs.add(record.tenant, record.prompt_id, visible_of(record), record.key)

    def jobs_with_copies(self) -> list[tuple[str, str]]:
        """Return each (tenant, prompt_id) with copies that are to be deleted with its history entry."""
        return self._of_jobs.jobs() if self._of_jobs is not None else []

    def forget_job(self, tenant: str, prompt_id: str) -> None:
        """Delete the copies of a job that left the history, if `storage.delete_with_history` says so."""
        if self._of_jobs is not None:
            self._of_jobs.drop(tenant, prompt_id)
            self.wake()

    # -- what readers do -----------------------------------------------------------------------------------------

    def open(
        self, stored: Stored, start: int = 0, end: int | None = None, *, shared: bool = False
    ) -> AsyncIterator[bytes]:
        """Return the bytes of a file from `start` up to `end`, which is not included.

        Args:
            shared: True for the copy without metadata.

        Raises, while it is read:
            StorageError: the store does not give them.
            SpoolLost: the disk does not.
        """
        key = stored.shared_key if shared else stored.key
        if self._spool.has(spool_name(key)):
            return self._spool.read(spool_name(key), start, end)
        return self._health.get(key, start, end)

    def is_ending(self, key: str) -> bool:
        """Return True if an object is to be deleted, so that nobody may have it any more."""
        return self._deletions.has(key)

    def is_in_store(self, stored: Stored) -> bool:
        """Return True if the store has a file, so that a signed URL of it works."""
        return not self._spool.has(spool_name(stored.key))

    # -- work ----------------------------------------------------------------------------------------------------

    async def _delete(self) -> None:
        """Delete what no name leads to any more."""
        for changes in self._of_jobs.delete() if self._of_jobs is not None else ():
            self._journal.write(changes)
            await asyncio.sleep(0)
        await self._deletions.round()
        if not self._health.is_up and self._slots.are_all_free and self._health.admits(time.monotonic()):
            await self._health.look(f"{self._names.storage_folder('')}/{secrets.token_hex(16)}")

    def _rest(self) -> float:
        now = time.monotonic()
        # What was due could not be done, and whoever makes that possible wakes the loop.
        times = (self._queue.next_at(), None if self._health.is_up else self._health.probe_at)
        return min([REST, *(each - now for each in times if each is not None and each > now)])

    async def _round(self) -> None:
        """Begin attempts, as many as may be made at a time."""
        while self._slots.are_left:
            copy = self._queue.take(time.monotonic(), self._may_begin)
            if copy is None:
                break
            if not copy.is_settled and not is_of_place(copy.record, self._files.find(*copy.name)):
                # Its owner may have deleted the file while the copy waited, so send its bytes nowhere.
                self._give_up(copy, Outcome.CHANGED, _OTHER_FILE)
                continue
            may_put = self._health.admits(time.monotonic())
            if may_put:
                self._health.begin()
            self._slots.take(copy.source)
            copy.is_running = True
            self._attempts.start(self._attempt(copy, copy.source, may_put), copy.record.prompt_id)

    def _may_begin(self, source: str) -> bool:
        return self._slots.has_one(source, is_alone=len(self._fleet.backends) == 1) and self._is_usable(source)

    def _is_known(self, source: str) -> bool:
        """Return False for a backend that is configured no more."""
        return source in (SPOOL, UPLOADS) or source in self._fleet.backends

    def _is_usable(self, source: str) -> bool:
        """Return True if copies from a source may be made now: into the store, or from a backend into the spool.

        None may be while the disk takes no rows, because each copy would leave one to be written.
        """
        if self._journal.trouble:
            return False
        is_up = self._health.admits(time.monotonic())
        if source in (SPOOL, UPLOADS):
            return is_up
        backend = self._fleet.backends.get(source)
        return backend is not None and backend.pulse.alive and (is_up or self._spool.has_room())

    async def _attempt(self, copy: Copy, source: str, may_put: bool) -> None:
        began, again_at = time.monotonic(), None
        try:
            record = await self._copied(copy, may_put)
        except (SourceChanged, SourceMissing, SourceAway, SpoolLost, SpoolFull, StorageError) as error:
            again_at = self._failed(copy, error)
        except Exception as error:  # noqa: BLE001
            # If a file breaks the gateway's own code, try it again later, because else its copy would never be made.
            self._failures.report("storage", error, f"storage:{copy.record.prompt_id}")
            again_at = self._again(copy)
        else:
            self._metrics.storage_copy_seconds.observe(time.monotonic() - began)
            self._made(copy, record)
        finally:
            self._slots.give_back(source)
            copy.is_running = False
            if may_put:
                self._health.ended()
            if copy.tried is not None:
                copy.tried.set()
            self._go_on(copy, again_at)
            self.wake()

    async def _copied(self, copy: Copy, may_put: bool) -> ArtifactRecord:
        """Copy a file into the store; if that fails, or is not to be tried now, into the spool."""
        if may_put:
            try:
                record = await self._copier.to_store(copy.record, copy.note_begun)
                self._health.note_success()
                return await self._copier.share(record) if self.settings.strip_metadata else record
            except StorageError as error:
                self._health.note_failure(error)
                if copy.source in (SPOOL, UPLOADS):
                    raise
        return await self._copier.to_spool(copy.record)

    def _made(self, copy: Copy, record: ArtifactRecord) -> None:
        outcome = Outcome.SPOOLED if record.state == State.SPOOLED else Outcome.STORED
        self._metrics.storage_copies.labels(str(outcome)).inc()
        if outcome is Outcome.STORED:
            self._metrics.storage_bytes.inc(record.size)
        copy.record, copy.tries = record, 0
        if copy.is_journalled and not copy.is_dropped:
            # Else the end of its job writes it.
            self._settle([copy])

    def _settle(self, copies: Iterable[Copy]) -> None:
        """Let names lead to copies, and write their rows. If a name means another file by now, delete the object."""
        settled = []
        for copy in copies:
            if not copy.is_settled and not copy.is_dropped:
                assert copy.file is not None
                copy.is_settled = self._files.set_stored(*copy.name, copy.file, stored_of(copy.record))
                if not copy.is_settled:
                    self._give_up(copy, Outcome.CHANGED, _OTHER_FILE)
            elif copy.is_settled and not copy.is_dropped:
                self._files.renew_stored(*copy.name, stored_of(copy.record))
            if copy.is_settled and not copy.is_dropped:
                settled.append(copy)
        if not settled:
            return
        written = self._journal.write([copy.record for copy in settled])
        written.add_done_callback(lambda _: self.wake())
        for copy in settled:
            if copy.record.state == State.STORED:
                self._queue.remove(copy)
                if self._spool.has(spool_name(copy.key)):
                    self._tasks.start(self._unspool(copy.key, written), "unspool")
            elif not copy.is_running:
                self._queue.put_back(copy)

    async def _unspool(self, key: str, written: asyncio.Future[None]) -> None:
        """Delete a file of the spool once the journal knows that the store has it."""
        await asyncio.shield(written)
        await self._spool.remove(spool_name(key))

    def _go_on(self, copy: Copy, again_at: float | None) -> None:
        """Let a copy wait for its next turn after an attempt, or delete it if no name leads to it any more."""
        if copy.is_dropped:
            self._queue.remove(copy)
            if copy.has_left_something:
                self._deletions.add(copy.key, copy.record.shared_key)
        elif again_at is not None:
            self._queue.put_back(copy, again_at)
        elif copy.record.state != State.STORED and (copy.is_settled or copy.record.state == State.PENDING):
            self._queue.put_back(copy)

    # -- failures ------------------------------------------------------------------------------------------------

    def _failed(self, copy: Copy, error: Exception) -> float | None:
        """Note a failed attempt. Return the time of the next; None if it is not to wait, or if there is none."""
        if isinstance(error, SourceChanged) or (isinstance(error, SourceMissing) and copy.tries + 1 >= MAX_MISSING):
            is_changed = isinstance(error, SourceChanged)
            self._give_up(copy, Outcome.CHANGED if is_changed else Outcome.MISSING, str(error))
            return None
        self._metrics.storage_copies.labels(str(Outcome.FAILED)).inc()
        if isinstance(error, SpoolLost):
            self._lose(copy, error)
        elif isinstance(error, SpoolFull) and self._is_news("spool"):
            _log.warning("storage_spool_full", error=str(error), bytes=self._spool.bytes)
        _log.debug("storage_copy_failed", key=copy.key, error=str(error))
        return self._again(copy)

    def _again(self, copy: Copy) -> float:
        copy.tries += 1
        return time.monotonic() + wait_after(copy.tries, random())

    def _lose(self, copy: Copy, error: SpoolLost) -> None:
        """Copy a file again from its backend, because the spool has lost it."""
        _log.warning("spooled_files_lost", files=1, error=str(error))
        if copy.is_settled:
            self._files.drop_stored(*copy.name)
        # Keep its row, because it is tried again.
        orders = [each for each in self._files.take_dropped() if each.key != copy.key]
        copy.record = replace(copy.record, state=State.PENDING, digest="")
        copy.is_settled, copy.is_dropped = False, False
        self._queue.hold(copy)
        place = self._files.find(*copy.name)
        if isinstance(place, Holder) and is_of(copy.record, place):
            copy.file = place
            self._journal.write([*orders, copy.record])
        else:
            self._journal.write(orders)
            self._give_up(copy, Outcome.MISSING, "its bytes are lost, and its backend has another file of its name")

    def _give_up(self, copy: Copy, outcome: Outcome, reason: str) -> None:
        """Make a copy no more. Delete what the store may have of it."""
        self._queue.remove(copy)
        copy.is_dropped = True
        if copy.tried is not None:
            copy.tried.set()
        self._metrics.storage_copies.labels(str(outcome)).inc()
        record = copy.record
        about = {"prompt_id": record.prompt_id, "tenant": record.tenant, "backend": record.backend, "reason": reason}
        if outcome is Outcome.MISSING:
            _log.warning("output_not_stored", **about)
        else:
            _log.info("output_not_stored", **about)
        if copy.has_left_something:
            # With a whole row, because the journal may not have it yet.
            gone = replace(record, state=State.DELETING, kind="", subfolder="", filename="")
            self._journal.write([gone])
            if not copy.is_running:
                self._deletions.add(copy.key, record.shared_key)
        elif copy.is_journalled:
            self._journal.write([ArtifactRemoval(copy.key)])

    def _dropped(self, stored: Stored) -> None:
        """Delete the object of a name that ended. The caller writes the order."""
        copy = self._queue.get(stored.key)
        if copy is None:
            self._deletions.add(stored.key, stored.shared_key)
        else:
            copy.is_dropped = True
            self._queue.remove(copy)
            if not copy.is_running:
                self._deletions.add(stored.key, stored.shared_key)
        self.wake()

    def _is_news(self, about: str) -> bool:
        """Return True if so much time has passed since the last line about this that another one may follow."""
        now = time.monotonic()
        if now < self._told.get(about, 0.0):
            return False
        self._told[about] = now + TELL_SECONDS
        return True
