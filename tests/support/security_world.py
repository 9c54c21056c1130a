"""What the tests of this folder start: gateways with callers of every kind, and how they ask."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from tests.support.comfy_client import Comfy
from tests.support.folders import contents_below
from tests.support.lab import GatewayProcess, Lab, Simulator
from tests.support.tenancy import with_trust

KEYS = {name: f"{name}-key-0123456789" for name in ("anna", "ben", "boss", "monitor", "mate", "other")}
ROLES = {"boss": "admin", "monitor": "metrics"}


async def start(
    lab: Lab,
    *simulators: Simulator | str,
    isolation: str = "isolated",
    anonymous: bool = False,
    up: int | None = None,
    tenants: dict[str, str] | None = None,
    data: str = "data",
    **settings: Any,
) -> GatewayProcess:
    """A gateway with these keys, each a tenant of its own unless `tenants` says otherwise."""
    known = tenants or {}
    keys = [
        {
            "name": name,
            "key": key,
            "role": ROLES.get(name, "user"),
            **({"tenant": known[name]} if name in known else {}),
        }
        for name, key in KEYS.items()
    ]
    guests = {"anonymous": {"networks": ["127.0.0.0/8"], "tenant": "guests"}} if anonymous else {}
    config: dict[str, Any] = {
        "auth": {"keys": keys, "isolation": isolation, "metrics": "key"},
        "probe": {"interval": 0.25},
        "tenants": with_trust(guests),
    }
    path = lab.directory / f"gateway-{data}.yaml"
    path.write_text(json.dumps(config))
    urls = [simulator if isinstance(simulator, str) else simulator.url for simulator in simulators]
    gateway = GatewayProcess(lab.directory / data, urls, ("--config", str(path)), settings)
    lab.servers.append(gateway)
    await gateway.start()
    await lab.backends_up(gateway, len(urls) if up is None else up)
    return gateway


def caller(lab: Lab, gateway: GatewayProcess, name: str) -> Comfy:
    """Whoever has the key of that name; nobody has one called ''."""
    return Comfy(lab.http, gateway.url, **({"X_API_Key": KEYS[name]} if name else {}))


@dataclass(frozen=True)
class World:
    """A gateway over one backend, which keeps its files below `base`, and two of its tenants."""

    lab: Lab
    base: Path
    simulator: Simulator
    gateway: GatewayProcess
    anna: Comfy
    ben: Comfy


def base_of(lab: Lab) -> Path:
    """Return the folder in which the backend of a `World` keeps its files."""
    return lab.directory / "base"


async def start_world(lab: Lab, **settings: Any) -> World:
    """Start a `World`, for all tests of a module that do not disturb each other.

    With a cache, as ComfyUI has by default, consecutive prompts share the letters in names of temporary files.
    """
    simulator = await lab.simulator("--base-dir", str(base_of(lab)), "--cache-ram")
    gateway = await start(lab, simulator, **settings)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    return World(lab, base_of(lab), simulator, gateway, anna, ben)


@dataclass(frozen=True)
class Seen:
    """An answer as a caller can tell it from another."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


# What differs between any two answers.
_ALWAYS = frozenset({"date", "x-request-id", "x-comfy-request-id"})


async def ask(comfy: Comfy, method: str, path: str, body: Any = None, **headers: str) -> Seen:
    """One request, its path as it stands."""
    data = body if body is None or isinstance(body, (bytes, aiohttp.FormData)) else json.dumps(body).encode()
    sent = {**comfy.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
    url = URL(comfy.url + path, encoded=True)
    async with comfy.http.request(method, url, data=data, headers=sent, allow_redirects=False) as answer:
        shown = tuple(sorted((k.lower(), v) for k, v in answer.headers.items() if k.lower() not in _ALWAYS))
        return Seen(answer.status, shown, await answer.read())


async def raw(port: int, request: bytes) -> bytes:
    """What is answered to these bytes, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


async def broadcast(lab: Lab, simulator: Simulator, message: dict[str, Any] | bytes) -> None:
    """Have a backend tell something to all of its sockets, as a custom node does."""
    kind = "application/octet-stream" if isinstance(message, bytes) else "application/json"
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    url = f"{simulator.url}/simulator/broadcast"
    async with lab.http.post(url, data=data, headers={"Content-Type": kind}) as answer:
        assert answer.status == 200, await answer.text()


def files_below(directory: Path) -> list[tuple[Path, bytes]]:
    """Every file, with its bytes: also what SQLite keeps beside its database."""
    return sorted(contents_below(directory).items())
