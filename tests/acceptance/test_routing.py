"""Routing policies: which backend gets a prompt, and when."""

from __future__ import annotations

from typing import Any

import yaml

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.tenancy import BOSS, caller, serve, write_config
from tests.support.workflows import slow, text_to_image

# A KSampler's steps a second, so that a job of STEPS takes two seconds; it may be interrupted at each step.
QUICK = ("--steps-per-second", "20")
STEPS = 40
UPSCALER = "RealESRGAN_x4plus.pth"
MODEL = "sd_xl_base_1.0.safetensors"


def stock(seed: int, steps: int = STEPS) -> dict[str, Any]:
    """A prompt of stock classes, which the gateway can check as a backend does."""
    prompt = text_to_image(seed, steps)
    prompt["4"]["inputs"].update(width=64, height=64)
    return prompt


async def took(lab: Lab, simulators: list[Simulator]) -> list[int]:
    """How many prompts each backend took."""
    return [(await simulator.requests(lab.http)).get("POST /prompt", 0) for simulator in simulators]


async def running(comfy: Comfy, *ids: str) -> None:
    """Wait until jobs run."""
    for prompt_id in ids:
        await comfy.running(prompt_id)


async def late(lab: Lab, count: int, *options: str, **settings: Any) -> tuple[list[Simulator], GatewayProcess, Comfy]:
    """A gateway that binds late."""
    simulators = await lab.simulators(count, *QUICK, *options)
    gateway = await lab.gateway(*simulators, routing__policy="least_work", **settings)
    return simulators, gateway, Comfy(lab.http, gateway.url)


async def test_jobs_wait_in_the_gateway_until_a_backend_needs_one(lab: Lab) -> None:
    """Also over a restart; none is lost, and each runs once."""
    simulators, gateway, comfy = await late(lab, 2, routing__ahead=0)
    async with lab.held(*simulators):
        first = [await comfy.prompt(stock(n, 8)) for n in range(2)]
        await running(comfy, *first)
        rest = [await comfy.prompt(stock(n, 4)) for n in range(2, 8)]
        assert await took(lab, simulators) == [1, 1]
    queue = await comfy.get("/queue")
    assert [item[1] for item in queue["queue_pending"]][-6:] == rest
    await gateway.kill()
    await gateway.start()
    await lab.backends_up(gateway, 2)
    comfy.url = gateway.url
    for prompt_id in (*first, *rest):
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    assert sum(await took(lab, simulators)) == 8


async def test_a_prompt_that_the_gateway_cannot_check_is_bound_at_once(lab: Lab) -> None:
    """The backends are busy, and the refusals are those of a ComfyUI, to the byte."""
    simulators, gateway, comfy = await late(lab, 2, routing__ahead=0)
    await running(comfy, *[await comfy.prompt(stock(n, 1000)) for n in range(2)])
    wrong: list[dict[str, Any]] = [
        {"1": {"class_type": "PickNode", "inputs": {"picture": "nowhere.png"}}},
        {**stock(5), "6": {**stock(5)["6"], "inputs": {**stock(5)["6"]["inputs"], "cfg": 1000.0}}},
        {"1": {"class_type": "NoSuchNode", "inputs": {}}},
    ]
    for prompt in wrong:
        answers = []
        for url in (simulators[0].url, gateway.url):
            async with lab.http.post(f"{url}/prompt", json={"prompt": prompt}) as answer:
                answers.append((answer.status, await answer.read()))
        assert answers[0] == answers[1]
        assert answers[0][0] == 400
    before = await took(lab, simulators)
    await comfy.prompt(slow(1))
    assert sum(await took(lab, simulators)) == sum(before) + 1


async def test_a_job_bound_early_is_recalled_if_another_backend_is_free_sooner(lab: Lab) -> None:
    simulators, _, comfy = await late(lab, 2, routing__ahead=0)
    ids = [await comfy.prompt(slow(n, 1000)) for n in range(2)]
    await running(comfy, *ids)
    waits = await comfy.prompt(slow(3, 2))
    assert sum(await took(lab, simulators)) == 3
    queues = [await Comfy(lab.http, each.url).get("/queue") for each in simulators]
    holder = next(place for place, queue in enumerate(queues) if queue["queue_pending"])
    other = next(each for each in ids if each != ids[holder])
    running_there = {queue["queue_running"][0][2]["1"]["inputs"]["seed"]: place for place, queue in enumerate(queues)}
    other = ids[next(seed for seed, place in running_there.items() if place != holder)]
    assert (await comfy.post("/interrupt", {"prompt_id": other}))[0] == 200
    assert (await comfy.entry(waits))["status"]["status_str"] == "success"
    assert (await took(lab, simulators))[1 - holder] == 2


async def test_a_clients_own_order_holds(lab: Lab) -> None:
    """`front`, and a number, go before the order by work."""
    _, _, comfy = await late(lab, 1, routing__ahead=0)
    blocking = await comfy.prompt(stock(0, 1000))
    await running(comfy, blocking)
    short, long = await comfy.prompt(stock(1, 2)), await comfy.prompt(stock(2, 20))
    front = await comfy.prompt(stock(3, 30), front=True)
    numbered = await comfy.prompt(stock(4, 40), number=-100)
    assert (await comfy.post("/interrupt", {"prompt_id": blocking}))[0] == 200
    entries = {prompt_id: await comfy.entry(prompt_id) for prompt_id in (short, long, front, numbered)}
    began = {
        prompt_id: next(data["timestamp"] for name, data in entry["status"]["messages"] if name == "execution_start")
        for prompt_id, entry in entries.items()
    }
    assert sorted(began, key=lambda prompt_id: began[prompt_id])[:2] == [numbered, front]


async def test_drained_and_dead_backends_get_nothing(lab: Lab) -> None:
    simulators, gateway, comfy = await late(lab, 2)
    assert (await comfy.post("/gateway/backends/b1/drain"))[0] == 200
    ids = [await comfy.prompt(stock(n, 1)) for n in range(3)]
    for prompt_id in ids:
        await comfy.entry(prompt_id)
    assert await took(lab, simulators) == [0, 3]
    await simulators[1].kill()
    waits = await comfy.prompt(stock(9, 1))
    assert (await comfy.post("/gateway/backends/b1/resume"))[0] == 200
    await comfy.entry(waits)
    assert (await took(lab, simulators[:1])) == [1]
    assert gateway.running


async def test_jobs_of_one_model_stay_together_and_seeds_spread(lab: Lab) -> None:
    """Two models on two backends that keep one each: once times are known, each backend has one of them."""
    options = ("--models", "a,b", "--load-seconds", "0.5", "--cache-ram")
    simulators, _, comfy = await late(lab, 2, *options, routing__ahead=0)

    def of(model: str, seed: int) -> dict[str, Any]:
        prompt = stock(seed, 4)
        prompt["1"]["inputs"]["ckpt_name"] = f"{model}.safetensors"
        return prompt

    for model in "ab":
        await comfy.entry(await comfy.prompt(of(model, 1)))
    ids = [await comfy.prompt(of(model, 10 + n)) for n in range(6) for model in "ab"]
    entries = [await comfy.entry(prompt_id) for prompt_id in ids]
    loads = sum("1" not in dict(entry["status"]["messages"])["execution_cached"]["nodes"] for entry in entries)
    assert loads <= 3
    assert min(await took(lab, simulators)) >= 4


async def fast(lab: Lab, simulators: list[Simulator]) -> Comfy:
    """A gateway that binds late, to which a tenth of a second is ten."""
    settings = {"routing__policy": "least_work", "probe__interval": 0.25}
    gateway = GatewayProcess(lab.directory / "data", [each.url for each in simulators], ("--no-auth",), settings)
    gateway.arguments[0] = "benchmarks.routing.fast_gateway"
    gateway.environment["ROUTING_RATE"] = "100"
    lab.servers.append(gateway)
    await gateway.start()
    await lab.backends_up(gateway, len(simulators))
    return Comfy(lab.http, gateway.url)


async def in_pairs(comfy: Comfy, prompts: list[dict[str, Any]]) -> None:
    """Run prompts two at a time, so that both backends learn."""
    for one, other in zip(prompts[::2], prompts[1::2], strict=True):
        for prompt_id in [await comfy.prompt(one), await comfy.prompt(other)]:
            await comfy.entry(prompt_id)


async def run_beside(comfy: Comfy, blocking: dict[str, Any], prompt: dict[str, Any]) -> None:
    """Run a prompt of anna's while one of ben's has the backend that either would get alone."""
    blocks = await comfy.prompt(blocking, client_id="ben")
    await comfy.running(blocks)
    await comfy.entry(await comfy.prompt(prompt, client_id="anna"))
    assert (await comfy.post("/interrupt", {"prompt_id": blocks}))[0] == 200
    await comfy.entry(blocks)


async def test_a_session_stays_where_its_last_prompt_ran_if_that_ends_about_as_soon(lab: Lab) -> None:
    """The results of its last prompt are in that backend's cache."""
    simulators = await lab.simulators(2)
    comfy = await fast(lab, simulators)
    await in_pairs(comfy, [slow(n, 5) for n in range(8)])
    await run_beside(comfy, slow(8, 1000), slow(9, 5))
    before = await took(lab, simulators)
    for n, session in enumerate(("anna", "ben", "anna")):
        await comfy.entry(await comfy.prompt(slow(10 + n, 5), client_id=session))
    more = [now - then for now, then in zip(await took(lab, simulators), before, strict=True)]
    assert sorted(more) == [1, 2]


async def test_a_session_leaves_a_backend_that_is_much_slower(lab: Lab) -> None:
    options = ("--cache-ram", "--load-seconds", "0.05", "--steps-per-second")
    simulators = [await lab.simulator(*options, speed) for speed in ("40", "200")]
    comfy = await fast(lab, simulators)
    await in_pairs(comfy, [stock(n, 4) for n in range(8)])
    before = await took(lab, simulators)
    await run_beside(comfy, stock(12, 10_000), stock(13, 4))
    assert await took(lab, simulators) == [before[0] + 1, before[1] + 1]
    await comfy.entry(await comfy.prompt(stock(14, 4), client_id="anna"))
    assert await took(lab, simulators) == [before[0] + 1, before[1] + 2]


async def test_each_tenant_has_its_own_policy(lab: Lab) -> None:
    """Anna's jobs are bound late, and are not behind ben's, which fill the backend's queue."""
    simulators = await lab.simulators(1, *QUICK)
    named = {"anna": {"routing": "least_work"}}
    config = write_config(lab, simulators, {"named": named}, {}, routing={"ahead": 0})
    gateway = await serve(lab, config, 1)
    anna, ben, boss = (caller(lab, gateway, name) for name in ("anna", "ben", BOSS))
    blocking = await boss.prompt(stock(0, 1000))
    await boss.running(blocking)
    bens = [await ben.prompt(stock(n, 12)) for n in range(1, 6)]
    before = await took(lab, simulators)
    annas = await anna.prompt(stock(99, 2))
    assert before == await took(lab, simulators) == [6]
    await boss.post("/interrupt", {"prompt_id": blocking})
    for comfy, prompt_id in ((anna, annas), *((ben, each) for each in bens)):
        await comfy.entry(prompt_id)
    history = await boss.get("/history")
    order = sorted((each for each in history if each != blocking), key=lambda each: began_at(history[each]))
    assert order.index(annas) <= 2


async def test_tenants_bound_at_once_leave_late_ones_their_turn(lab: Lab) -> None:
    """Ben and eve have more jobs than the backend's queue takes, so that one of them waits for each free slot."""
    simulators = await lab.simulators(1, *QUICK)
    named = {"anna": {"routing": "least_work"}}
    config = write_config(lab, simulators, {"named": named}, {}, dispatch={"max_queue": 2})
    gateway = await serve(lab, config, 1)
    anna, ben, eve, boss = (caller(lab, gateway, name) for name in ("anna", "ben", "eve", BOSS))
    blocking = await boss.prompt(stock(0, 1000))
    await boss.running(blocking)
    floods = [(comfy, await comfy.prompt(stock(n, 2))) for n in range(1, 5) for comfy in (ben, eve)]
    waits = await anna.prompt(stock(99, 2))
    await boss.post("/interrupt", {"prompt_id": blocking})
    for comfy, prompt_id in ((anna, waits), *floods):
        await comfy.entry(prompt_id)
    history = await boss.get("/history")
    order = sorted((each for each in history if each != blocking), key=lambda each: began_at(history[each]))
    assert order.index(waits) <= 4


def began_at(entry: dict[str, Any]) -> int:
    """When a job began, in milliseconds."""
    return next(int(data["timestamp"]) for name, data in entry["status"]["messages"] if name == "execution_start")


async def test_of_equal_queues_the_one_with_the_models_comes_first(lab: Lab) -> None:
    """Also with models that no sampler runs, as upscalers; without models the least recently used one does."""
    simulators = await lab.simulators(2)
    comfy = Comfy(lab.http, (await lab.gateway(*simulators)).url)
    scales = {**slow(1), "9": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": UPSCALER}}}
    for prompt in (scales, slow(2), slow(3), scales):
        await comfy.entry(await comfy.prompt(prompt))
    assert await took(lab, simulators) == [3, 1]


async def test_turns_weights_and_pins(lab: Lab) -> None:
    simulators = await lab.simulators(3)
    backends = [{"url": each.url, "weight": weight} for each, weight in zip(simulators, (2, 1, 1), strict=True)]
    path = lab.directory / "weights.yaml"
    tenants = {"named": {"pia": {"routing": "pinned"}, "rob": {"routing": "round_robin"}}}
    keys = [{"name": name, "key": f"key-of-{name}-long-enough"} for name in ("pia", "rob", "sam")]
    path.write_text(
        yaml.safe_dump({"backends": backends, "auth": {"keys": keys}, "tenants": tenants, "probe": {"interval": 0.25}})
    )
    gateway = GatewayProcess(lab.directory / "data", [], ("--config", str(path)), {})
    lab.servers.append(gateway)
    await gateway.start()
    await lab.backends_up(gateway, 3)
    pia, rob, sam = (Comfy(lab.http, gateway.url, **{"X-API-Key": key["key"]}) for key in keys)
    for n in range(8):
        await rob.prompt(slow(n, 1000))
    assert await took(lab, simulators) == [4, 2, 2]
    for n in range(4):
        await pia.prompt(slow(n, 1000))
    assert sorted(now - before for now, before in zip(await took(lab, simulators), (4, 2, 2), strict=True)) == [0, 0, 4]
    # By the shortest queue, a backend of weight 2 has twice as many pending.
    pinned = await took(lab, simulators)
    for n in range(8):
        await sam.prompt(slow(n, 1000))

    async def pending() -> list[int]:
        return [len((await Comfy(lab.http, each.url).get("/queue"))["queue_pending"]) for each in simulators]

    await until(lambda: _is(pending, sum(pinned) + 8 - 3))
    found = await pending()
    assert abs(found[0] - 2 * found[1]) <= 2 or max(found[1:]) > max(pinned[1:])


async def _is(pending: Any, count: int) -> bool:
    return sum(await pending()) == count
