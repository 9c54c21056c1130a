"""Every metric of the gateway, by name, in one place. All begin with ``comfyui_gateway_``."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from platform import python_version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from gateway.telemetry.exposition import content_type_for, pieces
from gateway.telemetry.job_times import JobTimes
from gateway.telemetry.readings import FastHistogram, Readings, Values
from gateway.telemetry.traffic import Traffic

PREFIX = "comfyui_gateway_"
_HTTP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PROBE_BUCKETS = (0.005, 0.025, 0.1, 0.5, 1, 5, 10, 30)
_ERROR_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3)
_DELAY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# A series for the time at which another one was made doubles their number, and nobody reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Cached(dict[str, Counter]):
    """Children of a counter with one label, by its value. A lookup costs less than the library's."""

    def __init__(self, parent: Counter) -> None:
        super().__init__()
        self._parent = parent

    def __missing__(self, value: str) -> Counter:
        child = self[value] = self._parent.labels(value)
        return child


class Metrics:
    """The metrics of one gateway, in a registry of its own, so that two in one process don't share counts.

    Args:
        by_model: False if anybody may read the metrics: then no series tells a model, and no exemplar a prompt_id.
    """

    def __init__(self, *, by_model: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._making = asyncio.Lock()
        self._kept: dict[str, tuple[bytes, float]] = {}
        self._expected: set[str] = set()
        self.traffic = Traffic()
        self.job_times = JobTimes(self.registry, PREFIX, by_model=by_model)
        self._add_backends()
        self._add_jobs()
        self._add_http()
        self._add_sockets()
        self._add_healing()
        self._add_webhooks()
        self._add_storage()
        self._add_data()
        self._add_process()

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(PREFIX + name, text, labels, registry=self.registry, buckets=buckets)

    def _readings(self, name: str, text: str, *labels: str) -> Readings:
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        return Readings(kind, PREFIX + name, text, labels, self.registry)

    def _delays(self, name: str, text: str) -> FastHistogram:
        return FastHistogram(PREFIX + name, text, _DELAY_BUCKETS, self.registry)

    def _add_backends(self) -> None:
        gauge, counter, readings = self._gauge, self._counter, self._readings
        self.backend_up = gauge("backend_up", "1 while the backend can run jobs", "backend")
        self.backend_drained = gauge("backend_drained", "1 while an admin lets it have no work", "backend")
        self.backend_poisoned = gauge("backend_poisoned", "1 while it can't use its GPU until a restart", "backend")
        self.backend_ejected = gauge("backend_ejected", "1 while it gets no work for its failures", "backend")
        self.queue_pending = readings("queue_pending", "Prompts that wait, in the gateway and on all backends")
        self.backend_pending = readings("backend_queue_pending", "Prompts pending on the backend", "backend")
        self.backend_running = gauge("backend_queue_running", "Prompts running on the backend", "backend")
        self.busy_seconds = readings("backend_busy_seconds_total", "Time with a running prompt", "backend")
        self.vram_free = gauge("backend_vram_free_bytes", "Free VRAM", "backend", "device")
        self.vram_total = gauge("backend_vram_total_bytes", "VRAM", "backend", "device")
        self.ram_free = gauge("backend_ram_free_bytes", "Free memory of the backend's machine", "backend")
        self.ram_total = gauge("backend_ram_total_bytes", "Memory of the backend's machine", "backend")
        self.probe_seconds = self._histogram("probe_seconds", "Time of a probe", _PROBE_BUCKETS, "backend", "outcome")
        self.events_refused = counter("events_refused_total", "Messages of backends that are not read", "backend")
        self.sockets_deaf = counter("backend_sockets_deaf_total", "Sockets to backends opened anew", "backend")
        labels = "backend", "kind"
        self.catalogue_reads = counter("catalogue_reads_total", "Reads of node classes and models", *labels)
        self.catalogue_read_seconds = counter("catalogue_read_seconds_total", "Time of the answers to them", *labels)
        self.catalogue_read_cost = counter("catalogue_read_cost_seconds_total", "Backends' time for them", *labels)
        self.catalogue_age = readings("catalogue_age_seconds", "Since node classes were confirmed", "backend")

    def _add_jobs(self) -> None:
        gauge, counter = self._gauge, self._counter
        self.prompts_refused = counter("prompts_refused_total", "Prompts that the gateway refused, by error", "error")
        self.prompts_read_apart = counter(
            "prompts_read_apart_total", "Large prompts given to a process apart, by outcome", "outcome"
        )
        self.jobs = counter("jobs_total", "Jobs ended, by outcome", "outcome", "backend")
        self.job_failures = counter("job_failures_total", "Jobs that failed, by whose fault", "fault", "backend")
        self.results_unreadable = counter("results_unreadable_total", "Jobs failed by their result", "backend")
        self.retries = counter("jobs_retried_total", "Jobs sent again, by reason", "backend", "reason")
        self.jobs_waiting = gauge("jobs_waiting", "Jobs accepted and waiting in the gateway")
        self.jobs_open = gauge("jobs_open", "Jobs accepted and not ended")
        self.jobs_stalled = gauge("jobs_stalled", "Running jobs that have said nothing for long", "backend")
        self.model_loads = counter("model_loads_total", "Jobs that had to load their model", "backend")
        self.model_reloads = counter("model_reloads_total", "Loads of a model that the backend had before", "backend")
        self.model_reload_seconds = counter("model_reload_seconds_total", "Time of these, as learned", "backend")
        self.eta_error = self._histogram("eta_error", "Absolute logarithm of real over expected time", _ERROR_BUCKETS)
        self.etas = counter("etas_total", "Jobs that succeeded within the interval of their ETA, or not", "end")
        for end in ("early", "within", "late"):
            self.etas.labels(end)
        self.dispatches = counter("dispatch_attempts_total", "Prompts sent, by outcome", "backend", "outcome")
        self.takeovers = counter("takeovers_total", "Pending jobs moved to an idle backend", "backend", "target")

    def expect_jobs(self, backend: str) -> None:
        """Show a backend's counts of jobs before the first one ends: else no rate would tell of that one."""
        if backend not in self._expected:
            self._expected.add(backend)
            for outcome in ("success", "error", "cancelled"):
                self.jobs.labels(outcome, backend)
            for fault in ("caller", "backend", "gateway"):
                self.job_failures.labels(fault, backend)
            for loads in (self.model_loads, self.model_reloads, self.model_reload_seconds):
                loads.labels(backend)

    def _add_http(self) -> None:
        gauge, counter = self._gauge, self._counter
        self.requests = counter("http_requests_total", "HTTP requests", "method", "route", "status")
        self.request_seconds = self._histogram("http_request_seconds", "Time of HTTP requests", _HTTP_BUCKETS, "route")
        self.requests_waiting = gauge("requests_waiting", "Requests whose answer waits for the end of a job")
        self.connections = gauge("connections_open", "Open connections of clients")
        self.connections_refused = counter("connections_refused_total", "Connections refused, by limit", "limit")
        self.connections_cut = counter("connections_cut_total", "Connections ended by the gateway, by reason", "reason")
        self.keys_refused = counter("keys_refused_total", "Keys that were not taken, by reason", "reason")
        for reason in ("unknown", "locked out"):
            # Show them from the start, because no rate would tell of keys that are all guessed between two scrapes.
            self.keys_refused.labels(reason)
        self.addresses_locked = gauge("addresses_locked", "Addresses that wait for having presented wrong keys")
        self.limited = counter("limited_total", "Requests refused for a limit, by limit", "limit")
        self.certificate_expiry = self._readings("certificate_expiry_timestamp_seconds", "End of the certificate")
        traffic = self.traffic
        received = self._readings("received_bytes_total", "Bytes received, by sender", "from")
        received.read = lambda: ((("clients",), traffic.from_clients), (("backends",), traffic.from_backends))
        sent = self._readings("sent_bytes_total", "Bytes sent, by receiver", "to")
        sent.read = lambda: ((("clients",), traffic.to_clients), (("backends",), traffic.to_backends))

    def _add_sockets(self) -> None:
        gauge, counter = self._gauge, self._counter
        self.sockets = gauge("sockets_open", "Open WebSockets of clients")
        self.events = Cached(counter("events_relayed_total", "Frames sent to clients, by kind", "kind"))
        self.event_delay = self._delays("event_delay_seconds", "From a backend's message to its frame at a client")
        self.dropped = counter("events_dropped_total", "Frames left out for a slow client, by kind", "kind")
        self.slow_closed = counter("sockets_closed_slow_total", "WebSockets closed because their reader fell behind")
        self.flooding_closed = counter("sockets_closed_flooding_total", "WebSockets closed because they sent too much")
        self.sockets_buffered = gauge("sockets_buffered_bytes", "Bytes that wait for the readers of WebSockets")
        self.sockets_spooled = gauge("sockets_spooled_bytes", "Bytes on disk that wait for the readers of WebSockets")

    def _add_healing(self) -> None:
        gauge, counter = self._gauge, self._counter
        self.backend_guarded = gauge("backend_vram_guarded", "1 while the VRAM guard lets it have no work", "backend")
        self.vram_frees = counter("vram_frees_total", "POST /free by the VRAM guard", "backend")
        labels = "backend", "outcome"
        self.backend_restarts = counter("backend_restarts_total", "Restarts by the gateway, by outcome", *labels)
        self.graphs_refused = gauge("graphs_refused", "Graphs refused because they left a GPU unusable")

    def _add_webhooks(self) -> None:
        gauge, counter = self._gauge, self._counter
        self.webhook_deliveries = counter("webhook_deliveries_total", "Webhooks' deliveries, by outcome", "outcome")
        for outcome in ("delivered", "failed", "dead", "dropped", "lost"):
            self.webhook_deliveries.labels(outcome)
        self.webhook_pending = gauge("webhook_pending", "Webhooks' deliveries that are pending")
        self.webhook_dead = gauge("webhook_dead", "Webhooks' deliveries that are dead, and can be replayed")
        self.webhook_seconds = self._histogram("webhook_delivery_seconds", "Time of an attempt", _HTTP_BUCKETS)

    def _add_storage(self) -> None:
        gauge, counter = self._gauge, self._counter
        self.storage_copies = counter("storage_copies_total", "Copies into object storage, by outcome", "outcome")
        for outcome in ("stored", "spooled", "failed", "changed", "missing", "skipped"):
            self.storage_copies.labels(outcome)
        self.storage_copy_seconds = self._histogram("storage_copy_seconds", "Time of a copy", _HTTP_BUCKETS)
        self.storage_bytes = counter("storage_bytes_total", "Bytes copied into object storage")
        self.storage_pending = gauge("storage_pending", "Files that are to be copied into object storage")
        self.storage_spool_bytes = gauge("storage_spool_bytes", "Bytes on disk that wait for object storage")
        self.storage_pending_age = gauge("storage_pending_age_seconds", "Age of the file that waits longest")
        self.storage_spool_max = gauge("storage_spool_max_bytes", "storage.max_spool; 0 while object storage is off")
        self.storage_up = gauge("storage_up", "1 while object storage is off, or can be used")
        self.storage_up.set(1)

    def _add_data(self) -> None:
        gauge = self._gauge
        self.journal_bytes = gauge("journal_bytes", "Bytes of the journal and of its log on the disk")
        self.journal_writable = gauge("journal_writable", "1 while the journal can be written")
        self.journal_owed = gauge("journal_owed", "Writes kept in memory until the disk takes them")
        self.journal_lag = gauge("journal_lag_seconds", "Age of the oldest write that waits for the journal")
        self.journal_seconds = self._histogram("journal_commit_seconds", "Time of a journal commit", _HTTP_BUCKETS)
        self.data_dir_free = self._readings("data_dir_free_bytes", "Free bytes of the file system of data_dir")
        self.data_dir_size = self._readings("data_dir_size_bytes", "Bytes of the file system of data_dir")
        self.files_placed = self._counter(
            "files_placed_total", "Files put on backends, by outcome", "backend", "outcome"
        )
        self.uploads_bytes = gauge("uploads_bytes", "Bytes of uploads kept")
        self.uploads_aside_bytes = gauge("uploads_aside_bytes", "Bytes of uploads that nothing names, kept for a time")

    def _add_process(self) -> None:
        """Add metrics of the process: its own, CPU time, memory, open files, start (``process_…``), and versions."""
        self.tasks = self._gauge("tasks", "Tasks of the event loop")
        self.task_failures = self._counter("task_failures_total", "Errors in background tasks, by task", "task")
        self.task_restarts = self._counter("task_restarts_total", "Background tasks begun anew after an error", "task")
        self.loop_delay = self._delays("loop_delay_seconds", "Lateness of the event loop's timer")
        ProcessCollector(registry=self.registry)
        build = Info(PREFIX + "build", "Versions of the gateway and of what it runs on", registry=self.registry)
        build.info({"version": version("comfyui-gateway"), "python": python_version(), "aiohttp": version("aiohttp")})

    async def text(self, accept: str = "", max_age: float = 0.0) -> tuple[bytes, str]:
        """Return the text of all metrics, made in slices, and its content type.

        Args:
            accept: the Accept header of the request. OpenMetrics is made for clients that ask for it.
            max_age: maximum age of the text, in seconds. Callers without a key share one text, because making it takes
                some milliseconds, and more with each backend.
        """
        content_type = content_type_for(accept)
        if max_age == 0.0:
            return await self._made(content_type), content_type
        async with self._making:
            text, made_at = self._kept.get(content_type, (b"", 0.0))
            if not text or time.monotonic() - made_at > max_age:
                text = await self._made(content_type)
                self._kept[content_type] = (text, time.monotonic())
            return text, content_type

    async def _made(self, content_type: str) -> bytes:
        made = []
        for piece in pieces(self.registry, content_type):
            made.append(piece)
            await asyncio.sleep(0)
        return b"".join(made)


def one(value: float) -> Values:
    """Return a value of a metric without labels."""
    return (((), value),)
