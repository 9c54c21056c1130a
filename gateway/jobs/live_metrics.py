"""Metrics that are read from the state of jobs and backends when somebody asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from gateway.catalogue.catalogue import Catalogue
from gateway.fleet.fleet import Fleet
from gateway.jobs.state.ledger import Ledger
from gateway.telemetry.metrics import Metrics, one


def show_live(metrics: Metrics, ledger: Ledger, fleet: Fleet, catalogue: Catalogue) -> None:
    """Let metrics read the ledger, the fleet and the catalogue."""

    def pending() -> Iterator[tuple[Sequence[str], float]]:
        for backend in fleet.backends.values():
            # The queue of a backend that is down is not known. The gateway's own jobs leave it.
            foreign = backend.foreign_pending if backend.pulse.alive else 0
            yield (backend.name,), ledger.load(backend.name)[0] + foreign

    def busy() -> Iterator[tuple[Sequence[str], float]]:
        seconds = {labels[0]: value for labels, value in ledger.busy.seconds(time.monotonic())}
        for name in fleet.backends:
            yield (name,), seconds.get(name, 0.0)

    def catalogue_age() -> Iterator[tuple[Sequence[str], float]]:
        now = time.monotonic()
        for name in fleet.backends:
            yield (name,), now - catalogue.confirmed_at(name)

    metrics.backend_pending.read = pending
    metrics.queue_pending.read = lambda: one(len(ledger.waiting) + sum(value for _, value in pending()))
    metrics.busy_seconds.read = busy
    metrics.catalogue_age.read = catalogue_age
    metrics.jobs_waiting.set_function(lambda: len(ledger.waiting))
    metrics.jobs_open.set_function(lambda: len(ledger))
