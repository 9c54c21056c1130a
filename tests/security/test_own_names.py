"""Every name that a client sees opens its own bytes, for its owner alone, whatever becomes of backends and folders."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from gateway.simulator.nodes import seed_colour
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator
from tests.support.pictures import colour, png
from tests.support.security_world import KEYS, caller
from tests.support.uploads import upload
from tests.support.workflows import slow

Colour = tuple[int, int, int]


class Owner:
    """A tenant with all that it was told of: the colour that each name must open."""

    def __init__(self, name: str, first_seed: int) -> None:
        self.name = name
        self.seed = first_seed
        self.opens: dict[str, Colour] = {}

    async def works(self, comfy: Comfy, count: int) -> None:
        """Run workflows that are the same for all tenants but for their seeds, and keep what their names must open."""
        await upload(comfy, png((self.seed % 250, 1, 1)), "same.png", overwrite="true")
        prompts = []
        for _ in range(count):
            self.seed += 1
            prompt: dict[str, Any] = slow(self.seed, steps=1, prefix="same")
            prompt["3"] = {"class_type": "LoadImage", "inputs": {"image": "same.png"}}
            prompt["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "deep/same"}}
            prompts.append((self.seed, prompt))
        ids = await asyncio.gather(*(comfy.prompt(prompt) for _, prompt in prompts))
        for (seed, prompt), prompt_id in zip(prompts, ids, strict=True):
            entry = await comfy.entry(prompt_id)
            assert entry["status"]["status_str"] == "success", entry["status"]
            assert entry["prompt"][2] == prompt
            for node_id, wanted in (("2", seed_colour(seed)), ("4", None)):
                (image,) = entry["outputs"][node_id]["images"]
                name = f"{image['subfolder']}/{image['filename']}"
                shown = colour(await comfy.view(image))
                assert wanted is None or shown == wanted
                assert self.opens.setdefault(name, shown) == shown, "a name was given again"

    async def check(self, comfy: Comfy, others: Comfy, *, are_lost: bool = False) -> None:
        """Look at each name: it opens its bytes or, once these are lost, nothing; and never for others."""
        for name, wanted in self.opens.items():
            subfolder, _, filename = name.rpartition("/")
            query = {"filename": filename, "subfolder": subfolder, "type": "output"}
            async with comfy.http.get(f"{comfy.url}/view", params=query, headers=comfy.headers) as answer:
                assert answer.status == 200 or (are_lost and answer.status in (404, 503)), (name, answer.status)
                if answer.status == 200:
                    assert colour(await answer.read()) == wanted, name
            async with others.http.get(f"{others.url}/view", params=query, headers=others.headers) as answer:
                assert answer.status != 200 or colour(await answer.read()) != wanted, name


async def start(lab: Lab, simulators: dict[str, Simulator]) -> GatewayProcess:
    """A gateway before named backends."""
    keys = [{"name": name, "key": KEYS[name], "role": "user"} for name in ("anna", "ben")]
    config: dict[str, Any] = {
        "auth": {"keys": keys},
        "backends": [{"name": name, "url": simulator.url} for name, simulator in simulators.items()],
    }
    path = lab.directory / "own-names.yaml"
    path.write_text(json.dumps(config))
    return await lab.gateway(options=("--config", str(path)), up=len(simulators))


async def test_names_open_their_own_bytes_through_all_that_happens(lab: Lab, tmp_path: Path) -> None:
    """Two tenants with the same workflows, three backends; a restart, emptied folders, a backend with another name."""
    bases = {name: tmp_path / name for name in ("one", "two", "three")}
    for base in bases.values():
        base.mkdir()
    simulators = {name: await lab.simulator("--base-dir", str(base)) for name, base in bases.items()}
    gateway = await start(lab, simulators)
    owners = [Owner("anna", 10), Owner("ben", 100)]

    async def work() -> tuple[Comfy, Comfy]:
        anna, ben = (caller(lab, gateway, owner.name) for owner in owners)
        await asyncio.gather(owners[0].works(anna, 6), owners[1].works(ben, 6))
        return anna, ben

    async def check(anna: Comfy, ben: Comfy, *, are_lost: bool = False) -> None:
        await owners[0].check(anna, ben, are_lost=are_lost)
        await owners[1].check(ben, anna, are_lost=are_lost)

    await check(*await work())
    assert await gateway.stop() == 0
    gateway = await start(lab, simulators)
    await check(*await work())
    shutil.rmtree(bases["two"] / "output")
    await check(*await work(), are_lost=True)
    assert await gateway.stop() == 0
    simulators["renamed"] = simulators.pop("three")
    gateway = await start(lab, simulators)
    await check(*await work(), are_lost=True)
    # Each tenant's names count on without a gap: one ComfyUI would have named them so.
    for owner in owners:
        numbers = sorted(int(name[-10:-5]) for name in owner.opens if "deep" not in name)
        assert numbers == list(range(1, 25))
