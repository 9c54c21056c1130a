"""A gateway with tenants: a configuration file with keys, labels, policies and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator

BOSS = "boss"


def key_of(name: str) -> str:
    """The key of a caller."""
    return f"a-key-for-tests-of-{name}"


def with_trust(tenants: dict[str, Any]) -> dict[str, Any]:
    """Return tenants' settings that trust the simulator's test classes, unless they say themselves what is trusted."""
    default = tenants.get("default", {})
    nodes = {"trust": ["gwtest"], **default.get("nodes", {})}
    return {**tenants, "default": {**default, "nodes": nodes}}


def write_config(
    lab: Lab,
    simulators: list[Simulator],
    tenants: dict[str, Any],
    labels: dict[str, list[str]],
    *,
    dedicated: dict[str, list[str]] | None = None,
    **sections: Any,
) -> Path:
    """Write a configuration with callers anna, anna-too (of anna's tenant), ben, eve, and an admin.

    `labels` and `dedicated`, the tenants of dedicated backends, are by backend: b1, b2, …
    """
    backends = [
        {
            "url": simulator.url,
            "name": f"b{n}",
            "labels": labels.get(f"b{n}", []),
            "tenants": (dedicated or {}).get(f"b{n}", []),
        }
        for n, simulator in enumerate(simulators, start=1)
    ]
    keys: list[dict[str, str]] = [{"name": name, "key": key_of(name)} for name in ("anna", "ben", "eve")]
    keys.append({"name": "anna-too", "key": key_of("anna-too"), "tenant": "anna"})
    keys.append({"name": BOSS, "key": key_of(BOSS), "role": "admin"})
    path = lab.directory / "gateway.yaml"
    path.write_text(
        yaml.safe_dump({"backends": backends, "auth": {"keys": keys}, "tenants": with_trust(tenants), **sections})
    )
    return path


async def serve(lab: Lab, config: Path, up: int, **settings: Any) -> GatewayProcess:
    """A gateway with this file."""
    gateway = GatewayProcess(
        lab.directory / "data", [], ("--config", str(config)), {"probe__interval": 0.25, **settings}
    )
    lab.servers.append(gateway)
    await gateway.start()
    await lab.backends_up(gateway, up)
    return gateway


def caller(lab: Lab, gateway: GatewayProcess, name: str) -> Comfy:
    """A client with a caller's key."""
    return Comfy(lab.http, gateway.url, X_API_Key=key_of(name))
