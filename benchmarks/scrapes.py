"""The text of all metrics of a large fleet: its CPU time, and the longest piece in which nothing else runs."""

from __future__ import annotations

import statistics
import time

from benchmarks.table import Row
from gateway.telemetry.exposition import OPEN, PLAIN, pieces
from gateway.telemetry.metrics import Metrics, one

BACKENDS, MODELS, ROUTES = 64, 100, 30
CPU_MS, PIECE_MS = 50, 5


async def run(rounds: int, seconds: float) -> list[Row]:
    """A row for each format; as many scrapes as there is time for."""
    metrics = _in_use()
    return [_row(metrics, content_type, rounds * seconds) for content_type in (PLAIN, OPEN)]


def _in_use() -> Metrics:
    """Metrics of a fleet that has done all that it usually does."""
    metrics = Metrics(by_model=True)
    for name in (f"backend-{n:02}" for n in range(BACKENDS)):
        for gauge in (
            metrics.backend_up,
            metrics.backend_drained,
            metrics.backend_poisoned,
            metrics.backend_ejected,
            metrics.backend_running,
            metrics.ram_free,
            metrics.ram_total,
            metrics.jobs_stalled,
        ):
            gauge.labels(name).set(12_345_678)
        metrics.vram_free.labels(name, "0").set(5e9)
        metrics.vram_total.labels(name, "0").set(8e10)
        for outcome in ("ok", "timeout"):
            metrics.probe_seconds.labels(name, outcome).observe(0.004)
        for outcome in ("success", "error", "cancelled"):
            metrics.jobs.labels(outcome, name).inc()
        for fault in ("caller", "backend"):
            metrics.job_failures.labels(fault, name).inc()
        for kind in ("folders", "folder", "object_info"):
            metrics.catalogue_reads.labels(name, kind).inc()
            metrics.catalogue_read_seconds.labels(name, kind).inc(0.1)
        metrics.dispatches.labels(name, "taken").inc()
        metrics.model_loads.labels(name).inc()
    values = [((f"backend-{n:02}",), 1.5) for n in range(BACKENDS)]
    for readings in (metrics.backend_pending, metrics.busy_seconds, metrics.catalogue_age):
        readings.read = lambda: values
    metrics.queue_pending.read = lambda: one(3)
    for n in range(MODELS):
        metrics.job_times.started(f"folder/model-{n}.safetensors", "a-prompt", 1.0)
        metrics.job_times.succeeded(f"folder/model-{n}.safetensors", "a-prompt", 5.0, 6.0)
    for n in range(ROUTES):
        metrics.requests.labels("GET", f"/a/route/{n}", "200").inc()
        metrics.request_seconds.labels(f"/a/route/{n}").observe(0.002)
    metrics.event_delay.observe(0.001)
    metrics.loop_delay.observe(0.001)
    return metrics


def _row(metrics: Metrics, content_type: str, seconds: float) -> Row:
    cpu, longest, series = [], [], 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began, last, most, series = time.process_time(), time.thread_time(), 0.0, 0
        for piece in pieces(metrics.registry, content_type):
            now = time.thread_time()
            most, last = max(most, now - last), now
            series += piece.count(b"\n") - 2 * piece.count(b"# TYPE")
        cpu.append((time.process_time() - began) * 1000)
        longest.append(most * 1000)
    total, piece_ms = statistics.median(cpu), statistics.median(longest)
    name = "OpenMetrics" if content_type == OPEN else "text"
    return Row(
        f"scrape in {name}: {BACKENDS} backends, {MODELS} models, {series:,} series",
        f"{total:.1f} ms CPU, longest piece {piece_ms:.1f} ms",
        "",
        f"{max(total / CPU_MS, piece_ms / PIECE_MS):.2f} of the bound",
        f"{CPU_MS} ms, {PIECE_MS} ms",
    )
