"""A gateway with the keys of two users."""

from __future__ import annotations

import hashlib

from tests.support.lab import GatewayProcess, Lab

ANNA, BEN, BOSS = "key-of-anna-123456", "key-of-ben-1234567", "key-of-the-boss-12"


async def with_keys(lab: Lab, backends: int = 1, simulator: tuple[str, ...] = (), **settings: object) -> GatewayProcess:
    """A gateway with two users' keys and an admin's. `simulator` are options of the simulators."""
    config = lab.directory / "gateway.yaml"
    config.write_text(
        f"""
auth:
  keys:
    - {{name: anna, sha256: {hashlib.sha256(ANNA.encode()).hexdigest()}}}
    - {{name: ben, key: "${{BEN_KEY}}"}}
    - {{name: boss, key: "{BOSS}", role: admin}}
    - {{name: prometheus, key: "key-for-metrics-1", role: metrics}}
tenants: {{default: {{nodes: {{trust: [gwtest]}}}}}}
"""
    )
    simulators = await lab.simulators(backends, *simulator)
    options = ("--config", str(config))
    gateway = GatewayProcess(
        lab.directory / "data", [s.url for s in simulators], options, {"probe__interval": 0.25, **settings}
    )
    gateway.environment["BEN_KEY"] = BEN
    lab.servers.append(gateway)
    await gateway.start()
    await lab.backends_up(gateway, backends)
    return gateway
