"""Wiring of the jobs package, and the receiver of the fleet's events."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from gateway.bus import Bus
from gateway.catalogue.catalogue import Catalogue
from gateway.catalogue.path_families import PathFamilies
from gateway.catalogue.refresher import Refresher
from gateway.comfy.events import Event
from gateway.comfy.file_refs import FileRef
from gateway.comfy.responses import MARK, Queue
from gateway.files.index import FileIndex, Holder
from gateway.files.placements import Placement, Placements
from gateway.files.transfer import FileTransfer
from gateway.files.uploads import Uploads
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.admission.admission import Admission
from gateway.jobs.admission.judged_backends import IsolationJudge
from gateway.jobs.events.client_events import ClientEvents
from gateway.jobs.events.results import Results
from gateway.jobs.files.inputs import Inputs
from gateway.jobs.files.outputs import Outputs
from gateway.jobs.isolation.upload_folders import UploadPlaces
from gateway.jobs.lifecycle.cancellation import Cancellation
from gateway.jobs.lifecycle.completion import Completion
from gateway.jobs.lifecycle.event_relay import EventRelay
from gateway.jobs.lifecycle.failed_runs import FailedRuns
from gateway.jobs.lifecycle.history_deletion import HistoryDeletion
from gateway.jobs.lifecycle.large_entries import LargeEntries
from gateway.jobs.lifecycle.large_events import LargeEvents
from gateway.jobs.lifecycle.reconciliation import Reconciliation
from gateway.jobs.lifecycle.watchdog import Watchdog
from gateway.jobs.parsing.json_reader import JsonReader
from gateway.jobs.scheduling.backend_prompts import extra_of
from gateway.jobs.scheduling.dispatcher import Dispatcher
from gateway.jobs.scheduling.lost_inputs import LostInputs
from gateway.jobs.scheduling.outdated_copies import OutdatedCopies
from gateway.jobs.scheduling.retries import Retries
from gateway.jobs.state import named_ids, partner_keys
from gateway.jobs.state.bindings import Bindings
from gateway.jobs.state.history import History
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.prompt_bounds import Bounds
from gateway.jobs.state.records import is_counted, restored
from gateway.jobs.state.retention import Retention
from gateway.settings import Settings
from gateway.store.blobs import BlobStore
from gateway.store.protocol import Store
from gateway.store.spool import Spool
from gateway.telemetry.metrics import Metrics
from gateway.tenants.keys import LOCAL_TENANT, FileVisibility, Keyring
from gateway.tenants.limits import Limits
from gateway.tenants.policy import Policies
from gateway.tenants.secret_names import SecretNames


class Engine:
    """Engine of all jobs. Call `restore`, then start the fleet with this as its listener; call `close` at the end.

    Args:
        keyring: source of each tenant's file visibility, and of whether it is alone on the fleet.
        names: maker of secret names for tenants' files on backends that they share with strangers.
        spool: store of large messages that wait for their readers.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        bus: Bus,
        fleet: Fleet,
        metrics: Metrics,
        client_id: str,
        blobs: BlobStore,
        policies: Policies,
        limits: Limits,
        keyring: Keyring,
        names: SecretNames,
        spool: Spool,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._keyring = keyring
        self._client_id = client_id
        visibility = keyring.visibility
        self.files = FileIndex()
        self.placements = Placements()
        self.catalogue = Catalogue(
            fleet, settings.catalogue, self.files, self.placements, settings.data_dir / "catalogue", metrics
        )
        self.refresher = Refresher(fleet, self.catalogue, metrics, self._is_idle)
        self.transfer = FileTransfer(fleet, blobs, self.placements, store, metrics, settings.uploads.max_size)
        self.history = History(
            store,
            settings.history.max_items,
            settings.history.memory,
            settings.history.max_bytes,
            settings.store.retention.max_bytes,
        )
        self.ledger = Ledger(store, bus, self.history, client_id)
        judge = IsolationJudge(self.catalogue, policies, self._is_apart, names)
        self.places = UploadPlaces(names, judge.is_hidden)
        self.outputs = Outputs(
            self.files,
            self.placements,
            store,
            self.ledger,
            visibility,
            self.places,
            judge.steering,
            settings.store.retention.max_files,
        )
        dispatch = settings.dispatch
        bounds = Bounds(
            dispatch.max_nodes,
            dispatch.max_depth,
            dispatch.max_graph_values,
            dispatch.max_body_values,
            dispatch.max_outputs,
            dispatch.max_prompt_bytes,
        )
        self.reader = JsonReader(bounds, dispatch.max_prompt_bytes, metrics)
        client_events = ClientEvents(bus, self.ledger.begin)
        self.completion = Completion(
            self.ledger,
            fleet,
            self.outputs,
            bus,
            client_events,
            metrics,
            LargeEntries(self.reader, spool, self.outputs),
            self._missing,
            lambda job, backend, entry: self.failed_runs.runs_again(job, backend, entry),
            lambda: self.dispatcher.wake(),
            judge.is_kept_apart,
        )
        self.uploads = Uploads(settings.uploads, self.files, blobs, store, limits, self.ledger.named.has)
        inputs = Inputs(
            fleet,
            self.files,
            self.outputs,
            self.placements,
            self.transfer,
            self.uploads,
            self.catalogue,
            policies,
            visibility,
            self._is_apart,
            self.places,
            judge.is_reviewed,
        )
        self.bindings = Bindings()
        self.families = PathFamilies(self.catalogue, settings.routes.sticky)
        self.admission = Admission(
            self.catalogue, inputs, policies, judge, limits, self.bindings, settings.dispatch.max_outputs
        )
        self.dispatcher = Dispatcher(
            self.ledger,
            fleet,
            inputs,
            self.admission,
            settings.dispatch,
            metrics,
            client_id,
            settings.probe.lost_after,
            self.completion.fail,
            client_events,
            limits,
            keyring.is_alone,
            OutdatedCopies(fleet, self.catalogue, self.refresher, self.admission),
        )
        self.retries = Retries(fleet, settings.dispatch, metrics, self.dispatcher.wake)
        self.failed_runs = FailedRuns(self.ledger, fleet, settings.dispatch, self.retries, LostInputs(inputs))
        self.watchdog = Watchdog(
            self.ledger, fleet, self.completion, self.retries, settings.dispatch, policies, metrics
        )
        self.spool = spool
        results = Results(spool, self._describe)
        self.event_relay = EventRelay(
            self.ledger,
            self.completion,
            self.outputs,
            client_events,
            metrics,
            results,
            judge.is_kept_apart,
            self._note_ids,
        )
        self.large_events = LargeEvents(self.event_relay, self.reader, spool, self.outputs)
        self.reconciliation = Reconciliation(
            self.ledger,
            fleet,
            self.dispatcher,
            self.completion,
            self.event_relay,
            settings.dispatch,
            self.retries,
            self.admission,
            policies,
            client_id,
        )
        self.history_deletion = HistoryDeletion(fleet)
        self.cancellation = Cancellation(
            self.ledger, fleet, self.completion, self.history_deletion, self.dispatcher.wake
        )
        self.retention = Retention(settings.store.retention, self.history, store)
        metrics.jobs_waiting.set_function(lambda: len(self.ledger.waiting))
        metrics.jobs_open.set_function(lambda: len(self.ledger))
        metrics.uploads_bytes.set_function(lambda: self.uploads.bytes)
        metrics.uploads_aside_bytes.set_function(lambda: blobs.aside_bytes)

    def start(self) -> None:
        """Start the periodic tasks, after the fleet has started."""
        self._refuse_denied()
        self.watchdog.start()
        self.catalogue.start()
        self.uploads.start()
        self.retention.start()

    async def close(self) -> None:
        """Stop all work in the gateway. Jobs on backends run on, and the next start finds them."""
        await self.reader.close()
        parts = (
            self.watchdog,
            self.cancellation,
            self.retries,
            self.dispatcher,
            self.reconciliation,
            self.event_relay,
            self.completion,
        )
        for part in (
            *parts,
            self.history_deletion,
            self.retention,
            self.refresher,
            self.catalogue,
            self.uploads,
            self.transfer,
        ):
            await part.close()

    async def restore(self) -> None:
        """Read the journal: files, history, open jobs. The jobs are reconciled later, when their backends connect."""
        for file in await self._store.files():
            visible = FileRef(file.kind, file.subfolder, file.filename)
            folder = file.subfolder if file.upstream_subfolder is None else file.upstream_subfolder
            there = FileRef(file.kind, folder, file.upstream)
            self.files.restore(file.tenant, visible, Holder(file.backend, there, file.etag), bool(file.anew))
        for placed in await self._store.placements():
            ref = FileRef(placed.kind, placed.subfolder, placed.filename)
            wanted = FileRef(placed.kind, placed.subfolder, placed.wanted)
            self.placements.put(placed.backend, wanted, placed.digest, Placement(ref, placed.etag))
        await self.uploads.restore()
        await self.catalogue.restore()
        for record in await self._store.history():
            self.history.restore(record)
            if record.upstream_id:
                self.ledger.orphans.ended(record.upstream_id)
        self._restore_count()
        names = {backend.name for backend in self._fleet.configured}
        for job_record in await self._store.open_jobs():
            # If an earlier version sent a job under its client's id, and an ended job has the same, run it again unless
            # it is in a queue still, because an entry that a backend has under that id may be either's.
            is_doubtful = not job_record.mark and self.ledger.orphans.has_ended(job_record.upstream_id)
            job = restored(job_record, frozenset() if is_doubtful else names)
            self.ledger.restore(job)
            self.retries.resume(job)

    def _restore_count(self) -> None:
        """Continue the count after the gateway's numbers in the history. Clients' numbers are floats there.

        Look at the newest entries first, so that few summaries are parsed.
        """
        for record in reversed(list(self.history.of(None))):
            if self.ledger.counts(record.number) and is_counted(record.summary):
                self.ledger.restore_count(record.number)

    def _describe(self, backend: str, node_class: str) -> Mapping[str, Any] | None:
        """Return a backend's description of a node class, else another backend's; None if there is none."""
        known = self.catalogue.info(backend).get(node_class)
        if known is None and self.catalogue.merged_catalogue is not None:
            known = self.catalogue.merged_catalogue.classes.get(node_class)
        return known

    def _is_idle(self, backend: Backend) -> bool:
        """Return True if a backend has nothing to run, neither of the gateway's jobs nor of others."""
        return not (backend.foreign_running or backend.foreign_pending or any(self.ledger.load(backend.name)))

    def _is_apart(self, tenant: str) -> bool:
        """Return True if a tenant shares the fleet with strangers, or with strangers' files.

        A tenant's files may outlast its key. An admin's files don't count, nor files from before there were keys,
        because their owners operate the fleet.
        """
        if self._keyring.visibility(tenant) is FileVisibility.ALL:
            return False
        if not self._keyring.is_alone(tenant):
            return True
        return self.files.is_others_too({tenant, LOCAL_TENANT, *self._keyring.admin_tenants})

    def _refuse_denied(self) -> None:
        """Fail waiting jobs of an earlier run that name node classes or models their tenant may no longer use."""
        for job in self.ledger.waiting.jobs():
            found = self.admission.denied(job.tenant, job.submission)
            if found:
                self.completion.fail(job, found[0].sentence, "PolicyDenied")

    def _note_ids(self, job: Job, event: Event) -> None:
        """Note the ids in an event of a custom node, and those of results that its process keeps."""
        if event.type != "executed":
            job.live.hear_ids(named_ids.in_value(event.data))
        elif job.backend is not None and self.families.keep_state():
            ids = [each for each in named_ids.in_value(event.data.get("output")) if named_ids.is_state_id(each)]
            self.bindings.bind(job.tenant, ids, job.backend, time.monotonic(), pins=True)

    def _missing(self, job: Job) -> None:
        self.reconciliation.lose(job, "has no history entry for it")
        self.dispatcher.wake()

    # -- FleetListener -------------------------------------------------------------------------------------------

    def heard_event(self, backend: Backend, event: Event) -> None:
        """Handle a text message of a backend."""
        self.event_relay.heard_event(backend, event)

    async def heard_long_event(self, backend: Backend, event: Event) -> None:
        """Handle a long text message of a backend in short steps."""
        await self.event_relay.heard_long_event(backend, event)

    def heard_binary(self, backend: Backend, frame: bytes) -> None:
        """Handle a binary message of a backend."""
        self.event_relay.heard_binary(backend, frame)

    async def heard_large_text(self, backend: Backend, text: bytes) -> bool:
        """Handle a large text message of a backend in a process apart. Return False if it can't be read."""
        return await self.large_events.heard(backend, text)

    async def heard_large_binary(self, backend: Backend, frame: bytes) -> None:
        """Handle a large binary message of a backend in short steps."""
        await self.event_relay.heard_large_binary(backend, frame)

    def heard_too_much(self, backend: Backend) -> None:
        """Note that a message of a backend was too large to read."""
        self.watchdog.heard_too_much(backend)

    def is_ours(self, backend: Backend, item: Sequence[Any]) -> bool:
        """Return True if the gateway sent an item of a backend's queue: for a job, an orphan or an ended prompt."""
        upstream_id, orphans = item[1], self.ledger.orphans
        is_known = self.ledger.find_upstream(backend.name, upstream_id) is not None
        is_known = is_known or orphans.has(backend.name, upstream_id) or orphans.has_ended(upstream_id)
        return is_known or extra_of(item).get("client_id") == self._client_id

    async def connected(self, backend: Backend) -> None:
        """Reconcile a backend whose socket was opened, and read its node classes."""
        self.transfer.reconnected(backend)
        self.history_deletion.connected(backend.name)
        await self.reconciliation.reconcile(backend)
        await self.catalogue.introduce(backend)

    def probed(self, backend: Backend, queue: Queue, asked_at: float) -> None:
        """Check jobs against the queue from a backend's probe, and send waiting jobs."""
        self.reconciliation.probed(backend, queue, asked_at)
        self.dispatcher.wake()

    def down(self, backend: Backend) -> None:
        """Requeue the jobs of a backend that is gone or lost."""
        self.bindings.lose(backend.name, time.monotonic())
        self.reconciliation.down(backend)

    def available(self) -> None:
        """Send waiting jobs, because a backend may take work."""
        self.dispatcher.wake()

    def foreign_items(self) -> tuple[list[object], list[object]]:
        """Return the running and the pending prompts of others on backends, at the last probe, for admins."""
        backends = [b for b in self._fleet.backends.values() if b.foreign_running or b.foreign_pending]
        if not backends:
            return [], []
        running = chain.from_iterable([(b, item) for item in b.queue.running] for b in backends if b.pulse.alive)
        pending = chain.from_iterable([(b, item) for item in b.queue.pending] for b in backends if b.pulse.alive)
        return (
            [_shown(item) for backend, item in running if not self.is_ours(backend, item)],
            [_shown(item) for backend, item in pending if not self.is_ours(backend, item)],
        )


def _shown(item: Sequence[Any]) -> Any:
    """Return a foreign item of a queue as an admin may see it: no partner keys, and no mark of another gateway."""
    extra = {key: value for key, value in extra_of(item).items() if key != MARK}
    return partner_keys.without([*item[:3], extra, *item[4:]] if extra_of(item) else list(item))
