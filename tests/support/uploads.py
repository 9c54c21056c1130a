"""Uploads by callers with keys, and prompts that load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp

from tests.support.comfy_client import Comfy
from tests.support.folders import contents_below
from tests.support.lab import GatewayProcess, Lab, Simulator
from tests.support.pictures import colour
from tests.support.workflows import slow

ANNA, BEN, BOSS = "anna-key-0123456789", "ben-key-0123456789", "boss-key-0123456789"


async def upload(comfy: Comfy, data: Any, name: str, route: str = "image", **fields: str) -> tuple[int, Any]:
    """POST /upload/image or /upload/mask; (status, answer)."""
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", data, filename=name, content_type="image/png")
    for key, value in fields.items():
        form.add_field(key, value)
    async with comfy.http.post(f"{comfy.url}/upload/{route}", data=form, headers=comfy.headers) as answer:
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        return answer.status, await answer.json() if is_json else await answer.text()


def load(image: Any, prefix: str = "loaded") -> dict[str, Any]:
    """Load an image and save it."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": image}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


async def result(comfy: Comfy, prompt: dict[str, Any]) -> tuple[int, int, int]:
    """The colour of what a prompt saves."""
    entry = await comfy.entry(await comfy.prompt(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert entry["prompt"][2] == prompt
    (image,) = comfy.images(entry)
    return colour(await comfy.view(image))


async def folder(lab: Lab, simulator: Simulator, kind: str = "input") -> set[str]:
    """The files that a backend has, as it lists them."""
    async with lab.http.get(f"{simulator.url}/internal/files/{kind}") as answer:
        return {name.removesuffix(f" [{kind}]") for name in await answer.json()}


def brought(base: Path, content: bytes, kind: str = "input") -> list[str]:
    """The paths, below a folder of a simulator with this base directory, of all files that have these bytes."""
    top = base / kind
    return [str(path.relative_to(top)) for path, data in contents_below(top).items() if data == content]


async def busy(lab: Lab, simulator: Simulator, count: int = 6) -> None:
    """Give a backend work behind the gateway's back, so that the next prompts go elsewhere."""
    for n in range(count):
        await Comfy(lab.http, simulator.url).prompt(slow(n, steps=1000, step_seconds=0.05))


async def with_keys(lab: Lab, *simulators: Simulator | str, **settings: Any) -> GatewayProcess:
    """A gateway with two tenants and an admin."""
    config = lab.directory / "gateway.yaml"
    roles = ((ANNA, "user"), (BEN, "user"), (BOSS, "admin"))
    keys = [f"    - {{name: {key.split('-')[0]}, key: {key}, role: {role}}}" for key, role in roles]
    trust = "tenants: {default: {nodes: {trust: [gwtest]}}}\n"
    config.write_text("auth:\n  keys:\n" + "\n".join(keys) + "\n" + trust)
    return await lab.gateway(*simulators, options=("--config", str(config)), **settings)
