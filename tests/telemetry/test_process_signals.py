"""Signals of the process itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway.telemetry import process_signals
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.process_signals import ProcessSignals
from tests.support.lab import until

BLOCKED = 0.2


async def test_a_loop_that_is_held_up_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_signals, "LOOP_SECONDS", 0.01)
    metrics = Metrics()
    signals = ProcessSignals(metrics, tmp_path)

    def value(name: str) -> float:
        return metrics.registry.get_sample_value(f"comfyui_gateway_{name}") or 0.0

    async def has_measured() -> bool:
        return value("loop_delay_seconds_count") > before

    before = 0.0
    signals.start()
    await until(has_measured)
    before = value("loop_delay_seconds_count")
    time.sleep(BLOCKED)  # noqa: ASYNC251
    await until(has_measured)
    assert value("loop_delay_seconds_sum") > BLOCKED / 2
    assert 0 < value("data_dir_free_bytes") < value("data_dir_size_bytes")
    assert value("tasks") > 1
    await signals.close()
