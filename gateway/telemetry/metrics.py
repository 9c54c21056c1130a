"""Every metric of the gateway, by name, in one place. All begin with ``comfyui_gateway_``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from platform import python_version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric

_RUN_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_HTTP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """The metrics of one gateway, in a registry of its own, so that two in one process don't share counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._making = asyncio.Lock()
        self._text, self._made_at = b"", 0.0
        prefix = "comfyui_gateway_"

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(prefix + name, text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(prefix + name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(prefix + name, text, labels, registry=registry, buckets=buckets)

        _tell_process(registry, prefix)
        self._add_journal(gauge, histogram)
        self._add_catalogue(counter)
        self.backend_up = gauge("backend_up", "1 while the backend can run jobs", "backend")
        self.backend_drained = gauge("backend_drained", "1 while an admin lets it have no work", "backend")
        self.backend_poisoned = gauge("backend_poisoned", "1 while it can't use its GPU until a restart", "backend")
        self.backend_ejected = gauge("backend_ejected", "1 while it gets no work for its failures", "backend")
        self.backend_pending = gauge("backend_queue_pending", "Prompts pending on the backend", "backend")
        self.backend_running = gauge("backend_queue_running", "Prompts running on the backend", "backend")
        self.vram_free = gauge("backend_vram_free_bytes", "Free VRAM", "backend", "device")
        self.vram_total = gauge("backend_vram_total_bytes", "VRAM", "backend", "device")
        self.ram_free = gauge("backend_ram_free_bytes", "Free memory of the backend's machine", "backend")
        self.ram_total = gauge("backend_ram_total_bytes", "Memory of the backend's machine", "backend")
        self.probe_seconds = histogram("probe_seconds", "Time of a probe", _HTTP_BUCKETS, "backend", "outcome")

        self.prompts_refused = counter("prompts_refused_total", "Prompts that the gateway refused, by error", "error")
        self.prompts_read_apart = counter(
            "prompts_read_apart_total", "Large prompts given to a process apart, by outcome", "outcome"
        )
        self.jobs = counter("jobs_total", "Jobs ended, by outcome", "outcome", "backend")
        self.results_unreadable = counter("results_unreadable_total", "Jobs failed by their result", "backend")
        self.retries = counter("jobs_retried_total", "Jobs sent again, by reason", "backend", "reason")
        self.jobs_waiting = gauge("jobs_waiting", "Jobs accepted and waiting in the gateway")
        self.jobs_open = gauge("jobs_open", "Jobs accepted and not ended")
        self.jobs_stalled = gauge("jobs_stalled", "Running jobs that have said nothing for long", "backend")
        self.wait_seconds = histogram("job_wait_seconds", "From acceptance to start", _RUN_BUCKETS, "backend")
        self.run_seconds = histogram("job_run_seconds", "From start to end", _RUN_BUCKETS, "backend")
        self.dispatches = counter("dispatch_attempts_total", "Prompts sent, by outcome", "backend", "outcome")
        self.takeovers = counter("takeovers_total", "Pending jobs moved to an idle backend", "backend", "target")

        self.files_placed = counter("files_placed_total", "Files put on backends, by outcome", "backend", "outcome")
        self.uploads_bytes = gauge("uploads_bytes", "Bytes of uploads kept")
        self.uploads_aside_bytes = gauge("uploads_aside_bytes", "Bytes of uploads that nothing names, kept for a time")

        self.requests = counter("http_requests_total", "HTTP requests", "method", "route", "status")
        self.request_seconds = histogram("http_request_seconds", "Time of HTTP requests", _HTTP_BUCKETS, "route")
        self.connections = gauge("connections_open", "Open connections of clients")
        self.connections_refused = counter("connections_refused_total", "Connections refused, by limit", "limit")
        self.connections_cut = counter("connections_cut_total", "Connections ended by the gateway, by reason", "reason")
        self.keys_refused = counter("keys_refused_total", "Keys that were not taken, by reason", "reason")
        self.addresses_locked = gauge("addresses_locked", "Addresses that wait for having presented wrong keys")
        self.limited = counter("limited_total", "Requests refused for a limit, by limit", "limit")
        self.sockets = gauge("sockets_open", "Open WebSockets of clients")
        self.events = counter("events_relayed_total", "Frames sent to clients, by kind", "kind")
        self.dropped = counter("events_dropped_total", "Frames left out for a slow client, by kind", "kind")
        self.events_refused = counter("events_refused_total", "Messages of backends that are not read", "backend")
        self.sockets_deaf = counter("backend_sockets_deaf_total", "Sockets to backends opened anew", "backend")
        self.slow_closed = counter("sockets_closed_slow_total", "WebSockets closed because their reader fell behind")
        self.flooding_closed = counter("sockets_closed_flooding_total", "WebSockets closed because they sent too much")
        self.sockets_buffered = gauge("sockets_buffered_bytes", "Bytes that wait for the readers of WebSockets")
        self.sockets_spooled = gauge("sockets_spooled_bytes", "Bytes on disk that wait for the readers of WebSockets")
        self.tasks = gauge("tasks", "Tasks of the event loop")
        self.task_failures = counter("task_failures_total", "Unexpected errors in background tasks, by task", "task")

    def _add_catalogue(self, counter: Callable[..., Counter]) -> None:
        labels = "backend", "kind"
        self.catalogue_reads = counter("catalogue_reads_total", "Reads of node classes and models", *labels)
        self.catalogue_read_seconds = counter("catalogue_read_seconds_total", "Time of the answers to them", *labels)

    def _add_journal(self, gauge: Callable[..., Gauge], histogram: Callable[..., Histogram]) -> None:
        self.journal_bytes = gauge("journal_bytes", "Bytes of the journal and of its log on the disk")
        self.journal_writable = gauge("journal_writable", "1 while the journal can be written")
        self.journal_owed = gauge("journal_owed", "Writes kept in memory until the disk takes them")
        self.journal_seconds = histogram("journal_commit_seconds", "Time of a journal commit", _HTTP_BUCKETS)

    async def text(self, max_age: float = 0.0) -> bytes:
        """Return the text exposition format, as Prometheus reads it, made one metric at a time.

        Args:
            max_age: maximum age of the text, in seconds. Callers without a key share one text, because making it takes
                10 ms, and more with each backend.
        """
        if max_age == 0.0:
            return await self._made()
        async with self._making:
            if not self._text or time.monotonic() - self._made_at > max_age:
                self._text, self._made_at = await self._made(), time.monotonic()
            return self._text

    async def _made(self) -> bytes:
        pieces = []
        for family in self.registry.collect():
            pieces.append(generate_latest(_One(family)))
            await asyncio.sleep(0)
        return b"".join(pieces)


def _tell_process(registry: CollectorRegistry, prefix: str) -> None:
    """Add the process's CPU time, memory, open files and start (``process_…``), and the versions that it runs."""
    ProcessCollector(registry=registry)
    build = Info(prefix + "build", "Versions of the gateway and of what it runs on", registry=registry)
    build.info({"version": version("comfyui-gateway"), "python": python_version(), "aiohttp": version("aiohttp")})


class _One:
    """A registry of one metric."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        """Return the metric."""
        return (self._family,)
