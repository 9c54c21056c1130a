"""Keep failures and ejections of backends in the journal, because a restart of the gateway must not forgive them."""

from __future__ import annotations

from typing import Any

from gateway.comfy import json_codec
from gateway.fleet.backend import Backend
from gateway.fleet.outlier_ejection import Ejections
from gateway.store.protocol import BackendRecord


def record_of(backend: Backend, ejections: Ejections, now: float, wall: float) -> BackendRecord:
    """Return a backend's record. `now` is the monotonic clock, `wall` seconds since 1970."""
    failures, times, until = ejections.record(backend.name)
    encoded = [[sorted(kind), sorted(able)] for kind, able in failures]
    ejected_until = int((wall + until - now) * 1000) if until > now else 0
    return BackendRecord(
        backend.name, backend.poisoned, json_codec.dumps(encoded), times, ejected_until, int(backend.drained)
    )


def restore(record: BackendRecord, backend: Backend, ejections: Ejections, now: float, wall: float) -> None:
    """Put a backend's record back. A clock that jumped ejects no backend for longer than any ejection lasts.

    Raises:
        ValueError, TypeError: the record was not written by `record_of`.
    """
    failures: Any = json_codec.loads(record.failures)
    backend.poisoned, backend.drained = record.poisoned, bool(record.drained)
    seconds = record.ejected_until / 1000 - wall
    known = [(frozenset(kind), frozenset(able)) for kind, able in failures]
    ejections.restore(backend.name, known, record.ejections, seconds, now)
