"""The shipped rules and configurations, as promtool and amtool judge them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.prometheus import SHIPPED
from tests.support.scaled_rules import scaled

CASES = sorted((Path(__file__).parent / "rules").glob("*.test.yml"))


def run(*command: str | Path) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tried() -> list[tuple[str, bool]]:
    """Return the alert of each case, and True if the case fires."""
    cases: list[dict[str, Any]] = [case for path in CASES for case in yaml.safe_load(path.read_text())["tests"]]
    return [(each["alertname"], bool(each["exp_alerts"])) for case in cases for each in case["alert_rule_test"]]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_each_case_comes_out_as_it_says(path: Path) -> None:
    run("promtool", "test", "rules", path)


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    rules = yaml.safe_load((SHIPPED / "alerts.yml").read_text())
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    wanted = {(alert, fires) for alert in alerts for fires in (True, False)}
    assert set(tried()) == wanted


def test_a_case_that_is_wrong_is_refused(tmp_path: Path) -> None:
    """promtool reads the rules and the cases that it is given."""
    right = (CASES[0].parent / "data.test.yml").read_text().replace("../../../config/prometheus", str(SHIPPED))
    case = tmp_path / "wrong.test.yml"
    case.write_text(right.replace('severity: "warning"', 'severity: "page"', 1))
    assert subprocess.run(["promtool", "test", "rules", case], capture_output=True).returncode == 1


def test_the_rules_and_the_configurations_are_sound(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path, dirs_exist_ok=True)
    (tmp_path / "comfyui-gateway.key").write_text("key")
    run("promtool", "check", "rules", "--lint-fatal", tmp_path / "alerts.yml")
    assert "SUCCESS" in run("promtool", "check", "config", "--lint-fatal", tmp_path / "prometheus.yml")
    run("amtool", "check-config", tmp_path / "alertmanager.yml")


def test_every_duration_is_divided() -> None:
    rules = {
        "groups": [
            {
                "name": "a",
                "interval": "1m",
                "rules": [{"alert": "A", "for": "1h30m", "expr": "rate(a[5m:2m] offset 1d) > 30 * m5m"}],
            }
        ]
    }
    (group,) = yaml.safe_load(scaled(yaml.safe_dump(rules), 60, 500))["groups"]
    assert group["interval"] == "1000ms"
    (rule,) = group["rules"]
    assert rule["for"] == "90000ms"
    assert rule["expr"] == "rate(a[5000ms:2000ms] offset 1440000ms) > 30 * m5m"
    with pytest.raises(AssertionError):
        scaled(yaml.safe_dump(rules), 60, 1500)
