"""Wiring of the jobs package, and the receiver of the fleet's events."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from gateway.artifacts.object_store import ObjectStore
from gateway.bus import Bus
from gateway.catalogue.catalogue import Catalogue
from gateway.catalogue.path_families import PathFamilies
from gateway.catalogue.refresher import Refresher
from gateway.comfy.events import Event
from gateway.comfy.responses import Queue, SystemStats
from gateway.files.hidden_texts import Rewrite
from gateway.files.index import FileIndex
from gateway.files.placements import Placements
from gateway.files.transfer import FileTransfer
from gateway.files.uploads import Uploads
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.jobs.admission.admission import Admission
from gateway.jobs.admission.device_needs import DeviceNeeds
from gateway.jobs.admission.judged_backends import IsolationJudge
from gateway.jobs.events.client_events import ClientEvents
from gateway.jobs.events.results import Results
from gateway.jobs.files.backend_sweep import BackendSweep
from gateway.jobs.files.ended_uploads import EndedUploads
from gateway.jobs.files.inputs import Inputs
from gateway.jobs.files.outputs import Outputs
from gateway.jobs.files.restored_files import restore_files
from gateway.jobs.files.stored_outputs import delete_with_history
from gateway.jobs.foreign_prompts import foreign_items
from gateway.jobs.isolation.upload_folders import UploadPlaces
from gateway.jobs.kept_learning import KeptLearning
from gateway.jobs.kept_models import KeptModels
from gateway.jobs.lifecycle.cancellation import Cancellation
from gateway.jobs.lifecycle.completion import Completion
from gateway.jobs.lifecycle.event_relay import EventRelay
from gateway.jobs.lifecycle.failed_runs import FailedRuns
from gateway.jobs.lifecycle.fleet_status import FleetStatus
from gateway.jobs.lifecycle.history_deletion import HistoryDeletion
from gateway.jobs.lifecycle.large_entries import LargeEntries
from gateway.jobs.lifecycle.large_events import LargeEvents
from gateway.jobs.lifecycle.owner_deletion import OwnerDeletion
from gateway.jobs.lifecycle.reconciliation import Reconciliation
from gateway.jobs.lifecycle.watchdog import Watchdog
from gateway.jobs.listed_models import ListedModels
from gateway.jobs.live_metrics import show_live
from gateway.jobs.parsing.json_reader import JsonReader
from gateway.jobs.scheduling.backend_prompts import extra_of
from gateway.jobs.scheduling.dispatcher import Dispatcher
from gateway.jobs.scheduling.etas import Etas
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.scheduling.lost_inputs import LostInputs
from gateway.jobs.scheduling.outdated_copies import OutdatedCopies
from gateway.jobs.scheduling.retries import Retries
from gateway.jobs.scheduling.routing_parts import make_routing
from gateway.jobs.state import named_ids
from gateway.jobs.state.bindings import Bindings
from gateway.jobs.state.history import History
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.poisonous import PoisonousGraphs
from gateway.jobs.state.prompt_bounds import Bounds
from gateway.jobs.state.records import is_counted, restored
from gateway.jobs.state.retention import Retention
from gateway.jobs.storage import make_storage
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
        object_store: the store to which files are copied; None if `storage` is off.
        rate: seconds of routing for each real second; 1 but in simulations that run fast.

    Attributes:
        artifacts: the copies of files in object storage; None if `storage` is off.
        stored_files: what serves these copies; None if `storage` is off.
        entry_links: links to them beside the outputs of jobs; None if readers get none (`storage.links`).
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
        object_store: ObjectStore | None = None,
        rate: float = 1.0,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._keyring = keyring
        self._client_id = client_id
        visibility = keyring.visibility
        self.files = FileIndex(settings.store.retention.max_files)
        self.placements = Placements()
        self.catalogue = Catalogue(
            fleet, settings.catalogue, self.files, self.placements, settings.data_dir / "catalogue", metrics
        )
        self.refresher = Refresher(fleet, self.catalogue, metrics, self.is_idle)
        self.transfer = FileTransfer(fleet, blobs, self.placements, store, metrics, settings.uploads.max_size)
        self.history = History(
            store,
            settings.history.max_items,
            settings.history.memory,
            settings.history.max_bytes,
            settings.store.retention.max_bytes,
        )
        self.ledger = Ledger(store, bus, self.history, client_id)
        self.poisonous = PoisonousGraphs(store, settings.poison.remember_seconds, self._has_open)
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
            are_stored=object_store is not None,
        )
        self.artifacts, self.stored_files, self.entry_links, stored = make_storage(
            *(settings, object_store, fleet, self.files, store, names, self._rewriting, blobs.path, metrics),
            self.ledger.named.has,
            lambda: self.reader,
        )
        self.ledger.steps.at_end = (stored,) if stored is not None else ()
        self._hides_names = settings.outputs.hide_names
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
        listed_models = ListedModels(self._describe, is_shown=metrics.job_times.by_model)
        self.learning = Learning(metrics, rate, settings.routing.out_of_memory_seconds)
        self.kept_learning = KeptLearning(store, self.learning)
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
            listed_models.name_of,
            self.learning,
            stored,
        )
        self.uploads = Uploads(settings.uploads, self.files, blobs, store, limits, self.ledger.named.has)
        self.ended_uploads = EndedUploads(self.files, self.uploads)
        self._forgets_uploads = settings.uploads.after_job == "forget"
        if self._forgets_uploads:
            self.ledger.steps.at_end = (*self.ledger.steps.at_end, self.ended_uploads)
        self.inputs = inputs = Inputs(
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
            None if self.stored_files is None else self.stored_files.read,
        )
        parts = self.files, self.placements, self.uploads, self.ledger, self.artifacts
        self.backend_sweep = BackendSweep(*parts, settings.storage, store, started_at=time.monotonic())
        self.bindings = Bindings()
        self.families = PathFamilies(self.catalogue, settings.routes.sticky)
        self.admission = Admission(
            *(self.catalogue, inputs, policies, judge, limits, self.bindings),
            DeviceNeeds(fleet, policies, self.learning.out_of_memory),
            settings.dispatch.max_outputs,
        )
        self._routing = make_routing(
            *(settings.routing, self.ledger, fleet, inputs, self.admission, self.learning, limits, policies),
            *(keyring.is_alone, self._is_apart, metrics),
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
            self._routing,
            OutdatedCopies(fleet, self.catalogue, self.refresher, self.admission),
            self.poisonous,
        )
        self.retries = Retries(fleet, settings.dispatch, metrics, self.dispatcher.wake)
        self.failed_runs = FailedRuns(
            self.ledger,
            fleet,
            settings.dispatch,
            self.retries,
            LostInputs(inputs),
            self.poisonous,
            self.admission.device_needs,
            self.admission.refresh_able,
        )
        self.watchdog = Watchdog(
            self.ledger, fleet, self.completion, self.retries, settings.dispatch, policies, metrics
        )
        self.spool = spool
        self.event_relay = EventRelay(
            self.ledger,
            self.completion,
            self.outputs,
            client_events,
            metrics,
            Results(spool, self._describe),
            judge.is_kept_apart,
            self._note_ids,
            listed_models.name_of,
            self.learning,
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
        self.owner_deletion = OwnerDeletion(
            self.ledger,
            fleet,
            self.files,
            self.placements,
            self.uploads,
            store,
            self.reader,
            self.admission,
            self.cancellation,
            self.places,
        )
        self.retention = Retention(settings.store.retention, self.history, store)
        self.fleet_status = FleetStatus(self.ledger, fleet, settings.log)
        self._models = KeptModels(store, metrics.job_times)
        show_live(metrics, self.ledger, fleet, self.catalogue)
        self._show_state(metrics, blobs)

    def _show_state(self, metrics: Metrics, blobs: BlobStore) -> None:
        """Let metrics read the state of graphs and uploads."""
        metrics.graphs_refused.set_function(lambda: len(self.poisonous))
        metrics.uploads_bytes.set_function(lambda: self.uploads.bytes)
        metrics.uploads_aside_bytes.set_function(lambda: blobs.aside_bytes)

    def start(self) -> None:
        """Start the periodic tasks, after the fleet has started."""
        self._refuse_denied()
        self.watchdog.start()
        self.catalogue.start()
        self.uploads.start()
        if self._forgets_uploads:
            self.ended_uploads.restore()
        self.retention.start()
        if self.artifacts is not None:
            self.artifacts.start()
        self.fleet_status.start()
        self._models.start()
        self.kept_learning.start()

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
            *((self.artifacts,) if self.artifacts is not None else ()),
            self.history_deletion,
            self.fleet_status,
            self.retention,
            self._models,
            self.kept_learning,
            self.refresher,
            self.catalogue,
            self.ended_uploads,
            self.uploads,
            self.transfer,
        ):
            await part.close()

    async def restore(self) -> None:
        """Read the journal: files, history, open jobs. The jobs are reconciled later, when their backends connect."""
        parts = self.placements, self.artifacts, self.outputs
        rows, copies, orders = await restore_files(self._store, self.files, *parts)
        await self._models.restore()
        await self.kept_learning.restore()
        await self.uploads.restore()
        if orders := [*orders, *copies.attach_uploads(self.files), *self.files.take_dropped()]:
            self._store.write(orders)
        if self.artifacts is not None:
            self.artifacts.restore(rows)
        await self.catalogue.restore()
        await self.poisonous.restore(time.time())
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
            self.poisonous.restore_job(job)
        if self.artifacts is not None:
            delete_with_history(self.artifacts, self.history, self._has_open)

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

    @property
    def etas(self) -> Etas:
        """Return the expected times of open jobs."""
        return self._routing.etas

    def is_idle(self, backend: Backend) -> bool:
        """Return True if a backend has nothing to run, neither of the gateway's jobs nor of others."""
        return not (backend.foreign_running or backend.foreign_pending or any(self.ledger.load(backend.name)))

    def _rewriting(self, tenant: str) -> Rewrite | None:
        """Return the function that puts a tenant's own names into the texts of its PNG files; None to leave them."""
        is_hidden = self._hides_names and tenant not in self._keyring.admin_tenants
        return partial(self.outputs.reveal_text, tenant) if is_hidden and self.admission.is_judged(tenant) else None

    def _has_open(self, tenant: str, prompt_id: str) -> bool:
        """Return True if a tenant has an open job of this id."""
        return self.ledger.find(tenant, prompt_id) is not None

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
        self.ledger.busy.foreign(backend.name, time.monotonic(), runs=backend.foreign_running > 0)
        self._routing.board.changed(backend.name)
        self.reconciliation.probed(backend, queue, asked_at)
        self.dispatcher.wake()

    def measured(self, backend: Backend, stats: SystemStats) -> None:
        """Take note of a backend's launch options and devices."""
        self.learning.measured(backend.name, stats.system)
        if self.admission.device_needs.measured(backend):
            self.dispatcher.wake()

    def down(self, backend: Backend) -> None:
        """Requeue the jobs of a backend that is gone or lost."""
        now = time.monotonic()
        self.ledger.busy.foreign(backend.name, now, runs=False)
        if backend.health is Health.GONE:
            self.learning.relaunched(backend.name)
        else:
            self.learning.emptied(backend.name)
        self.bindings.lose(backend.name, now)
        self._routing.board.changed(backend.name)
        self.admission.device_needs.look()
        self.reconciliation.down(backend)

    def available(self) -> None:
        """Send waiting jobs, and copy files that wait, because a backend may be back."""
        self._routing.board.all_changed()
        self.admission.device_needs.look()
        self.dispatcher.wake()
        if self.artifacts is not None:
            self.artifacts.look()

    def foreign_items(self) -> tuple[list[object], list[object]]:
        """Return the running and the pending prompts of others on backends, at the last probe, for admins."""
        return foreign_items(self._fleet.backends.values(), self.is_ours)
