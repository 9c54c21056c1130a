"""Learning from runs, over simulated backends: learned, kept over restarts, forgotten."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from tests.support.backend_state import described
from tests.support.comfy_client import Comfy
from tests.support.commands import command
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.metrics import metric
from tests.support.workflows import text_to_image

# As ComfyUI's default, which keeps one prompt's models.
DEFAULT = ("--cache-ram", "--models", "a,b", "--steps-per-second", "200")


async def run(comfy: Comfy, seed: int, model: str = "a") -> None:
    """Run a prompt to its end."""
    await comfy.entry(await comfy.prompt(text_to_image(seed=seed, steps=2, model=f"{model}.safetensors")))


async def learned(comfy: Comfy) -> dict[str, Any]:
    """Return what was learned of the only backend."""
    (backend,) = (await comfy.get("/gateway/routing"))["backends"]
    found: dict[str, Any] = backend
    return found


def write_record(gateway: GatewayProcess, change: str) -> None:
    """Change the record in the journal of a gateway that is stopped."""
    with closing(sqlite3.connect(gateway.data_dir / "gateway.sqlite3", isolation_level=None)) as journal:
        journal.execute(f"UPDATE learned SET record = {change}")


async def test_runs_are_learned_and_kept(lab: Lab) -> None:
    simulator = await lab.simulator(*DEFAULT)
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    assert (await learned(comfy))["speed"] is None
    for seed in (1, 2):
        await run(comfy, seed)
    known = await learned(comfy)
    assert known["holds"] == ["a.safetensors"]
    assert [model["model"] for model in known["models"]] == ["a.safetensors"]
    assert known["models"][0]["load_seconds"] > 0
    assert (known["model_loads"], known["model_reloads"], known["hint"]) == (1, 0, None)
    # All of this prompt's results are held, so its time tells nothing.
    await run(comfy, 2)
    assert await learned(comfy) == known
    await run(comfy, 1, "b")
    await run(comfy, 1)
    costly = await described(comfy, "b1")
    assert (costly["model_loads"], costly["model_reloads"], costly["keeps_models"]) == (3, 1, "last")
    assert costly["reload_seconds"] > 0
    assert "--cache-ram 4 8" in costly["hint"]
    for name, count in (("model_loads_total", 3), ("model_reloads_total", 1)):
        assert await metric(lab, gateway, f'{name}{{backend="b1"}}') == count

    assert (await comfy.post("/free", {"unload_models": True}))[0] == 200
    known = await learned(comfy)
    assert known["holds"] == ["a.safetensors"]
    assert (await comfy.post("/free", {"unload_models": True, "free_memory": True}))[0] == 200
    assert (await learned(comfy))["holds"] == []

    await gateway.stop()
    config = lab.directory / "gateway.yaml"
    config.write_text(f"data_dir: {gateway.data_dir}\nbackends: [{{name: b1, url: '{simulator.url}'}}]\n")
    code, _, told = await command("check", "--config", str(config), cwd=lab.directory)
    assert code == 0
    assert "warning: backend b1 has run 2 models and keeps those of one prompt in memory" in told
    write_record(gateway, "CAST('[\"sizes\", [7' || x'0a' || record AS BLOB)")
    await gateway.start()
    again = await learned(Comfy(lab.http, gateway.url))
    assert (again["speed"], again["models"], again["holds"]) == (known["speed"], known["models"], [])
    assert [line["lines"] for line in gateway.log_lines() if line["event"] == "learned_times_damaged"] == [1]


async def test_learned_times_are_forgotten(lab: Lab) -> None:
    simulator = await lab.simulator(*DEFAULT)
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    await run(comfy, 1)
    # A stop writes what was learned.
    await gateway.stop()
    await gateway.start()
    await lab.backends_up(gateway, 1)
    comfy = Comfy(lab.http, gateway.url)
    for query, status in (("?backend=b9", 404), ("?backend=b1", 200)):
        async with lab.http.delete(f"{gateway.url}/gateway/routing/times{query}") as answer:
            assert answer.status == status, await answer.text()
    assert (await comfy.get("/gateway/routing"))["signatures"] == 1
    assert (await learned(comfy))["models"] == []
    await run(comfy, 2)
    assert (await learned(comfy))["models"] != []
    async with lab.http.delete(f"{gateway.url}/gateway/routing/times") as answer:
        assert await answer.json() == {"forgotten": "all"}
    # Once that is answered, a crash does not bring it back.
    await gateway.kill()
    await gateway.start()
    found = await Comfy(lab.http, gateway.url).get("/gateway/routing")
    assert (found["signatures"], found["backends"][0]["models"]) == (0, [])
    told = [line for line in gateway.log_lines() if line.get("action") == "times_forgotten"]
    assert [(line["what"], line["outcome"]) for line in told] == [("b1", "ok"), ("all", "ok")]


async def test_a_backend_that_is_started_anew_holds_nothing(lab: Lab) -> None:
    simulator = await lab.simulator(*DEFAULT)
    gateway = await lab.gateway(simulator, probe__interval=0.1)
    comfy = Comfy(lab.http, gateway.url)
    await run(comfy, 1)
    assert (await learned(comfy))["holds"] == ["a.safetensors"]

    async def holds_nothing() -> bool:
        return not (await learned(comfy))["holds"]

    await simulator.kill()
    await until(holds_nothing, what="memory that is gone")
    simulator.arguments = ["gateway.simulator", "--port", str(simulator.port), *DEFAULT[1:], "--cache-lru", "100"]
    await simulator.start()

    async def keeps() -> bool:
        return bool((await learned(comfy))["keeps_models"] == "newest")

    await until(keeps, what="the new launch options")
    await lab.backends_up(gateway, 1)
    for model in "ab":
        await run(comfy, 1, model)
    assert (await learned(comfy))["holds"] == ["a.safetensors", "b.safetensors"]
