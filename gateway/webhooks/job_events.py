"""Events of jobs and backends: they go to the journal with the state that caused them, and then to the outbox.

The end of a job and its event are one commit. The event is sent after it. If the gateway ends between the two, the next
run finds the event in the journal, and sends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from gateway.jobs.state.job import ENDED, Job
from gateway.jobs.state.job_end import End
from gateway.jobs.state.transitions import State
from gateway.store.protocol import Change, Store
from gateway.store.webhook_records import EventRemoval
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Failures
from gateway.webhooks.delivery import Deliveries
from gateway.webhooks.model import (
    Delivery,
    Endpoint,
    Event,
    EventType,
    Source,
    Target,
    job_event_id,
    new_event_id,
)
from gateway.webhooks.outbox import Outbox, deliveries_for
from gateway.webhooks.payload import backend_payload, bare_payload, job_payload, type_of_end
from gateway.webhooks.records import delivery_record, event_record

_log = logs.get("webhooks")


class JobEvents:
    """Source of the events of jobs and backends: a part of the ledger (`job_end.py`) and of the fleet.

    Args:
        public_url: the address of this gateway for its clients; links are paths if it is empty.

    Attributes:
        has_admin: returns True if a tenant has an admin's key now.
    """

    def __init__(self, store: Store, outbox: Outbox, deliveries: Deliveries, metrics: Metrics, public_url: str) -> None:
        self._store = store
        self._outbox = outbox
        self._deliveries = deliveries
        self._metrics = metrics
        self._public_url = public_url
        # Events of jobs that end, until the journal has the end.
        self._ending: dict[tuple[str, str], tuple[Event, list[Delivery]]] = {}
        # Events of earlier steps that the journal does not have yet.
        self._under_way: set[str] = set()
        self._down: set[str] = set()
        self._failures = Failures()
        self.has_admin: Callable[[str], bool] = lambda _: True

    # -- jobs ----------------------------------------------------------------------------------------------------

    def queued(self, job: Job) -> None:
        """Tell that a job is accepted. One that ended before its client had its response has told more."""
        if job.state not in ENDED:
            self._tell(job, EventType.JOB_QUEUED)

    def started(self, job: Job) -> None:
        """Tell that a job runs, if that was not told before. A job may start before its client has its response."""
        self._tell(job, EventType.JOB_QUEUED)
        self._tell(job, EventType.JOB_STARTED)

    def changes(self, job: Job, end: End) -> Sequence[Change]:
        """Return the rows of the event of a job's end, if somebody wants it."""
        type_ = type_of_end(end.outcome)
        # If a job is cancelled while the journal writes another end of it, that end's event must not be sent.
        undone = self.undone(job)
        endpoints, target = self._wanting(job, type_)
        if not endpoints and target is None:
            return undone
        event, deliveries = self._ending[job.key] = self._event(job, type_, endpoints, target, end)
        undone = [each for each in undone if each != EventRemoval(event.id)]
        return [*undone, event_record(event), *map(delivery_record, deliveries)]

    def ended(self, job: Job) -> None:
        """Send the event of a job's end, once the journal has it."""
        made = self._ending.pop(job.key, None)
        if made is not None and job.state is not State.CANCELLED:
            self._deliveries.add(*made)
        elif made is not None:
            # A cancelled job ends before the journal knows that. On a full disk it may run after another start.
            sure = self._store.write([])
            sure.add_done_callback(lambda done: None if done.cancelled() else self._deliveries.add(*made))

    def undone(self, job: Job) -> Sequence[Change]:
        """Return the removal of the event of a job's end, because the job did not end so."""
        made = self._ending.pop(job.key, None)
        return () if made is None else [EventRemoval(made[0].id)]

    def _tell(self, job: Job, type_: EventType) -> None:
        endpoints, target = self._wanting(job, type_)
        if not endpoints and target is None:
            return
        id_ = job_event_id(job.tenant, job.prompt_id, job.create_time, type_)
        if not (self._outbox.has(id_) or id_ in self._under_way):
            self._write(*self._event(job, type_, endpoints, target))

    def _wanting(self, job: Job, type_: EventType) -> tuple[list[Endpoint], Target | None]:
        endpoints = self._outbox.wanting(job.tenant, type_) if self._outbox.has_endpoints else []
        webhook = job.submission.webhook
        if webhook is None or str(type_) not in webhook.events:
            return endpoints, None
        return endpoints, Target(webhook.url, webhook.secret)

    def _event(
        self, job: Job, type_: EventType, endpoints: Sequence[Endpoint], target: Target | None, end: End | None = None
    ) -> tuple[Event, list[Delivery]]:
        now = time.time()
        try:
            payload = job_payload(type_, job, now, end, self._public_url)
        except Exception as error:  # noqa: BLE001
            # If a result breaks the gateway's own code, tell the end alone, because else the job would never end.
            self._failures.report("webhooks", error, f"webhooks:{job.prompt_id}", **job.log_ids)
            payload = bare_payload(type_, job, now, self._public_url)
        id_ = job_event_id(job.tenant, job.prompt_id, job.create_time, type_)
        event = Event(id_, job.tenant, type_, now, job.prompt_id, payload, len(payload))
        return event, deliveries_for(event, endpoints, target)

    # -- backends ------------------------------------------------------------------------------------------------

    def backend_down(self, name: str) -> None:
        """Tell that a backend is gone or lost."""
        self._down.add(name)
        self._tell_of_backend(name, EventType.BACKEND_DOWN)

    def backend_up(self, name: str) -> None:
        """Tell that a backend is back, if it was told that it is down."""
        if name in self._down:
            self._down.discard(name)
            self._tell_of_backend(name, EventType.BACKEND_UP)

    def backend_poisoned(self, name: str) -> None:
        """Tell that a backend can't use its GPU until its process is a new one."""
        self._tell_of_backend(name, EventType.BACKEND_POISONED)

    def _tell_of_backend(self, name: str, type_: EventType) -> None:
        now = time.time()
        for tenant in self._outbox.tenants():
            endpoints = self._outbox.wanting(tenant, type_)
            if not self.has_admin(tenant):
                # Whoever made these was an admin, and is none any more. The file's endpoints are the operator's.
                endpoints = [each for each in endpoints if each.source is Source.CONFIG]
            if endpoints:
                payload = backend_payload(type_, name, now)
                event = Event(new_event_id(), tenant, type_, now, None, payload, len(payload))
                self._write(event, deliveries_for(event, endpoints))

    # -- writing -------------------------------------------------------------------------------------------------

    def _write(self, event: Event, deliveries: list[Delivery]) -> None:
        """Write an event, and send it once the journal has it."""
        self._under_way.add(event.id)

        def written(done: asyncio.Future[None]) -> None:
            self._under_way.discard(event.id)
            if done.cancelled():
                return
            if (error := done.exception()) is None:
                self._deliveries.add(event, deliveries)
                return
            about = {"event_id": event.id, "type": str(event.type), "tenant": event.tenant}
            _log.error("webhook_event_lost", **about, prompt_id=event.prompt_id, reason=str(error))
            self._metrics.webhook_deliveries.labels("lost").inc(len(deliveries))

        self._store.write([event_record(event), *map(delivery_record, deliveries)]).add_done_callback(written)
