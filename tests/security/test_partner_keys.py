"""Partner keys: in memory for the job's life, to the backend that runs it, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.jobs.state.partner_keys import HIDDEN, NAMES, Censor, without
from tests.support.comfy_client import Listener
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.security_world import ask, caller, files_below, start
from tests.support.workflows import failing, slow

SECRETS = {"api_key_comfy_org": "partner-s\u00e9cret-1", "auth_token_comfy_org": 'partner-secret-"2"'}
# In UTF-8, and as JSON escapes them.
TRACES = [b"partner-s", b"cret-1", b"partner-secret"]


def body(prompt: dict[str, Any], client_id: str = "c") -> dict[str, Any]:
    """A prompt's body with the keys where ComfyUI takes them, and where nobody should put them."""
    workflow = {"id": "w", "nodes": [], "extra": dict(SECRETS)}
    extra = {**SECRETS, "extra_pnginfo": {"workflow": workflow, **SECRETS}, "list": [SECRETS]}
    return {"prompt": prompt, "client_id": client_id, "extra_data": extra, **SECRETS}


def assert_nowhere(texts: list[bytes]) -> None:
    """None of them in any of these."""
    for text in texts:
        assert not [trace for trace in TRACES if trace in text], text[:3000]


async def test_they_are_nowhere(lab: Lab) -> None:
    """Not in an answer, event, log, metric, on disk, nor in an image; not even where a failed node repeats them."""
    simulator = await lab.simulator("--steps-per-second", "50")
    gateway = await start(lab, simulator)
    anna, boss = caller(lab, gateway, "anna"), caller(lab, gateway, "boss")
    hears = await anna.listen("c")
    texts: list[bytes] = []

    async def look(*ids: str) -> None:
        paths = ["/queue", "/prompt", "/history", "/api/jobs", "/api/queue"]
        paths += [path for each in ids for path in (f"/history/{each}", f"/api/jobs/{each}")]
        for comfy in (anna, boss):
            texts.extend([(await ask(comfy, "GET", path)).body for path in paths])
        texts.append((await ask(boss, "GET", "/metrics")).body)
        texts.extend(data for _, data in files_below(lab.directory / "data"))

    status, answer = await anna.post("/prompt", body(slow(steps=40)))
    assert status == 200
    running = answer["prompt_id"]
    pending = (await anna.post("/prompt", body(failing())))[1]["prompt_id"]
    await anna.running(running)
    await look(running, pending)
    await hears.end_of(running)
    await hears.end_of(pending)
    (failure,) = [event["data"] for event in hears.heard if event["type"] == "execution_error"]
    # So the backend had them: in the event they were, and are no more.
    assert failure["current_inputs"]["auth_token"] == [HIDDEN]
    assert failure["current_inputs"]["api_key"] == [HIDDEN]
    entry = await anna.entry(running)
    assert entry["prompt"][3]["extra_pnginfo"] == {"workflow": {"id": "w", "nodes": [], "extra": {}}}
    texts.append(await anna.view(anna.images(entry)[0]))
    refused = await anna.post("/prompt", {**body(slow()), "prompt": {"1": {"class_type": "Nothing", "inputs": {}}}})
    assert refused[0] == 400
    texts.append(json.dumps(refused[1]).encode())
    await look(running, pending)
    texts.append(json.dumps(hears.heard, default=lambda value: value.decode("latin-1")).encode())
    await gateway.stop()
    texts += [data for _, data in files_below(lab.directory / "data")]
    texts.append(gateway.log.read_bytes())
    assert_nowhere(texts)
    # The bytes that were looked for are what is looked into: a prompt's own text is found there.
    assert any(b"SlowSampler" in text for text in texts)


async def again(lab: Lab, gateway: GatewayProcess, simulators: list[str], up: int) -> GatewayProcess:
    """The gateway killed and started anew."""
    await gateway.kill()
    return await start(lab, *simulators, up=up)


async def test_after_a_restart_a_job_that_must_be_sent_again_fails_for_that_reason(lab: Lab) -> None:
    """One that waited, and one whose backend forgot it; one that runs on at its backend comes to its usual end."""
    lab.expect_trouble = True
    simulator = await lab.simulator()
    gateway = await start(lab, simulator, dispatch__max_queue=3)
    anna = caller(lab, gateway, "anna")
    ids = []
    for n in range(3):
        status, answer = await anna.post("/prompt", body(slow(n, steps=20, step_seconds=0.1)))
        assert status == 200
        ids.append(answer["prompt_id"])
    plain = await anna.prompt(slow(9, steps=1))
    gateway = await again(lab, gateway, [simulator.url], 1)
    anna = caller(lab, gateway, "anna")
    entries = [await anna.entry(each) for each in ids]
    assert [entry["status"]["status_str"] for entry in entries] == ["success", "success", "error"]
    assert_reason(entries[2])
    assert (await anna.entry(plain))["status"]["status_str"] == "success"

    running = (await anna.post("/prompt", body(slow(5, steps=1000, step_seconds=0.1))))[1]["prompt_id"]
    await anna.running(running)
    await gateway.kill()
    await simulator.kill()
    await lab.simulator(port=simulator.port)
    gateway = await start(lab, simulator.url)
    anna = caller(lab, gateway, "anna")
    assert_reason(await anna.entry(running))
    job = await anna.get(f"/api/jobs/{running}")
    assert (job["status"], job["execution_error"]["exception_type"]) == ("failed", "SecretsLost")


def assert_reason(entry: dict[str, Any]) -> None:
    """It failed, and says why."""
    name, data = entry["status"]["messages"][-1]
    assert name == "execution_error"
    assert "partner keys" in data["exception_message"]
    assert "send it again" in data["exception_message"]


async def test_what_a_job_of_an_earlier_run_repeats_is_left_out(lab: Lab) -> None:
    """After a restart the keys are not known any more, so all that a failed node had is left out of its error."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator)
    anna = caller(lab, gateway, "anna")
    prompt = failing()
    prompt["1"]["inputs"] |= {"steps": 30, "step_seconds": 0.1}
    prompt_id = (await anna.post("/prompt", body(prompt)))[1]["prompt_id"]
    await anna.running(prompt_id)
    await simulator.fault(lab.http, "silent")
    gateway = await again(lab, gateway, [simulator.url], 1)
    anna = caller(lab, gateway, "anna")
    hears: Listener = await anna.listen("c")
    await simulator.no_faults(lab.http)
    entry = await anna.entry(prompt_id)
    await hears.end_of(prompt_id)
    assert entry["status"]["messages"][-1][1]["current_inputs"] == {}

    async def journalled() -> bool:
        return any(b"execution_error" in data for _, data in files_below(lab.directory / "data"))

    await until(journalled)
    assert_nowhere([data for _, data in files_below(lab.directory / "data")])
    assert_nowhere([json.dumps(hears.heard, default=repr).encode(), json.dumps(entry).encode()])


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"a": "x secret-1 y"}, {"a": f"x {HIDDEN} y"}),
        ({"secret-1": [1, {"b": "secret-1secret-12"}]}, {HIDDEN: [1, {"b": HIDDEN * 2}]}),
        ({"a": 'qu"ote'}, {"a": HIDDEN}),
        ({"a": "short", "b": float("inf")}, {"a": "short", "b": float("inf")}),
    ],
)
def test_censoring(said: Any, shown: Any) -> None:
    censor = Censor({NAMES[0]: ["secret-1", "secret-12", 7], NAMES[1]: {"k": 'qu"ote', "s": "abc"}}, had_secrets=True)
    assert censor.value(said) == shown
    data = json.dumps(said).encode()
    assert json.loads(censor.encoded(data)) == shown
    assert censor.encoded(b"secret-1 is no JSON") == b""
    harmless = b'{"a": [1, NaN]}'
    assert censor.encoded(harmless) is harmless


def test_names_are_left_out_however_deep() -> None:
    assert without({"a": [{NAMES[0]: 1, "b": {NAMES[1]: 2, "c": 3}}]}) == {"a": [{"b": {"c": 3}}]}
    deep: Any = {}
    for _ in range(10_000):
        deep = [deep]
    assert without(deep)
    assert Censor({NAMES[0]: "secret-1"}, had_secrets=True).value(deep)
