"""Metrics whose values are read at a scrape, or that are counted faster than the metrics library counts."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

# Values of one metric: the values of its labels, and its value.
Values = Iterable[tuple[Sequence[str], float]]


def number(value: float) -> str:
    """Return a number as Prometheus reads it."""
    value = float(value)
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


class Readings:
    """Metric whose values a function returns at each scrape.

    Attributes:
        read: returns the values. A series that it leaves out is not shown.
    """

    def __init__(
        self,
        kind: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        text: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
    ) -> None:
        self._kind, self._name, self._text, self._labels = kind, name, text, labels
        self.read: Callable[[], Values] = tuple
        registry.register(cast(Any, self))

    def describe(self) -> Iterator[Metric]:
        """Yield the metric without values: the registry refuses a name that is taken."""
        yield self._kind(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        family = self._kind(self._name, self._text, labels=self._labels)
        for labels, value in self.read():
            family.add_metric(labels, value)
        yield family


class FastHistogram:
    """Histogram without labels, for the event loop's thread alone: it takes no lock, because it counts each frame."""

    def __init__(self, name: str, text: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._text, self._bounds = name, text, tuple(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        registry.register(cast(Any, self))

    def observe(self, seconds: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def describe(self) -> Iterator[Metric]:
        """Yield the metric without values."""
        yield HistogramMetricFamily(self._name, self._text)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric, without values if nothing was counted."""
        family = HistogramMetricFamily(self._name, self._text)
        if any(self._counts):
            buckets, total = [], 0
            for bound, count in zip([*self._bounds, float("inf")], self._counts, strict=True):
                total += count
                buckets.append((number(bound), total))
            family.add_metric([], buckets, self._sum)
        yield family
