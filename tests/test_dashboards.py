"""The dashboards are what their script makes, and agree with the metrics, the alerts and the documents.

tests/observability runs their queries.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.telemetry.metrics import Metrics
from tests.support.dashboards import FOLDER, SCRAPE_MILLISECONDS, Shown, dashboards, escaped, panels, queries, variables
from tests.support.monitoring_table import MONITORING
from tests.support.scaled_rules import milliseconds

ROOT = Path(__file__).parent.parent
NAMES = sorted(dashboards())
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "config" / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
# Of Grafana's units, transformations and panels, those that the dashboards use.
UNITS = {"short", "s", "suffix:days", "percentunit", "bytes", "Bps", "reqps", "mps", "cpm"}
TRANSFORMATIONS = {"joinByField", "organize"}
KINDS = {"stat", "timeseries", "table", "state-timeline"}


@functools.cache
def labels_of_metrics() -> dict[str, set[str]]:
    """The labels of each series by its name, those of an exporter and of Prometheus among them."""
    registry = Metrics(by_model=True).registry
    endings = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
    found: dict[str, set[str]] = {}
    for each in set(registry._names_to_collectors.values()):
        labels = getattr(each, "_labelnames", None) or getattr(each, "_labels", ())
        for family in each.collect():
            found |= {family.name + ending: set(labels) for ending in endings[family.type]}
    found |= {family.name + endings[family.type][0]: set() for family in registry.collect() if "process" in family.name}
    found |= {f"DCGM_FI_DEV_{name}": {"backend"} for name in ("GPU_UTIL", "FB_USED", "FB_FREE")}
    for rule in RULES:
        if "record" in rule:
            is_by_model = "job_run_seconds" in rule["record"]
            found[rule["record"]] = {"model"} if is_by_model else set()
    return found | {"up": set(), "ALERTS": set()}


def test_the_script_makes_them(tmp_path: Path) -> None:
    script = FOLDER / "make_dashboards.py"
    subprocess.run([sys.executable, script, "--output", tmp_path], check=True)
    assert NAMES == ["fleet", "gateway"]
    for name in NAMES:
        made, kept = tmp_path / f"{name}.json", FOLDER / "dashboards" / f"{name}.json"
        assert made.read_text() == kept.read_text(), "run `make dashboards`"


@pytest.mark.parametrize("shown", queries(), ids=lambda shown: shown.where)
def test_each_query_names_metrics_and_the_variables_of_their_labels(shown: Shown) -> None:
    """Every series is selected by all variables that stand for one of its labels."""
    known = labels_of_metrics()
    selectors = re.findall(r"([a-zA-Z_:][\w:]*){([^}]*)}", shown.expr)
    assert selectors
    for name, matchers in selectors:
        given = dict(re.findall(r'(\w+)=~?"([^"]*)"', matchers))
        assert set(given) - {"instance", "job", "alertname", "alertstate"} <= known[name], name
        if name.startswith("comfyui_gateway"):
            assert given.get("instance") == "$instance", name
        for label in known[name] & {"backend", "model"}:
            assert given.get(label) == f"${label}", (name, label)
    words = re.findall(r"(comfyui_gateway[\w:]*)(.?)", shown.expr)
    assert all(after == "{" for _, after in words), "without a selector"


@pytest.mark.parametrize("name", NAMES)
def test_each_panel_has_what_grafana_wants(name: str) -> None:
    dashboard = dashboards()[name]
    heights: set[tuple[int, int]] = set()
    every = [*dashboard["panels"], *(inner for panel in dashboard["panels"] for inner in panel.get("panels", []))]
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & heights, panel["title"]
        heights |= cells
    for panel in panels(dashboard):
        assert panel["type"] in KINDS
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        overrides = panel["fieldConfig"]["overrides"]
        columns = {each["matcher"]["options"] for each in overrides}
        units = [each["value"] for override in overrides for each in override["properties"] if each["id"] == "unit"]
        assert {panel["fieldConfig"]["defaults"]["unit"], *units} <= UNITS
        for transformation in panel.get("transformations", []):
            assert transformation["id"] in TRANSFORMATIONS
            renamed = transformation["options"].get("renameByName", {})
            assert set(renamed.values()) == columns or not renamed
        steps = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert steps[0] is None
        assert steps[1:] == sorted(steps[1:])


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_headings(name: str) -> None:
    headings = re.findall(r"^#+ (.*)$", MONITORING.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    dashboard = dashboards()[name]
    links = [link["url"] for panel in panels(dashboard) for link in panel["links"]]
    links += [link["url"] for link in dashboard["links"] if link["type"] == "link"]
    assert links
    for link in links:
        address, _, anchor = link.partition("#")
        assert address == "${docs:raw}"
        assert anchor in anchors, link


def test_each_alert_has_a_panel_with_its_runbook() -> None:
    links = {link["url"] for each in dashboards().values() for panel in panels(each) for link in panel["links"]}
    alerts = {rule["alert"] for rule in RULES if "alert" in rule}
    assert links == {f"${{docs:raw}}#{alert.lower()}" for alert in alerts}


@pytest.mark.parametrize(
    ("panel", "steps"),
    [
        ("fleet: Job wait, p95", [30]),
        ("fleet: Prompts that wait", [5]),
        ("fleet: Error rate, 5 minutes", [0.05, 0.1]),
        ("fleet: VRAM used", [0.9, 0.95]),
        ("fleet: Host RAM used", [0.9]),
        ("fleet: Run p95 ÷ usual p95", [3]),
        ("gateway: Disk free", [0.03, 0.1]),
        ("gateway: Certificate expires in", [3, 14]),
        ("gateway: Journal lag", [5]),
    ],
)
def test_thresholds_are_those_of_the_alerts(panel: str, steps: list[float]) -> None:
    """The rules' own numbers; this list says that the right ones were found in them."""
    name, _, title = panel.partition(": ")
    found = [each["fieldConfig"]["defaults"] for each in panels(dashboards()[name]) if each["title"] == title]
    assert found
    for defaults in found:
        assert [step["value"] for step in defaults["thresholds"]["steps"][1:]] == steps


def test_grafana_finds_the_datasource_and_the_dashboards() -> None:
    (source,) = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "prometheus.yaml").read_text())["datasources"]
    scrapes = yaml.safe_load((ROOT / "config" / "prometheus" / "prometheus.yml").read_text())["global"]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == scrapes["scrape_interval"]
    assert milliseconds(scrapes["scrape_interval"]) == SCRAPE_MILLISECONDS
    (provider,) = yaml.safe_load((FOLDER / "provisioning" / "dashboards" / "comfyui-gateway.yaml").read_text())[
        "providers"
    ]
    assert provider["type"] == "file"
    assert provider["options"]["path"] in MONITORING.read_text()
    uids = [dashboard["uid"] for dashboard in dashboards().values()]
    assert len(set(uids)) == len(uids)
    for dashboard in dashboards().values():
        named = variables(dashboard)
        assert named["datasource"]["query"] == "prometheus"
        used = set(re.findall(r"\$(\w+)|\${(\w+)", str(dashboard["panels"])))
        assert {first or second for first, second in used} - {"__rate_interval"} == set(named)


def test_choices_are_escaped_as_grafana_does() -> None:
    assert escaped(["a.b"]) == r"a\\.b"
    assert escaped(["a", "b+c"]) == r"(a|b\\+c)"
