"""Models that are copied to backends while the gateway runs: seen at the next look, at a small price."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import Any

from gateway.catalogue.read_budget import ALL_CLASSES_SHARE, MIN_LOOK_PAUSE
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, Simulator, until
from tests.support.workflows import slow, text_to_image

WRONG = text_to_image(model="nowhere.safetensors")
READS = ("GET /models/{folder}", "GET /object_info", "GET /object_info/{node_class}")


def listed(info: dict[str, Any]) -> list[str]:
    """The LoRAs that a client is offered."""
    names: list[str] = info["LoraLoader"]["input"]["required"]["lora_name"][0]
    return names


def with_lora(name: str, seed: int = 1) -> dict[str, Any]:
    """A prompt that needs a LoRA."""
    prompt = text_to_image(seed, 1, model="m.safetensors")
    inputs = {"lora_name": name, "strength_model": 1.0, "strength_clip": 1.0, "model": ["1", 0], "clip": ["1", 1]}
    prompt["9"] = {"class_type": "LoraLoader", "inputs": inputs}
    prompt["6"]["inputs"]["model"] = ["9", 0]
    return prompt


def prefixed(prompt: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The same prompt with other ids for its nodes."""
    text = json.dumps(prompt)
    for node_id in prompt:
        text = text.replace(f'"{node_id}": {{"class_type"', f'"{prefix}{node_id}": {{"class_type"')
        text = text.replace(f'["{node_id}", ', f'["{prefix}{node_id}", ')
    renamed: dict[str, Any] = json.loads(text)
    return renamed


async def counts(lab: Lab, simulator: Simulator) -> dict[str, int]:
    """How often each kind of read came."""
    requests = await simulator.requests(lab.http)
    return {route: requests.get(route, 0) for route in READS}


async def test_new_models_are_found(lab: Lab) -> None:
    """One on all backends, one on a single backend: by one GET, or by the first prompt that names it.

    What nobody has is refused byte for byte as a backend says it, and costs a look a second.
    """
    simulators = await lab.simulators(3, "--models", "m", "--loras", "old")
    gateway = await lab.gateway(*simulators)
    comfy, last = Comfy(lab.http, gateway.url), simulators[2]

    async def posts() -> list[int]:
        return [(await each.requests(lab.http)).get("POST /prompt", 0) for each in simulators]

    async def succeeds(*names: str) -> None:
        ids = [await comfy.prompt(with_lora(name, seed)) for seed, name in enumerate(names)]
        for prompt_id in ids:
            assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"

    before, began = [await counts(lab, each) for each in simulators], time.monotonic()
    for each in simulators:
        await each.set_models(lab.http, "loras", "all.safetensors", "old.safetensors")
    await last.set_models(lab.http, "loras", "all.safetensors", "old.safetensors", "one.safetensors")
    assert listed(await comfy.get("/object_info")) == ["all.safetensors", "old.safetensors", "one.safetensors"]
    assert await comfy.get("/models/loras") == ["all.safetensors", "old.safetensors", "one.safetensors"]
    # All classes were read a moment ago, so that only the one class is read again.
    made = [await counts(lab, each) for each in simulators]
    assert [each["GET /object_info"] for each in made] == [each["GET /object_info"] for each in before]
    assert [each["GET /object_info/{node_class}"] for each in made] == [1, 1, 1]
    await succeeds("one.safetensors", "one.safetensors")
    assert await posts() == [0, 0, 2]
    first, _, third = (await comfy.get("/gateway/differences"))["backends"]
    assert first["missing_choices"] == [{"choice": "one.safetensors", "input": "LoraLoader.lora_name"}]
    assert (third["missing_choices_count"], third["other_versions"]) == (0, [])

    # Nobody looks before the prompt comes: one backend refuses it, and then it is known where it can run.
    await last.set_models(lab.http, "loras", "all.safetensors", "late.safetensors")
    await succeeds(*["late.safetensors"] * 4)
    assert sum((await posts())[:2]) <= 1
    assert (await posts())[2] == 6

    async def refused(url: str, prompt: dict[str, Any]) -> bytes:
        async with lab.http.post(f"{url}/prompt", json={"prompt": prompt}) as answer:
            assert answer.status == 400
            return await answer.read()

    for prompt in (WRONG, {"1": {"class_type": "Nope", "inputs": {}}}):
        assert await refused(gateway.url, prompt) == await refused(simulators[0].url, prompt)
    for _ in range(20):
        await refused(gateway.url, WRONG)
    reads = [(await counts(lab, each))["GET /object_info/{node_class}"] for each in simulators]
    assert max(reads) <= 4 + (time.monotonic() - began)


async def test_a_backend_that_has_the_model_and_no_room_is_waited_for(lab: Lab) -> None:
    """If the others refuse the prompt, or have no room, either."""
    simulators = await lab.simulators(2, "--models", "m", "--loras", "old")
    gateway = await lab.gateway(*simulators, dispatch__max_queue=1)
    comfy = Comfy(lab.http, gateway.url)
    held = await comfy.prompt(slow(1, steps=1000, step_seconds=0.1))
    await comfy.running(held)
    posts = [(await each.requests(lab.http)).get("POST /prompt", 0) for each in simulators]
    full = simulators[posts.index(1)]
    await full.set_models(lab.http, "loras", "new.safetensors", "old.safetensors")
    ids = [await comfy.prompt(with_lora("new.safetensors"))]
    second = await comfy.prompt(slow(2, steps=1000, step_seconds=0.1))
    await comfy.running(second)
    ids.append(await comfy.prompt(with_lora("new.safetensors", 2)))
    pending = [item[1] for item in (await comfy.get("/queue"))["queue_pending"]]
    assert [each for each in pending if each not in (held, second)] == ids
    # Nobody can be asked for his refusal: what the gateway would refuse itself, it looks up before.
    await full.set_models(lab.http, "loras", "late.safetensors", "new.safetensors", "old.safetensors")

    async def accepted() -> bool:
        status, answer = await comfy.post("/prompt", {"prompt": with_lora("late.safetensors", 3)})
        ids.extend([answer["prompt_id"]] if status == 200 else [])
        return status == 200

    await until(accepted)
    for prompt_id in (held, second):
        await comfy.post("/interrupt", {"prompt_id": prompt_id})
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    assert (await full.requests(lab.http))["POST /prompt"] == 4


async def test_a_backend_that_left_an_output_out_gives_the_prompt_back(lab: Lab) -> None:
    """If it has not begun it, and another backend can run all of it: then all of it runs there, and nothing twice."""
    simulators = await lab.simulators(2, "--models", "m", "--loras", "old")
    gateway = await lab.gateway(*simulators, dispatch__work_stealing=False)
    comfy = Comfy(lab.http, gateway.url)

    async def posts() -> list[int]:
        return [(await each.requests(lab.http)).get("POST /prompt", 0) for each in simulators]

    def with_two_outputs(name: str, seed: int) -> dict[str, Any]:
        return slow(seed, steps=1000, step_seconds=0.1) | prefixed(with_lora(name), "5")

    held = [await comfy.prompt(slow(1, steps=1000, step_seconds=0.1))]
    await comfy.running(held[0])
    await simulators[(await posts()).index(1)].set_models(lab.http, "loras", "new.safetensors")
    # The idle backend begins the prompt at once, so it stays there.
    status, begun = await comfy.post("/prompt", {"prompt": with_two_outputs("new.safetensors", 2)})
    assert (status, list(begun["node_errors"])) == (200, ["59"])
    held += [begun["prompt_id"], await comfy.prompt(slow(3, steps=1000, step_seconds=0.1))]
    # The next prompt goes to the backend with the shorter queue, which lacks the model.
    counted = await posts()
    longer, shorter = (simulators[counted.index(n)] for n in (2, 1))
    await longer.set_models(lab.http, "loras", "newer.safetensors")
    status, answer = await comfy.post("/prompt", {"prompt": slow(9) | prefixed(with_lora("newer.safetensors"), "5")})
    assert (status, answer["node_errors"]) == (200, {})
    assert [(await each.requests(lab.http))["POST /prompt"] for each in (longer, shorter)] == [3, 2]
    async with lab.http.get(f"{shorter.url}/queue") as queue:
        assert (await queue.json())["queue_pending"] == []
    # What nobody has is left out, as by a ComfyUI alone.
    status, partial = await comfy.post("/prompt", {"prompt": slow(8) | prefixed(with_lora("nowhere"), "5")})
    assert (status, list(partial["node_errors"])) == (200, ["59"])
    for prompt_id in held:
        await comfy.post(f"/api/jobs/{prompt_id}/cancel")
    assert len((await comfy.entry(answer["prompt_id"]))["outputs"]) == 2
    assert len((await comfy.entry(partial["prompt_id"]))["outputs"]) == 1
    told = ("prompt_runs_partly", "copy_outdated")
    events = [(line["event"], line["backend"]) for line in gateway.log_lines() if line["event"] in told]
    first, last = (f"b{1 + simulators.index(each)}" for each in (longer, shorter))
    assert events[:2] in ([("copy_outdated", name), ("prompt_runs_partly", name)] for name in (first, last))
    assert events[2:] == [("copy_outdated", last)]


async def test_many_clients_cause_few_reads(lab: Lab) -> None:
    """Fifty at a time, again and again, and each backend takes long to answer: one look, and no other at once."""
    simulators = await lab.simulators(2, "--models", "m", "--loras", "old")
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    # Fifty prompts at a time that need a model nobody has looked for: one read of its class on each backend.
    await simulators[1].set_models(lab.http, "loras", "new.safetensors")
    before, began = [await counts(lab, each) for each in simulators], time.monotonic()
    ids = await asyncio.gather(*(comfy.prompt(with_lora("new.safetensors", seed)) for seed in range(50)))
    assert len(set(ids)) == 50
    for each, earlier in zip(simulators, before, strict=True):
        made = {route: n - earlier[route] for route, n in (await counts(lab, each)).items()}
        assert 1 <= made["GET /object_info/{node_class}"] <= 1 + (time.monotonic() - began)
        assert made["GET /models/{folder}"] == 0
    await comfy.post("/queue", {"clear": True})

    for each in simulators:
        await each.fault(lab.http, "slow:0.05")
    before, began = [await counts(lab, each) for each in simulators], time.monotonic()
    for _ in range(3):
        await asyncio.gather(*(comfy.get("/object_info") for _ in range(50)), comfy.get("/object_info/KSampler"))
        await asyncio.gather(*(comfy.post("/prompt", {"prompt": WRONG}) for _ in range(5)))
    elapsed = time.monotonic() - began
    for each, earlier in zip(simulators, before, strict=True):
        made = {route: n - earlier[route] for route, n in (await counts(lab, each)).items()}
        assert 25 <= made["GET /models/{folder}"] <= 25 * (1 + elapsed / MIN_LOOK_PAUSE)
        assert made["GET /object_info"] <= 1 + elapsed * ALL_CLASSES_SHARE / 0.05
        # All of them name the same class.
        assert made["GET /object_info/{node_class}"] <= 1 + elapsed
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        assert 'comfyui_gateway_catalogue_reads_total{backend="b1",kind="folder"}' in await answer.text()
    # That the look took long buys no long pause: while clients ask, the next one comes soon.
    for each in simulators:
        await each.no_faults(lab.http)

    async def looked_again() -> bool:
        await comfy.get("/object_info")
        made = (await counts(lab, simulators[0]))["GET /models/{folder}"] - before[0]["GET /models/{folder}"]
        return made > 25

    await until(looked_again)


async def test_a_backend_that_does_not_answer_hides_nothing(lab: Lab) -> None:
    """Its last good copy is told with what the others say now."""
    simulators = await lab.simulators(2, "--models", "m", "--loras", "old")
    gateway = await lab.gateway(*simulators, probe__timeout=0.3)
    comfy = Comfy(lab.http, gateway.url)
    simulators[0].signal(signal.SIGSTOP)
    await simulators[1].set_models(lab.http, "loras", "new.safetensors", "old.safetensors")

    async def seen() -> bool:
        return listed(await comfy.get("/object_info")) == ["old.safetensors", "new.safetensors"]

    await until(seen)
