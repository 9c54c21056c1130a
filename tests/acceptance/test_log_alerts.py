"""The alerts of config/logs/loki-rules.yml: their queries find real lines, with the fields that they name.

No Loki is there to run them, so what its functions compute is not shown. tests/services/test_logql.py shows the syntax.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from gateway.comfy.responses import SystemStats
from gateway.fleet.backend import Backend
from gateway.fleet.health import Health, Pulse
from gateway.jobs.lifecycle.fleet_status import fleet_status
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.workflows import failing, slow

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "config" / "logs" / "loki-rules.yml").read_text())
QUERY = re.compile(r'\{job="comfyui-gateway"\}(.*?)\[(?:\d+[mhd])\]')
STAGE = re.compile(r"\s*(\|=|\|~|\|)\s*(`[^`]*`|(?:[^|`\"]|\"[^\"]*\")+)")


def rules() -> Iterator[dict[str, Any]]:
    for group in RULES["groups"]:
        yield from group["rules"]


def find(query: str, lines: list[str]) -> list[dict[str, Any]]:
    """Return what a query's stages leave of lines: the fields that it extracts."""
    kept = [(line, dict[str, Any]()) for line in lines]
    matched = 0
    for stage in STAGE.finditer(query):
        assert stage.start() == matched, query[matched:]
        matched, (kind, text) = stage.end(), (stage[1], stage[2].strip())
        if kind == "|=":
            kept = [each for each in kept if text.strip("`") in each[0]]
        elif kind == "|~":
            kept = [each for each in kept if re.search(text.strip("`"), each[0])]
        elif text.startswith("json "):
            fields = re.findall(r'(\w+)="(\w+)"', text)
            assert all(name == there for name, there in fields), text
            assert all(name in json.loads(line) for line, _ in kept for name, _ in fields), text
            kept = [(line, {name: json.loads(line)[name] for name, _ in fields}) for line, _ in kept]
        elif text.startswith("unwrap "):
            # A value that is unknown is null, and __error__ leaves it out.
            kept = [each for each in kept if isinstance(each[1][text.split()[1]], int | float)]
        elif text != '__error__=""':
            name, operator, value = re.fullmatch(r'(\w+)(=~|!=|=)"([^"]*)"', text).groups()  # type: ignore[union-attr]
            assert all(name in found for _, found in kept), (text, kept)
            kept = [each for each in kept if _fits(each[1][name], operator, value)]
    assert not query[matched:].strip(), query[matched:]
    return [found for _, found in kept]


def _fits(found: Any, operator: str, value: str) -> bool:
    if operator == "=~":
        return re.fullmatch(value, str(found)) is not None
    return (str(found) == value) is (operator == "=")


async def test_each_query_finds_lines(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, log__fleet_status=0.1)
    for prompt, fault, expected in ((slow(), "", None), (failing(), "", "caller"), (slow(), "oom", "backend")):
        if fault:
            await simulator.fault(lab.http, fault)
        async with lab.http.post(f"{gateway.url}/prompt", json={"prompt": prompt}) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        await until(partial(_has_ended, gateway, prompt_id, expected), what=f"the end of the job, and {expected}")
    await until(partial(_has, gateway, '"vram_used":0'), what="a line of the fleet")
    lines = gateway.log.read_text().splitlines()
    asked = 0
    for rule in rules():
        expression = " ".join(rule["expr"].split())
        queries = QUERY.findall(expression)
        assert len(queries) == expression.count('{job="comfyui-gateway"}'), expression
        assert expression.count("(") == expression.count(")")
        if rule["alert"] == "ComfyUIGatewayEvent":
            continue
        for query in queries:
            assert find(query, lines), query
            asked += 1
    assert asked > 15


async def _has(gateway: GatewayProcess, text: str) -> bool:
    return text in gateway.log.read_text()


async def _has_ended(gateway: GatewayProcess, prompt_id: str, fault: str | None) -> bool:
    """Whether a job has ended, and by this fault."""
    ends = [line for line in gateway.log_lines() if line["event"] == "job" and line["status"] in ("done", "failed")]
    return any((line["prompt_id"], line["fault"]) == (prompt_id, fault) for line in ends)


def test_events_that_are_worth_an_alert_have_one() -> None:
    (told,) = re.findall(r"Worth an alert.*?\n\n", (ROOT / "docs" / "logs.md").read_text(), re.DOTALL)
    (rule,) = [rule for rule in rules() if rule["alert"] == "ComfyUIGatewayEvent"]
    found = re.findall(r"[(\"]((?:\w+\|)+\w+)[)\"]", rule["expr"])
    assert len(found) == 2
    assert all(events.split("|") == re.findall(r"`(\w+)`", told) for events in found)


def test_each_rule_tells_how_bad_it_is_and_what_to_do() -> None:
    documented = (ROOT / "docs" / "logs.md").read_text()
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "page")
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"docs/(monitoring|logs)\.md#[a-z-]+", rule["annotations"]["runbook_url"])
        assert f"`{rule['alert']}`" in documented


def backend(name: str, health: Health, stats: dict[str, Any] | None = None, pending: int = 0) -> Backend:
    """A backend at its last probe."""
    pulse = Pulse(0.0, 30.0)
    pulse.health = health
    made = Backend(name, f"http://{name}", 16, primary=False, client=None, pulse=pulse)  # type: ignore[arg-type]
    made.connected, made.foreign_pending = True, pending
    made.stats = None if stats is None else SystemStats(stats)
    return made


def test_the_fleets_line_counts_foreign_prompts_and_names_the_fullest() -> None:
    def stats(free: int, kind: str = "cuda", ram: int = 60) -> dict[str, Any]:
        devices = [{"type": kind, "vram_free": free, "vram_total": 100}]
        return {"system": {"ram_free": ram, "ram_total": 100}, "devices": devices}

    fleet = [
        backend("a", Health.UP, stats(40), pending=2),
        backend("b", Health.UP, stats(4, ram=10)),
        backend("cpu", Health.UP, stats(0, "cpu")),
        backend("gone", Health.GONE, stats(1)),
        backend("new", Health.UP),
    ]
    assert fleet_status(fleet, [(1, 0), (3, 1), (0, 0), (0, 0), (0, 0)], waiting=7) == {
        "pending": 13,
        "waiting": 7,
        "running": 1,
        "backends_up": 4,
        "backends_down": 1,
        "backends_stuck": 1,
        "vram_used": 0.96,
        "vram_backend": "b",
        "ram_used": 0.9,
        "ram_backend": "b",
    }
    assert fleet_status([], [], 0)["vram_used"] is None


def test_the_shippers_examples_are_well_formed_and_read_one_file() -> None:
    examples = sorted((ROOT / "config" / "logs").iterdir())
    assert len(examples) == 6
    for path in examples:
        text = path.read_text()
        if path.suffix in (".yaml", ".yml", ".json"):
            assert isinstance(yaml.safe_load(text), dict)
        if path.stem not in ("loki-rules", "datadog-pipeline"):
            assert "/var/log/comfyui-gateway/gateway.log" in text
