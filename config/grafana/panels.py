"""Panels, rows and variables of a Grafana dashboard, as the values of its JSON.

A panel names the alerts about what it shows, and has links to their runbooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from queries import JOB, PREFIX, Query
from thresholds import GREEN, PLAIN, RED, Json, levels

COLUMNS = 24
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
TAG = "comfyui-gateway"


@dataclass(frozen=True)
class Look:
    """The form of a panel's values.

    Attributes:
        alerts: alerts about what the panel shows. Their runbooks are the panel's links.
        steps: thresholds. Without them, values have the colours of their series.
        missing: text in place of a value that is not there.
    """

    unit: str = "short"
    alerts: tuple[str, ...] = ()
    steps: Json | None = None
    decimals: int | None = None
    low: float | None = None
    high: float | None = None
    missing: str | None = None
    mappings: tuple[Json, ...] = ()


def _targets(queries: Iterable[Query], style: str) -> list[Json]:
    targets = []
    for index, query in enumerate(queries):
        target: Json = {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "format": style,
            "editorMode": "code",
            "instant": query.instant,
            "range": not query.instant,
        }
        if query.exemplars:
            target["exemplar"] = True
        targets.append(target)
    return targets


def _runbooks(alerts: Iterable[str]) -> list[Json]:
    return [
        {"title": f"Runbook: {name}", "url": f"${{docs:raw}}#{name.lower()}", "targetBlank": True} for name in alerts
    ]


def _panel(kind: str, title: str, text: str, size: tuple[int, int], queries: Sequence[Query], look: Look) -> Json:
    is_table = kind == "table"
    defaults: Json = {
        "unit": look.unit,
        "color": {"mode": "thresholds" if look.steps and kind != "timeseries" else "palette-classic"},
        "mappings": list(look.mappings),
        "thresholds": look.steps or levels((None, GREEN)),
    }
    optional = {"decimals": look.decimals, "min": look.low, "max": look.high, "noValue": look.missing}
    defaults |= {name: value for name, value in optional.items() if value is not None}
    named = f" Alerts: {', '.join(look.alerts)}." if look.alerts else ""
    return {
        "type": kind,
        "title": title,
        "description": text + named,
        "datasource": DATASOURCE,
        "gridPos": {"w": size[0], "h": size[1], "x": 0, "y": 0},
        "targets": _targets(queries, "table" if is_table else "time_series"),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {},
        "links": _runbooks(look.alerts),
    }


def tile(title: str, text: str, query: Query, look: Look, *, graph: bool = True, names: bool = False) -> Json:
    """Return a panel with one number, coloured by its thresholds.

    Args:
        graph: True to draw the past behind it.
        names: True to show the name of the series, too.
    """
    panel = _panel("stat", title, text, (4, 4), [query], look)
    panel["options"] = {
        "colorMode": "background" if look.steps not in (None, PLAIN) else "value",
        "graphMode": "area" if graph else "none",
        "justifyMode": "auto",
        "showPercentChange": False,
        "wideLayout": True,
        "orientation": "auto",
        "textMode": "value_and_name" if names else "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return panel


def graph(
    title: str,
    text: str,
    queries: Sequence[Query],
    look: Look,
    *,
    size: tuple[int, int] = (8, 8),
    bars: bool = False,
    stacked: bool = False,
    step: str | None = None,
    table: bool = False,
) -> Json:
    """Return a panel with lines over time, or bars.

    Args:
        stacked: True to add the series up.
        step: shortest interval between two points. Jobs take long, so a shorter one shows gaps.
        table: True for a legend with the last and the highest value of each series.
    """
    panel = _panel("timeseries", title, text, size, queries, look)
    panel["fieldConfig"]["defaults"]["custom"] = {
        "drawStyle": "bars" if bars else "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 60 if bars else 30 if stacked else 8,
        "showPoints": "auto",
        # Milliseconds: if nothing was measured for 15 minutes, the line ends.
        "spanNulls": False if bars or step is None else 900_000,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if look.steps else "off"},
    }
    legend: Json = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    if table:
        legend |= {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull", "max"]}
    panel["options"] = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if step is not None:
        panel["interval"] = step
    return panel


def timeline(title: str, text: str, query: Query, look: Look, *, size: tuple[int, int]) -> Json:
    """Return a panel with a bar for each series, whose colour is its state over time."""
    panel = _panel("state-timeline", title, text, size, [query], look)
    panel["fieldConfig"]["defaults"]["custom"] = {"lineWidth": 0, "fillOpacity": 80}
    panel["options"] = {
        "mergeValues": True,
        "showValue": "auto",
        "alignValue": "left",
        "rowHeight": 0.9,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return panel


@dataclass(frozen=True)
class Column:
    """A column of a table: the query that gives its values, and their form."""

    name: str
    query: str
    look: Look = Look()
    width: int | None = None


def _column_style(column: Column) -> Json:
    look = column.look
    properties: list[Json] = [{"id": "unit", "value": look.unit}]
    if look.steps:
        properties.append({"id": "thresholds", "value": look.steps})
        properties.append({"id": "color", "value": {"mode": "thresholds"}})
    if look.steps or look.mappings:
        properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
    if look.mappings:
        properties.append({"id": "mappings", "value": list(look.mappings)})
    if look.decimals is not None:
        properties.append({"id": "decimals", "value": look.decimals})
    if column.width is not None:
        properties.append({"id": "custom.width", "value": column.width})
    return {"matcher": {"id": "byName", "options": column.name}, "properties": properties}


def table_by(
    label: str, title: str, text: str, columns: Sequence[Column], look: Look, *, size: tuple[int, int]
) -> Json:
    """Return a table with a row for each value of a label; each query has that label alone."""
    queries = [Query(column.query, instant=True) for column in columns]
    panel = _panel("table", title, text, size, queries, look)
    values = [f"Value #{target['refId']}" for target in panel["targets"]]
    times = ["Time", *(f"Time {number}" for number in range(1, len(columns) + 1))]
    panel["transformations"] = [
        {"id": "joinByField", "options": {"byField": label, "mode": "outer"}},
        {
            "id": "organize",
            "options": {
                "excludeByName": dict.fromkeys(times, True),
                "indexByName": {name: index for index, name in enumerate([label, *values])},
                "renameByName": dict(zip(values, [column.name for column in columns], strict=True)),
            },
        },
    ]
    panel["fieldConfig"]["overrides"] = [_column_style(column) for column in columns]
    return _as_table(panel)


def table_of(title: str, text: str, query: str, hidden: Sequence[str], look: Look, *, size: tuple[int, int]) -> Json:
    """Return a table with the labels of each series that a query returns, without the hidden ones."""
    panel = _panel("table", title, text, size, [Query(query, instant=True)], look)
    panel["transformations"] = [
        {"id": "organize", "options": {"excludeByName": dict.fromkeys(["Time", "Value", "Value #A", *hidden], True)}},
    ]
    return _as_table(panel)


def _as_table(panel: Json) -> Json:
    panel["fieldConfig"]["defaults"]["custom"] = {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False}
    panel["options"] = {"showHeader": True, "cellHeight": "sm", "frameIndex": 0}
    return panel


# Dashboards


@dataclass(frozen=True)
class Row:
    """A row: a heading, and the panels below it. Panels of a folded row run no query until somebody opens it."""

    title: str
    panels: Sequence[Json]
    folded: bool = False


def _place(panels: Iterable[Json], top: int) -> int:
    """Place panels from left to right in the highest place where each fits. Return the line below all of them."""
    heights = [top] * COLUMNS
    for panel in panels:
        place = panel["gridPos"]
        width = place["w"]
        starts = range(COLUMNS - width + 1)
        place["x"] = min(starts, key=lambda x: (max(heights[x : x + width]), x))
        place["y"] = max(heights[place["x"] : place["x"] + width])
        heights[place["x"] : place["x"] + width] = [place["y"] + place["h"]] * width
    return max(heights)


def _arranged(rows: Iterable[Row]) -> list[Json]:
    """Return the panels of all rows, each in its place and with its number."""
    placed: list[Json] = []
    number = top = 0
    for row in rows:
        number += 1
        heading: Json = {"type": "row", "id": number, "title": row.title, "collapsed": row.folded, "panels": []}
        heading["gridPos"] = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        bottom = _place(row.panels, top + 1)
        for panel in row.panels:
            number += 1
            panel["id"] = number
        placed.append(heading)
        if row.folded:
            heading["panels"] = list(row.panels)
            top += 1
        else:
            placed += row.panels
            top = bottom
    return placed


def label_values(name: str, title: str, selector: str, label: str) -> Json:
    """Return a variable whose choices are the values of a label. All of them are chosen at first."""
    query = f"label_values({selector}, {label})"
    return {
        "type": "query",
        "name": name,
        "label": title,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Matches also a series without that label, as `model` is with auth.metrics: open.
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
        "regex": "",
        "skipUrlSync": False,
    }


def _variables(docs: str, further: Sequence[Json]) -> list[Json]:
    source: Json = {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
        "current": {},
        "options": [],
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }
    address: Json = {
        "type": "constant",
        "name": "docs",
        "label": "Address of docs/monitoring.md",
        "query": docs,
        "current": {"selected": True, "text": docs, "value": docs},
        "options": [{"selected": True, "text": docs, "value": docs}],
        "hide": 2,
        "skipUrlSync": True,
    }
    gateways = label_values("instance", "Gateway", f'{PREFIX}build_info{{job="{JOB}"}}', "instance")
    return [source, gateways, *further, address]


def dashboard(uid: str, title: str, text: str, rows: Sequence[Row], variables: Sequence[Json], docs: str) -> Json:
    """Return a dashboard."""
    alerts: Json = {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": RED,
        "expr": 'ALERTS{alertname=~"ComfyUI.+", alertstate="firing", severity=~"page|warning"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{severity}} {{backend}}",
        "tagKeys": "severity",
        "step": "60s",
        "useValueForTime": False,
    }
    own: Json = {
        "name": "Annotations & Alerts",
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "builtIn": 1,
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "type": "dashboard",
    }
    others: Json = {
        "title": "ComfyUI dashboards",
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }
    guide: Json = {
        "title": "Monitoring",
        "type": "link",
        "url": "${docs:raw}#dashboards",
        "icon": "doc",
        "tags": [],
        "tooltip": "Metrics, alerts and what to do",
        "asDropdown": False,
        "includeVars": False,
        "keepTime": False,
        "targetBlank": True,
    }
    return {
        "uid": uid,
        "title": title,
        "description": text,
        "tags": [TAG],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "weekStart": "",
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "links": [others, guide],
        "annotations": {"list": [own, alerts]},
        "templating": {"list": _variables(docs, variables)},
        "panels": _arranged(rows),
    }
