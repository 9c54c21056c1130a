"""The alert rules of docs/operations.md name metrics that are there, and can fire."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from gateway.telemetry.metrics import Metrics

TEXT = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()


def expressions() -> dict[str, str]:
    """Return the expression of each alert."""
    (rules,) = [
        block for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE) if "alert:" in block
    ]
    return {rule["alert"]: rule["expr"] for group in yaml.safe_load(rules)["groups"] for rule in group["rules"]}


def test_each_rule_names_metrics_that_are_there() -> None:
    known = {sample for metric in Metrics().registry.collect() for sample in (metric.name, f"{metric.name}_total")}
    for alert, expression in expressions().items():
        named = re.findall(r"comfyui_gateway_\w+", expression)
        assert set(named) <= known, alert
        assert named or "up{" in expression, alert


def test_both_sides_of_an_operator_have_the_same_labels() -> None:
    """Prometheus finds no partner for a series with labels in a sum, which has none: such a rule never fires."""
    for alert, expression in expressions().items():
        without_sums = re.sub(r"sum\((?:[^()]|\([^()]*\))*\)", "", expression)
        assert expression == without_sums or "comfyui_gateway_" not in without_sums, alert


def test_what_stops_work_has_a_rule() -> None:
    assert {"comfyui_gateway_journal_writable == 0", "comfyui_gateway_backend_up == 0"} <= set(expressions().values())
