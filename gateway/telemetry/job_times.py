"""Times of jobs by model, for metrics, with the models' slots kept over restarts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Histogram

from gateway.telemetry.model_slots import ModelSlots

BUCKETS = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
# Characters of an exemplar, name and value together (OpenMetrics, "Exemplars").
MAX_EXEMPLAR = 128
_EXEMPLAR = "prompt_id"


class JobTimes:
    """Histograms of jobs' times.

    Args:
        by_model: False if anybody may read the metrics: then no model is a label and no prompt_id an exemplar.
        wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        prefix: str,
        *,
        by_model: bool,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.slots = ModelSlots()
        self.by_model = by_model
        self._clock = wall_clock

        def histogram(name: str, text: str) -> Histogram:
            labels = ("model",) if by_model else ()
            return Histogram(prefix + name, text, labels, registry=registry, buckets=BUCKETS)

        self._wait = histogram("job_wait_seconds", "From a job's acceptance to its start")
        self._run = histogram("job_run_seconds", "From a job's start to its result, of jobs that succeeded")
        self._total = histogram("job_total_seconds", "From a job's acceptance to its result, of jobs that succeeded")

    def started(self, model: str, prompt_id: str, waited: float) -> None:
        """Count a job that starts."""
        self._observe(model, prompt_id, (self._wait, waited))

    def succeeded(self, model: str, prompt_id: str, ran: float, total: float) -> None:
        """Count a job that succeeded."""
        self._observe(model, prompt_id, (self._run, ran), (self._total, total))

    def _observe(self, model: str, prompt_id: str, *times: tuple[Histogram, float]) -> None:
        if not self.by_model:
            for histogram, seconds in times:
                histogram.observe(seconds)
            return
        label, evicted = self.slots.use(model, self._clock())
        if evicted is not None:
            self._forget(evicted)
        exemplar = {_EXEMPLAR: prompt_id} if len(_EXEMPLAR) + len(prompt_id) <= MAX_EXEMPLAR else None
        for histogram, seconds in times:
            histogram.labels(label).observe(seconds, exemplar)

    def _forget(self, model: str) -> None:
        """Drop the series of a model that has no slot any more."""
        for histogram in (self._wait, self._run, self._total):
            # It has no series yet if its slot is from an earlier run.
            with contextlib.suppress(KeyError):
                histogram.remove(model)

    def record(self) -> list[list[Any]]:
        """Return the slots as the store keeps them."""
        return [[name, at, round(self.slots.uses[name], 3)] for name, at in self.slots.used.items()]

    def restore(self, record: Any) -> None:
        """Take the slots of an earlier run. Ignore what was not written by `record`, because only names are lost."""
        rows = record if isinstance(record, list) else []
        known = [(row[0], float(row[1]), float(row[2])) for row in rows if _is_row(row)]
        self.slots.restore(known, self._clock())


def _is_row(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != 3 or not isinstance(row[0], str):
        return False
    return all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in row[1:])
