"""After a sweep ComfyUI counts from 1 again: no new ComfyUI_00001_.png is served for the old one, nor the reverse."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from gateway.simulator.nodes import seed_colour
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator
from tests.support.pictures import colour
from tests.support.saved_copies import only
from tests.support.security_world import ask, caller, start
from tests.support.stored import objects, storage, until_rows
from tests.support.sweeps import judged, reading, saved, sweep
from tests.support.uploads import load, result
from tests.support.workflows import slow


@dataclass
class Made:
    """The images of a tenant, with the seeds that tell their colours, and their bytes."""

    tenant: str
    seeds: dict[str, int] = field(default_factory=dict)
    images: dict[str, dict[str, str]] = field(default_factory=dict)
    bytes: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, Any] = field(default_factory=dict)

    async def make(self, comfy: Comfy, seed: int) -> str:
        """Make an image; its name. No earlier image of the tenant has the name."""
        prompt_id = await comfy.prompt(slow(seed, steps=1))
        entry = await comfy.entry(prompt_id)
        (image,) = comfy.images(entry)
        name = image["filename"]
        assert name not in self.images
        self.seeds[name], self.images[name], self.entries[prompt_id] = seed, image, entry
        self.bytes[name] = await comfy.view(image)
        assert colour(self.bytes[name]) == seed_colour(seed)
        return name

    async def check(self, comfy: Comfy, other: Comfy, *, reads: bool = True) -> None:
        """Assert that each image is served under its name, is what a prompt reads, and is no other tenant's."""
        for prompt_id, entry in self.entries.items():
            assert (await comfy.entry(prompt_id))["outputs"] == entry["outputs"]
        await asyncio.gather(*(self._check(name, comfy, other, reads) for name in self.images))

    async def _check(self, name: str, comfy: Comfy, other: Comfy, reads: bool) -> None:
        assert await comfy.view(self.images[name]) == self.bytes[name], name
        theirs = await ask(other, "GET", f"/view?filename={name}&type=output")
        assert theirs.body != self.bytes[name], name
        if reads:
            result = await comfy.entry(await comfy.prompt(load(f"{name} [output]")))
            (read,) = comfy.images(result)
            assert colour(await comfy.view(read)) == seed_colour(self.seeds[name]), name


async def begun(lab: Lab, simulator: Simulator) -> tuple[GatewayProcess, dict[str, Comfy]]:
    """A gateway that stores outputs before it tells a job's end; one of a team, and an isolated guest of the team."""
    told = storage(lab, when="before")
    gateway = await start(lab, simulator, isolation="shared", tenants={"other": "guest"}, **told)
    return gateway, {name: caller(lab, gateway, name) for name in ("anna", "other")}


async def test_neither_is_served_for_the_other(lab: Lab, tmp_path: Path) -> None:
    """In /view, in /history and as an input, for two tenants, over sweeps and a restart."""
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway, callers = await begun(lab, simulator)
    tenants = {name: Made(name) for name in callers}
    seeds = iter(range(0x111111, 0xFFFFFF, 0x050301))
    for _ in range(2):
        for name in callers:
            await tenants[name].make(callers[name], next(seeds))
        assert [path.name for path in saved(tmp_path)] == ["ComfyUI_00001_.png"] * 2
        assert await sweep(gateway, tmp_path, "--delete", kinds=("output",)) == {"stored": 2, "deleted now": 2}
        assert saved(tmp_path) == []
    # Some are in the store alone, and some on the backend as well.
    for name in callers:
        await tenants[name].make(callers[name], next(seeds))
    await tenants["anna"].check(callers["anna"], callers["other"])
    await tenants["other"].check(callers["other"], callers["anna"])
    await gateway.stop()
    gateway, callers = await begun(lab, simulator)
    await tenants["anna"].check(callers["anna"], callers["other"], reads=False)
    await sweep(gateway, tmp_path, "--delete")
    await simulator.kill()
    for name, each in (("anna", "other"), ("other", "anna")):
        await tenants[name].check(callers[name], callers[each], reads=False)


async def test_a_folder_of_another_backend_is_left_alone(lab: Lab, tmp_path: Path) -> None:
    """Both have a file of this name in the store; the operator names the wrong one of the two."""
    bases = [tmp_path / name for name in ("b1", "b2")]
    simulators = [await lab.simulator("--base-dir", str(base)) for base in bases]
    gateway = await start(lab, *simulators, isolation="shared", **storage(lab, when="before"))
    anna = caller(lab, gateway, "anna")
    for name in ("b1", "b2"):
        await only(lab, gateway, name)
        await anna.entry(await anna.prompt(slow(0x112233, steps=1)))
    assert [path.name for base in bases for path in saved(base)] == ["ComfyUI_00001_.png"] * 2
    assert await sweep(gateway, bases[1], "--delete") == {"changed": 1}
    assert await sweep(gateway, bases[0], "--delete") == {"stored": 1, "deleted now": 1}


async def test_a_history_entry_takes_its_files_with_it(lab: Lab, tmp_path: Path) -> None:
    """With `storage.delete_with_history`: the objects, and what the backends have; nobody finds either again."""
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    settings = storage(lab, when="before", delete_with_history="true")
    gateway = await start(lab, simulator, isolation="shared", **settings)
    anna = caller(lab, gateway, "anna")
    ids = [await anna.prompt(slow(seed, steps=1)) for seed in (1, 2, 3)]
    images = [anna.images(await anna.entry(each))[0] for each in ids]
    named = await anna.prompt(reading("ComfyUI_00001_.png [output]"))
    await anna.running(named)

    async def are_left(*left: int) -> None:
        # A row goes after its object.
        await until_rows(gateway, lambda rows: len(rows) == len(left))
        assert len(objects(lab)) == len(left)
        found = [(await ask(anna, "GET", f"/view?{urlencode(each)}")).status for each in images]
        assert found == [200 if number in left else 404 for number in (1, 2, 3)]

    await are_left(1, 2, 3)
    assert (await anna.post("/history", {"delete": [ids[1]]}))[0] == 200
    await are_left(1, 3)
    # An open job names the first one.
    assert (await anna.post("/history", {"clear": True}))[0] == 200
    await are_left(1)
    assert await anna.get("/history") == {}
    assert await sweep(gateway, tmp_path, kinds=("output",)) == {"deleted": 2, "in_use": 2}, (
        "the copy for the job as well"
    )


async def test_a_prompt_reads_no_output_that_a_sweep_may_delete_at_any_moment(lab: Lab, tmp_path: Path) -> None:
    """Without keys a prompt reads an output in its place. Its bytes lie there still when the prompt is sent."""
    gateway = await lab.gateway(await lab.simulator("--base-dir", str(tmp_path)), **storage(lab, when="before"))
    comfy = Comfy(lab.http, gateway.url)
    (image,) = comfy.images(await comfy.entry(await comfy.prompt(slow(0x112233, steps=1))))
    assert await judged(comfy, tmp_path, "output", image["filename"], delete=True) == "stored"
    before = await comfy.prompt(slow(steps=1000))
    await comfy.running(before)
    waits = await comfy.prompt(load(f"{image['filename']} [output]"))
    (tmp_path / "output" / image["filename"]).unlink()
    assert (await comfy.post("/interrupt", {"prompt_id": before}))[0] == 200
    (read,) = comfy.images(await comfy.entry(waits))
    assert colour(await comfy.view(read)) == seed_colour(0x112233)


async def test_a_cached_result_means_the_old_file(lab: Lab, tmp_path: Path) -> None:
    """A prompt has savers with one prefix, and only one runs again: it writes under the names of the cached ones."""
    simulator = await lab.simulator("--cache-ram", "--base-dir", str(tmp_path))

    async def run() -> tuple[GatewayProcess, Comfy]:
        gateway = await start(lab, simulator, isolation="shared", **storage(lab, when="before"))
        return gateway, caller(lab, gateway, "anna")

    gateway, anna = await run()
    prompt: dict[str, Any] = {}
    pictures: dict[str, bytes] = {}
    for turn, (node, seed) in enumerate({"1": 0x112233, "5": 0x445566, "8": 0x778899, "11": 0x99AABB}.items()):
        prompt = {**prompt, **branch(seed, node)}
        if turn == 2:
            await gateway.stop()
            gateway, anna = await run()
        listener = await anna.listen("c")
        prompt_id = await anna.prompt(prompt, "c")
        await listener.end_of(prompt_id)
        entry = await anna.entry(prompt_id)
        assert [path.name for path in saved(tmp_path)] == ["ComfyUI_00001_.png"]
        names = {each: output["images"][0]["filename"] for each, output in entry["outputs"].items()}
        assert len(set(names.values())) == turn + 1
        told = {each["data"]["node"]: each["data"]["output"] for each in listener.heard if each["type"] == "executed"}
        assert told == entry["outputs"]
        for output in entry["outputs"].values():
            (image,) = output["images"]
            data = await anna.view(image)
            assert pictures.setdefault(image["filename"], data) == data
        assert {colour(pictures[names[f"{each}0"]]) for each in prompt if not each.endswith("0")} == {
            seed_colour(prompt[each]["inputs"]["seed"]) for each in prompt if not each.endswith("0")
        }
        await sweep(gateway, tmp_path, "--delete", kinds=("output",))

    async def check(name: str) -> None:
        assert await result(anna, load(f"{name} [output]", name)) == colour(pictures[name])

    await asyncio.gather(*map(check, pictures))


def branch(seed: int, node: str) -> dict[str, Any]:
    """A sampler and a saver."""
    made = slow(seed, steps=1)
    made["2"]["inputs"]["images"] = [node, 0]
    return {node: made["1"], f"{node}0": made["2"]}
