"""Gauges of object storage: what waits for it, and if it can be used."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.artifacts.queue import CopyQueue
from gateway.artifacts.schedule import StoreHealth
from gateway.artifacts.spool import ArtifactSpool
from gateway.telemetry.metrics import Metrics


def show(
    metrics: Metrics,
    queue: CopyQueue,
    health: StoreHealth,
    spool: ArtifactSpool,
    max_spool: int,
    is_known: Callable[[str], bool],
) -> None:
    """Let the metrics show the queue, the store's health, and the spool, as they are whenever somebody looks.

    Args:
        is_known: returns False for a source of copies that nobody can read any more.
    """
    metrics.storage_pending.set_function(lambda: len(queue))
    metrics.storage_pending_age.set_function(lambda: queue.age(time.time(), is_known))
    metrics.storage_spool_bytes.set_function(lambda: spool.bytes)
    metrics.storage_spool_max.set(max_spool)
    metrics.storage_up.set_function(lambda: health.is_up)
