"""What an admin asks about others' jobs on the second day, and how it is answered."""

from __future__ import annotations

import json
from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.commands import command
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.pictures import png
from tests.support.uploads import ANNA, BOSS, upload, with_keys
from tests.support.workflows import slow, text_to_image

LONG: dict[str, Any] = {"steps": 1000, "step_seconds": 0.1}


async def test_a_tenant_that_nobody_knows_is_no_success(lab: Lab) -> None:
    """A typo gets 404 and changes nothing. A tenant is known by a key, a job, a file or the history."""
    gateway = await with_keys(lab, await lab.simulator())
    boss = Comfy(lab.http, gateway.url, X_API_Key=BOSS)
    paths = ("/queue", "/history", "/history/00000000-0000-4000-8000-000000000000", "/api/jobs")
    for method, path, body in (
        ("POST", "/queue", {"clear": True}),
        ("POST", "/interrupt", {}),
        ("POST", "/history", {"clear": True}),
        ("POST", "/api/jobs/cancel", {"job_ids": []}),
        *(("GET", path, None) for path in paths),
    ):
        for tenant, wanted in (("bem", 404), ("ben", 200)):
            url = f"{gateway.url}{path}?tenant={tenant}"
            async with lab.http.request(method, url, json=body, headers=boss.headers) as answer:
                said = await answer.text()
                assert answer.status == wanted, (method, path, said)
                if wanted == 404:
                    error = json.loads(said)["error"]
                    assert (error["type"], error["message"]) == ("no_such_tenant", "There is no tenant 'bem'")
    # A user's own `tenant` means nothing, as before.
    anna = Comfy(lab.http, gateway.url, X_API_Key=ANNA)
    assert await anna.get("/queue", tenant="bem") == {"queue_running": [], "queue_pending": []}


async def test_a_tenant_without_a_key_is_known_by_what_is_left(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator())
    boss = Comfy(lab.http, gateway.url, X_API_Key=BOSS)
    seen = []
    for name in ("carol", "dora", "emil", "fred"):
        _, made = await boss.post("/gateway/keys", {"name": name})
        comfy = Comfy(lab.http, gateway.url, X_API_Key=made["key"])
        if name == "carol":
            await comfy.entry(await comfy.prompt(slow(steps=1)))
        elif name == "dora":
            assert (await upload(comfy, png((1, 2, 3)), "pic.png"))[0] == 200
        elif name == "emil":
            await comfy.running(await comfy.prompt(slow(**LONG)))
        async with lab.http.delete(f"{gateway.url}/gateway/keys/{name}", headers=boss.headers) as answer:
            assert answer.status == 200
        seen.append((await boss.post(f"/queue?tenant={name}", {"clear": True}))[0])
    assert seen == [200, 200, 200, 404]
    assert (await boss.post("/interrupt?tenant=emil", {}))[0] == 200


async def test_an_admin_who_asks_for_one_tenant_sees_which_backend_too(lab: Lab) -> None:
    """As without ``?tenant=``; its users see neither, whoever has asked before."""
    gateway = await with_keys(lab, await lab.simulator())
    anna, boss = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BOSS))
    ended, runs = await anna.prompt(slow(steps=1)), await anna.prompt(slow(**LONG))
    await anna.entry(ended)
    await anna.running(runs)
    paths = ("/queue", "/history", f"/history/{ended}", "/api/jobs", f"/api/jobs/{ended}", f"/api/jobs/{runs}")
    for comfy, count in ((anna, 0), (boss, 1), (anna, 0)):
        for path in paths:
            said = json.dumps(await comfy.get(path, tenant="anna"))
            wanted = count * (2 if path == "/api/jobs" else 1)
            assert said.count('"gateway_backend": "b1"') == wanted, (path, said)
            assert said.count('"gateway_tenant": "anna"') == wanted, (path, said)


async def refusals(gateway: GatewayProcess, count: int) -> list[dict[str, Any]]:
    """Return the lines about refused prompts, once there are so many."""

    async def look() -> list[dict[str, Any]]:
        lines = [line for line in gateway.log_lines() if line["event"] == "prompt_refused"]
        return lines if len(lines) >= count else []

    return await until(look, what=f"{count} refusals in the log")


async def test_each_refused_prompt_has_a_log_line(lab: Lab) -> None:
    """With what is needed to explain it, and no value of the prompt."""
    gateway = await with_keys(lab, await lab.simulator(), tenants__default__limits__jobs_waiting=1)
    anna = Comfy(lab.http, gateway.url, X_API_Key=ANNA)
    bad = text_to_image(model="hidden-value.safetensors")
    long = {"1": {"class_type": "X" * 500, "inputs": {}}}
    for body in ({"prompt": bad}, {"prompt": long}, {}):
        assert (await anna.post("/prompt", body))[0] == 400
    async with lab.http.post(f"{gateway.url}/prompt", data=b"{", headers=anna.headers) as answer:
        assert answer.status == 400
    lines = await refusals(gateway, 4)
    assert {line["tenant"] for line in lines} == {"anna"}
    assert {line["status"] for line in lines} == {400}
    first, second, third, fourth = lines
    assert first["error"] == "prompt_outputs_failed_validation"
    assert (first["class_type"], first["input_name"]) == ("CheckpointLoaderSimple", "ckpt_name")
    assert (first["node_id"], first["node_error"]) == ("1", "value_not_in_list")
    assert second["class_type"] == "X" * 100
    assert (third["error"], fourth["error"]) == ("no_prompt", "invalid_json")
    assert "hidden-value" not in json.dumps(lines)
    await anna.running(await anna.prompt(slow(**LONG)))
    await anna.prompt(slow(1, **LONG))
    assert (await anna.post("/prompt", {"prompt": slow(2, **LONG)}))[0] == 429
    (line,) = (await refusals(gateway, 5))[4:]
    assert (line["status"], line["error"], line["limit"]) == (429, "limit_reached", "jobs_waiting")
    assert (await Comfy(lab.http, gateway.url, X_API_Key="wrong").post("/prompt", {}))[0] == 401
    assert len(await refusals(gateway, 5)) == 5


async def test_a_backends_refusal_has_a_log_line_too(lab: Lab) -> None:
    """And so have the gateway's bounds, for which the line names the setting."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(
        simulator, dispatch__max_waiting=1, dispatch__max_queue=1, dispatch__max_prompt_bytes=20_000
    )
    comfy = Comfy(lab.http, gateway.url)
    bad = text_to_image()
    bad["4"]["inputs"]["width"] = 10**9
    assert (await comfy.post("/prompt", {"prompt": bad}))[0] == 400
    assert (await simulator.requests(lab.http))["POST /prompt"] == 1
    assert (await comfy.post("/prompt", {"prompt": slow(), "extra_data": {"pad": "x" * 20_000}}))[0] == 413
    for n in range(2):
        await comfy.prompt(slow(n, **LONG))
    assert (await comfy.post("/prompt", {"prompt": slow(9)}))[0] == 503
    lines = await refusals(gateway, 3)
    assert (lines[0]["class_type"], lines[0]["input_name"]) == ("EmptyLatentImage", "width")
    assert [(line["status"], line.get("limit")) for line in lines] == [
        (400, None),
        (413, "max_prompt_bytes"),
        (503, "max_waiting"),
    ]


async def test_the_key_commands_ask_for_the_variable(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator())
    code, _, said = await command("keys", "list", "--url", gateway.url, cwd=lab.directory)
    assert code == 1
    assert "set COMFYUI_KEY to an admin's key" in said
