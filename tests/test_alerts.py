"""The alert rules, their runbook, and the table of the guide's signals agree with each other and with the metrics.

promtool tries the rules themselves in tests/observability.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.telemetry.metrics import Metrics
from tests.support.monitoring_table import MONITORING, Signal, signals

ROOT = Path(__file__).parent.parent
GROUPS = yaml.safe_load((ROOT / "config" / "prometheus" / "alerts.yml").read_text())["groups"]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}


def metrics() -> set[str]:
    """Return the names of all metrics, as they are in the documents."""
    return {name for metric in Metrics().registry.collect() for name in (metric.name, f"{metric.name}_total")}


def test_each_rule_names_metrics_that_are_there() -> None:
    known = {name + ending for name in metrics() for ending in ("", "_bucket", "_count", "_sum")}
    for rule in RULES:
        named = re.findall(r"\bcomfyui_gateway_\w+", rule["expr"])
        assert set(named) <= known, rule
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    assert {name for rule in RULES for name in re.findall(r"\bcomfyui_gateway:[\w:]+", rule["expr"])} == recorded


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_severity_a_text_and_a_runbook(alert: str) -> None:
    rule = ALERTS[alert]
    severities = {"page": "Page.", "warning": "Warning.", "info": "Info."}
    assert set(rule["labels"]) == {"severity"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/monitoring.md#{alert.lower()}"
    (runbook,) = re.findall(rf"^### {alert}\n\n(.*?)(?=^##|\Z)", MONITORING.read_text(), re.MULTILINE | re.DOTALL)
    assert runbook.startswith(severities[rule["labels"]["severity"]])


def test_the_runbook_has_no_other_alerts() -> None:
    assert re.findall(r"^### (ComfyUI\w+)$", MONITORING.read_text(), re.MULTILINE) == list(ALERTS)


@pytest.mark.parametrize("signal", signals(), ids=lambda signal: signal.line[:40])
def test_each_of_the_guides_signals_has_a_metric_an_alert_and_a_test(signal: Signal) -> None:
    assert signal.metrics or signal.events
    for event in signal.events:
        assert f"\n| `{event}` |" in (ROOT / "docs" / "logs.md").read_text()
    assert {f"comfyui_gateway_{name}" for name in signal.metrics} <= metrics()
    assert signal.alerts
    assert set(signal.alerts) <= set(ALERTS)
    assert signal.tests
    for test in signal.tests:
        path, _, name = test.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), test


def test_the_table_has_all_of_the_guide() -> None:
    assert len(signals()) == 12
