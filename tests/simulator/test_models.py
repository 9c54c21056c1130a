"""Models of the simulator take the time and the memory that they are given."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.simulator.cache_options import GIB, CacheKind, CacheOptionError, CacheRule, read_cache_options
from gateway.simulator.models import Memory, ModelError, ModelTimes, read_model, work_in
from gateway.simulator.values import ModelPart, Result
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.workflows import text_to_image

USUAL = ModelTimes(gb=6.0, load=15.0, step=0.05)


def workflow(model: str, text: str = "a lighthouse", **sampler: Any) -> dict[str, Any]:
    prompt = text_to_image(model=f"{model}.safetensors", steps=2)
    prompt["2"]["inputs"]["text"] = text
    prompt["4"]["inputs"].update(width=16, height=16)
    prompt["6"]["inputs"].update(sampler)
    return prompt


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((), CacheRule(CacheKind.RAM, active_bytes=6.4 * GIB, inactive_bytes=64 * GIB)),
        (("--cache-ram",), CacheRule(CacheKind.RAM, active_bytes=6.4 * GIB, inactive_bytes=64 * GIB)),
        (("--cache-ram", "3"), CacheRule(CacheKind.RAM, active_bytes=3 * GIB, inactive_bytes=64 * GIB)),
        (("--cache-ram", "4", "8"), CacheRule(CacheKind.RAM, active_bytes=4 * GIB, inactive_bytes=8 * GIB)),
        (("--cache-lru", "5"), CacheRule(CacheKind.LRU, results=5)),
        (("--cache-lru", "0"), CacheRule(CacheKind.RAM, active_bytes=6.4 * GIB, inactive_bytes=64 * GIB)),
        (("--cache-classic",), CacheRule(CacheKind.CLASSIC)),
        (("--high-ram",), CacheRule(CacheKind.CLASSIC)),
        (("--cache-none",), CacheRule(CacheKind.NONE)),
    ],
)
def test_cache_options(arguments: tuple[str, ...], rule: CacheRule) -> None:
    assert read_cache_options(arguments, 64 * GIB) == rule


@pytest.mark.parametrize(
    "arguments", [("--cache-ram", "1", "2", "3"), ("--cache-lru",), ("--cache-none", "--cache-classic"), ("--cache",)]
)
def test_cache_options_that_comfyui_refuses(arguments: tuple[str, ...]) -> None:
    with pytest.raises(CacheOptionError):
        read_cache_options(arguments, 64 * GIB)


def test_times_of_a_model() -> None:
    name, values = read_model("wan:gb=14,load=40,job=1,step=2,step_megapixel=3,megapixel=5")
    times = Memory(64, 24, USUAL, {name: values}).times("wan")
    assert (times.gb, times.load, times.reload) == (14, 40, 0)
    assert times.sampling(10, "euler", 2**21) == 1 + 10 * (2 + 3 * 2)
    assert times.sampling(10, "heun", 2**20) == 1 + 20 * (2 + 3)
    assert times.decoding(2**21) == 10
    assert Memory(64, 24, USUAL, {}).times("other").sampling(20, "euler", 2**20) == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["wan", "wan:", ":gb=1", "wan:gb", "wan:gb=-1", "wan:gb=nan", "wan:size=1"])
def test_descriptions_of_models_that_say_nothing(text: str) -> None:
    with pytest.raises(ModelError):
        read_model(text)


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [(["a cat"], None), (["a cat, work=9.3125", "work=1"], 9.3125), (["homework=3"], None), (["x", "work=240"], 240.0)],
)
def test_work_in_texts(texts: list[str], seconds: float | None) -> None:
    assert work_in(texts) == seconds


def test_models_share_vram() -> None:
    memory = Memory(64, 13, USUAL, {"small": {"gb": 0.25}})
    for name in ("one", "two", "small", "one"):
        memory.use(name)
    assert memory.used_vram() == 12.75 * GIB
    memory.use("three")
    assert [memory.is_resident(name) for name in ("one", "two", "small", "three")] == [True, False, True, True]
    loaded = [Result(([ModelPart("model", "one")], [ModelPart("vae", "one")])), Result(([ModelPart("model", "two")],))]
    assert memory.free_ram(GIB, {"one", "small"}) == (48 - 1 - 6.25) * GIB
    memory.forget_all_but(loaded)
    assert memory.used_vram() == 6.5 * GIB
    memory.unload()
    assert memory.used_vram() == 0.5 * GIB


async def _run(comfy: Comfy, prompt: dict[str, Any]) -> tuple[bool, float]:
    """Run a prompt; True if its model was held, and the milliseconds that it took."""
    messages = (await comfy.entry(await comfy.prompt(prompt)))["status"]["messages"]
    assert messages[-1][0] == "execution_success", messages
    said = dict(messages)
    spent = said["execution_success"]["timestamp"] - said["execution_start"]["timestamp"]
    return "1" in said["execution_cached"]["nodes"], spent


async def _used_vram(comfy: Comfy) -> float:
    device = (await comfy.get("/system_stats"))["devices"][0]
    return float(device["vram_total"] - device["vram_free"]) / GIB


async def test_models_that_alternate(lab: Lab) -> None:
    """A model is held, or loaded again, as the launch options say; a gateway's clients see the same."""
    options = ("--models", "sdxl,flux", "--unets", "wan", "--clips", "t5", "--speed", "2", "--time-scale", "0.001")
    default = await lab.simulator(*options, "--load-seconds", "15", "--cache-ram")
    roomy = await lab.simulator(*options, "--model", "sdxl:gb=7,load=15,step=4,reload=1", "--cache-ram", "4", "8")
    gateway = await lab.gateway(roomy)
    for backend, url, keeps in ((default, default.url, False), (roomy, gateway.url, True)):
        comfy, direct = Comfy(lab.http, url), Comfy(lab.http, backend.url)
        # A sleep takes no less than it should; the timestamps are whole milliseconds.
        was_held, spent = await _run(comfy, workflow("sdxl", "a cat, work=40"))
        assert not was_held
        assert spent >= 15 + 40 / 2 - 1
        was_held, spent = await _run(comfy, workflow("sdxl", "a cat, work=80"))
        assert was_held
        assert spent >= 80 / 2 - 1
        await _run(comfy, workflow("flux"))
        was_held, _ = await _run(comfy, workflow("sdxl", "a dog, work=2"))
        assert was_held is keeps

        assert await _used_vram(direct) == (0.5 + 7 + 6 if keeps else 0.5 + 6)
        await direct.post("/free", {"unload_models": True})
        assert await _used_vram(direct) == 0.5
        was_held, _ = await _run(comfy, workflow("sdxl", "a bird, work=2"))
        assert was_held
        await direct.post("/free", {"free_memory": True})
        was_held, _ = await _run(comfy, workflow("sdxl", "a fish, work=2"))
        assert not was_held

        for node_class, name, model in (("UNETLoader", "unet_name", "wan"), ("CLIPLoader", "clip_name", "t5")):
            description = (await comfy.get(f"/object_info/{node_class}"))[node_class]
            assert description["input"]["required"][name][0] == [f"{model}.safetensors"]


async def test_a_diffusion_model_of_its_own_and_another_speed(lab: Lab) -> None:
    simulator = await lab.simulator(
        "--models", "sdxl", "--unets", "wan", "--model", "wan:gb=14,load=30,step=10", "--time-scale", "0.001"
    )
    comfy = Comfy(lab.http, simulator.url)
    prompt = workflow("sdxl")
    prompt["8"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "wan.safetensors", "weight_dtype": "default"},
    }
    prompt["6"]["inputs"]["model"] = ["8", 0]
    async with lab.http.post(f"{simulator.url}/simulator/speed", json=0.5) as answer:
        assert answer.status == 200
    async with lab.http.post(f"{simulator.url}/simulator/speed", json=0) as answer:
        assert answer.status == 400
    _, spent = await _run(comfy, prompt)
    assert spent >= 30 + 2 * 10 / 0.5 - 1
    # Started with --cache-none it holds no model between two prompts.
    assert await _used_vram(comfy) == 0.5
