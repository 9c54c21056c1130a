"""Prometheus's own tool reads all metrics, and finds nothing to say against their names."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase

from gateway.telemetry.exposition import PLAIN, pieces
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.readings import FastHistogram, Readings


def complete(*, by_model: bool) -> Metrics:
    """Metrics with a series of each."""
    metrics = Metrics(by_model=by_model)
    for each in set(metrics.registry._names_to_collectors.values()):
        metric: Any = each
        if isinstance(metric, Readings):
            values = [(["x"] * len(metric._labels), 1.0)]
            metric.read = lambda values=values: values
        elif isinstance(metric, FastHistogram):
            metric.observe(0.01)
        elif isinstance(metric, MetricWrapperBase) and metric._type != "info":
            child = metric.labels(*["x"] * len(metric._labelnames)) if metric._labelnames else metric
            if hasattr(child, "observe"):
                child.observe(1)
    return metrics


@pytest.mark.parametrize("by_model", [False, True])
async def test_promtool_has_nothing_to_say(by_model: bool) -> None:
    metrics = complete(by_model=by_model)
    text = b"".join(pieces(metrics.registry, PLAIN))
    shown = text.count(b"# TYPE ")
    assert shown == len(list(metrics.registry.collect()))
    pipe = asyncio.subprocess.PIPE
    promtool = await asyncio.create_subprocess_exec(
        "promtool", "check", "metrics", stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await promtool.communicate(text)
    assert (promtool.returncode, said.decode()) == (0, "")
