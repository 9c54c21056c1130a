"""The syntax of config/logs/loki-rules.yml, by Grafana's own grammar of LogQL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GRAMMAR = Path(sys.prefix) / "logql"
pytestmark = pytest.mark.skipif(not (GRAMMAR / "node_modules").exists(), reason="make test-services installs it")


def wrong(expressions: list[str]) -> list[str]:
    """Those that are no LogQL, with the place."""
    program = Path(__file__).parent / "logql" / "parse.mjs"
    done = subprocess.run(
        ["node", program], cwd=GRAMMAR, input=json.dumps(expressions), capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout)
    return found


def test_each_expression_is_logql() -> None:
    groups = yaml.safe_load((ROOT / "config" / "logs" / "loki-rules.yml").read_text())["groups"]
    expressions = [rule["expr"] for group in groups for rule in group["rules"]]
    assert len(expressions) >= 10
    assert not wrong(expressions)
    assert wrong([expressions[0].replace("[2m]", "[2x")])
