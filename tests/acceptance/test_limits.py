"""A tenant's limits: reached, said, freed; and another tenant goes on meanwhile."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import re
from typing import Any

import aiohttp
import pytest

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.pictures import png
from tests.support.tenancy import BOSS, caller, serve, write_config
from tests.support.uploads import upload
from tests.support.workflows import slow


async def limited(lab: Lab, limits: dict[str, Any], backends: int = 1, **settings: Any) -> GatewayProcess:
    """A gateway on which anna and the admin have limits, and ben has none."""
    simulators = await lab.simulators(backends)
    config = write_config(lab, simulators, {"named": {"anna": {"limits": limits}, BOSS: {"limits": limits}}}, {})
    return await serve(lab, config, backends, **settings)


async def refusal(answer: aiohttp.ClientResponse, limit: str, status: int = 429) -> dict[str, Any]:
    """What a refused request is told, in header and body alike."""
    assert answer.status == status, await answer.text()
    error: dict[str, Any] = (await answer.json())["error"]
    info: dict[str, Any] = error["extra_info"]
    assert error["type"] == ("limit_reached" if status == 429 else "body_too_large")
    assert info["limit"] == limit
    assert limit in error["details"]
    assert answer.headers["RateLimit-Policy"].startswith(f'"{limit}";q=')
    if status == 429:
        assert re.fullmatch(r"[1-9]\d*", answer.headers["Retry-After"])
        assert info["retry_after"] == int(answer.headers["Retry-After"])
        assert answer.headers["RateLimit"] == f'"{limit}";r=0;t={info["retry_after"]}'
    else:
        assert "Retry-After" not in answer.headers
    return info


async def metric(lab: Lab, gateway: GatewayProcess, limit: str) -> float:
    """How often a limit was reached."""
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        found = re.search(rf'comfyui_gateway_limited_total{{limit="{limit}"}} (\S+)', await answer.text())
    return float(found[1]) if found else 0.0


async def test_requests_a_second(lab: Lab) -> None:
    gateway = await limited(lab, {"requests_per_second": 2, "requests_burst": 5})
    anna, too, ben, boss = (caller(lab, gateway, name) for name in ("anna", "anna-too", "ben", BOSS))
    # Five at once, whichever of the tenant's keys they come with; what is refused for another reason counts too.
    for each, path, status in (
        (anna, "/queue", 200),
        (too, "/history", 200),
        (anna, "/internal/logs", 403),
        (too, "/api/queue", 200),
        (anna, "/prompt", 200),
    ):
        async with lab.http.get(gateway.url + path, headers=each.headers) as answer:
            assert answer.status == status
    async with lab.http.get(f"{gateway.url}/queue", headers=too.headers) as answer:
        info = await refusal(answer, "requests_per_second")
        assert (info["value"], info["retry_after"]) == (2, 1)
        assert answer.headers["RateLimit-Policy"] == '"requests_per_second";q=5;w=3'
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await lab.http.ws_connect(f"{gateway.url}/ws", headers=anna.headers)
    assert caught.value.status == 429
    for _ in range(10):
        await ben.get("/queue")
        await boss.get("/gateway/backends")
    await asyncio.sleep(info["retry_after"])
    await anna.get("/queue")
    assert await metric(lab, gateway, "requests_per_second") == 2


async def test_prompts_a_minute(lab: Lab) -> None:
    gateway = await limited(lab, {"prompts_per_minute": 3})
    anna, too, ben = (caller(lab, gateway, name) for name in ("anna", "anna-too", "ben"))
    for left, each in ((2, anna), (1, too)):
        async with lab.http.post(f"{gateway.url}/prompt", json={"prompt": slow()}, headers=each.headers) as answer:
            assert answer.status == 200
            assert answer.headers["RateLimit-Policy"] == '"prompts_per_minute";q=3;w=60'
            assert answer.headers["RateLimit"] == f'"prompts_per_minute";r={left};t={20 * (3 - left)}'
    # A refused one counts, too, and is told what is left.
    async with lab.http.post(f"{gateway.url}/prompt", json={"prompt": []}, headers=anna.headers) as answer:
        assert answer.status == 400
        assert answer.headers["RateLimit"].startswith('"prompts_per_minute";r=0;')
    async with lab.http.post(f"{gateway.url}/prompt", json={"prompt": slow()}, headers=too.headers) as answer:
        info = await refusal(answer, "prompts_per_minute")
        assert 15 <= info["retry_after"] <= 20
    assert (await anna.get("/queue")).keys() == {"queue_running", "queue_pending"}
    async with lab.http.post(f"{gateway.url}/prompt", json={"prompt": slow()}, headers=ben.headers) as answer:
        assert answer.status == 200
        assert "RateLimit" not in answer.headers


async def test_jobs_waiting(lab: Lab) -> None:
    gateway = await limited(lab, {"jobs_waiting": 2})
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    first = await anna.prompt(slow(0, steps=1000, step_seconds=0.05))
    await anna.running(first)
    own = "11111111-2222-4333-8444-555555555555"
    waiting = [await anna.prompt(slow(1)), await anna.prompt(slow(2), prompt_id=own)]
    async with lab.http.post(f"{gateway.url}/prompt", json={"prompt": slow(3)}, headers=anna.headers) as answer:
        info = await refusal(answer, "jobs_waiting")
        assert (info["value"], info["used"]) == (2, 2)
    # Who got no answer and asks again, gets the one that there is.
    assert await anna.prompt(slow(2), prompt_id=own) == own
    await ben.prompt(slow(3))
    await anna.post("/queue", {"delete": waiting[:1]})
    fourth = await anna.prompt(slow(4))
    await anna.post("/interrupt", {"prompt_id": first})
    for prompt_id in (own, fourth):
        await anna.entry(prompt_id)
    assert await metric(lab, gateway, "jobs_waiting") == 1


async def test_jobs_running(lab: Lab) -> None:
    """One at a time on two backends; others' jobs go before those that wait, and each of them comes to its turn."""
    gateway = await limited(lab, {"jobs_running": 1}, backends=2)
    anna, ben, boss = (caller(lab, gateway, name) for name in ("anna", "ben", BOSS))
    listener = await anna.listen("c", "&events=interleave")
    async with lab.held(*(each for each in lab.servers if isinstance(each, Simulator))):
        ids = [await anna.prompt(slow(n, steps=4, step_seconds=0.05), "c") for n in range(6)]
        bens = await ben.prompt(slow(9))
        backends = (await boss.get("/gateway/backends"))["backends"]
        assert sum(b["jobs_queued"] + b["jobs_running"] for b in backends) == 2
    await ben.entry(bens)
    assert len((await anna.get("/history")).keys()) < len(ids)
    running: set[str] = set()
    ended: list[str] = []
    while len(ended) < len(ids):
        event = await listener.receive()
        prompt_id = event["data"].get("prompt_id")
        if event["type"] == "execution_start":
            running.add(prompt_id)
            assert len(running) == 1
        elif event["type"] in ("execution_success", "execution_error"):
            assert event["type"] == "execution_success"
            running.discard(prompt_id)
            ended.append(prompt_id)
    assert ended == ids


async def test_jobs_running_over_a_restart(lab: Lab) -> None:
    gateway = await limited(lab, {"jobs_running": 1}, backends=2)
    anna = caller(lab, gateway, "anna")
    ids = [await anna.prompt(slow(n, steps=6, step_seconds=0.1)) for n in range(3)]
    await gateway.kill()
    gateway = await serve(lab, lab.directory / "gateway.yaml", 2)
    anna = caller(lab, gateway, "anna")
    times = []
    for prompt_id in ids:
        messages = dict((await anna.entry(prompt_id))["status"]["messages"])
        times.append((messages["execution_start"]["timestamp"], messages["execution_success"]["timestamp"]))
    for (_, end), (start, _) in itertools.pairwise(times):
        assert start >= end


async def test_bytes_of_a_body(lab: Lab) -> None:
    """Whether its length is told or it comes in chunks, packed or as a form, to our routes and to those passed on."""
    gateway = await limited(lab, {"body_bytes": 5_000})
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    large = json.dumps({"prompt": slow(), "extra_data": {"x": "y" * 6_000}}).encode()

    async def pieces() -> Any:
        for start in range(0, len(large), 1_000):
            yield large[start : start + 1_000]

    def form() -> aiohttp.FormData:
        data = aiohttp.FormData()
        data.add_field("image", large, filename="a.png")
        return data

    packed = {"Content-Encoding": "gzip"}
    requests: list[tuple[str, Any, dict[str, str]]] = [
        ("/prompt", lambda: large, {}),
        ("/prompt", pieces, {}),
        ("/prompt", lambda: gzip.compress(large), packed),
        ("/queue", pieces, {}),
        ("/upload/image", form, {}),
        ("/userdata/x.json", pieces, {}),
    ]
    for path, data, headers in requests:
        async with lab.http.post(gateway.url + path, data=data(), headers={**anna.headers, **headers}) as answer:
            info = await refusal(answer, "body_bytes", 413)
            assert info["value"] == 5_000
    for path, data, headers in requests:
        async with lab.http.post(gateway.url + path, data=data(), headers={**ben.headers, **headers}) as answer:
            assert answer.status in (200, 400), path
    await anna.prompt(slow())
    # An admin's goes to the backend as it comes, and no further than this.
    boss = caller(lab, gateway, BOSS)
    async with lab.http.post(f"{gateway.url}/userdata/x.json", data=pieces(), headers=boss.headers) as answer:
        await refusal(answer, "body_bytes", 413)
    assert await metric(lab, gateway, "body_bytes") == len(requests) + 1


async def test_bytes_of_uploads(lab: Lab) -> None:
    """What was used least recently goes; what an open job needs stays, and then there is no room."""
    pictures = [png((n, n, n)) for n in range(4)]
    size = max(len(picture) for picture in pictures)
    gateway = await limited(lab, {"upload_bytes": 2 * size})
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    for n in range(2):
        await upload(anna, pictures[n], f"{n}.png")
        await upload(ben, pictures[n], f"{n}.png")
    # The same bytes count once, whatever they are called.
    await upload(anna, pictures[1], "again.png")
    await upload(anna, pictures[2], "2.png")
    statuses = {}
    for name in ("0.png", "1.png", "2.png", "again.png"):
        for who, each in (("anna", anna), ("ben", ben)):
            params = {"filename": name, "type": "input"}
            async with lab.http.get(f"{gateway.url}/view", params=params, headers=each.headers) as answer:
                statuses[who, name] = answer.status
    assert [statuses["anna", n] for n in ("0.png", "1.png", "2.png", "again.png")] == [404, 200, 200, 200]
    assert [statuses["ben", n] for n in ("0.png", "1.png")] == [200, 200]

    def holding(name: str) -> dict[str, Any]:
        load = {"class_type": "LoadImage", "inputs": {"image": name}}
        return {
            **slow(1, steps=1000, step_seconds=0.05),
            "8": load,
            "9": {**slow()["2"], "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
        }

    jobs = [await anna.prompt(holding(name)) for name in ("1.png", "2.png")]
    form = aiohttp.FormData()
    form.add_field("image", pictures[3], filename="3.png")
    async with lab.http.post(f"{gateway.url}/upload/image", data=form, headers=anna.headers) as answer:
        info = await refusal(answer, "upload_bytes")
        assert info["value"] == 2 * size
    await upload(ben, pictures[3], "3.png")
    form = aiohttp.FormData()
    form.add_field("image", bytes(3 * size), filename="large.png")
    async with lab.http.post(f"{gateway.url}/upload/image", data=form, headers=anna.headers) as answer:
        await refusal(answer, "upload_bytes", 413)
    for prompt_id in jobs:
        await anna.post(f"/api/jobs/{prompt_id}/cancel")

    async def over() -> bool:
        return (await anna.get("/prompt"))["exec_info"]["queue_remaining"] == 0

    await until(over)
    await upload(anna, pictures[3], "3.png")


async def test_sockets(lab: Lab) -> None:
    gateway = await limited(lab, {"sockets": 2})
    anna, too, ben = (caller(lab, gateway, name) for name in ("anna", "anna-too", "ben"))
    sockets = [await anna.listen("a"), await too.listen("b")]
    async with lab.http.get(f"{gateway.url}/ws?clientId=c", headers=anna.headers) as answer:
        await refusal(answer, "sockets")
    await ben.listen("c")
    await sockets[0].socket.close()

    async def again() -> Any:
        try:
            return await anna.listen("d")
        except aiohttp.WSServerHandshakeError as error:
            if error.status != 429:
                raise
            return None

    listener = await until(again)
    prompt_id = await anna.prompt(slow(), "d")
    await listener.end_of(prompt_id)


async def test_a_tenants_deadline(lab: Lab) -> None:
    simulators = await lab.simulators(1)
    tenants = {"default": {"deadline": 1.5}, "named": {"ben": {"deadline": None}}}
    gateway = await serve(lab, write_config(lab, simulators, tenants, {}), 1)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    long = slow(steps=1000, step_seconds=0.1)
    mine, waiting, later = (
        await anna.prompt(long),
        await anna.prompt(slow(1, steps=1000, step_seconds=0.1)),
        await anna.prompt(slow(), extra_data={"deadline_seconds": 60}),
    )
    for prompt_id in (mine, waiting):
        (name, told), *_ = reversed((await anna.entry(prompt_id))["status"]["messages"])
        assert name == "execution_interrupted"
        assert told["exception_message"] == "deadline of 1.5 s passed"
    # A prompt's own goes before its tenant's; and who has none waits.
    assert (await anna.entry(later))["status"]["status_str"] == "success"
    prompt_id = await ben.prompt(slow(steps=40, step_seconds=0.05))
    assert (await ben.entry(prompt_id))["status"]["status_str"] == "success"


async def test_who_waits_in_the_gateway_is_served_in_turn(lab: Lab) -> None:
    """Hundreds of a tenant's jobs that may not run yet hold nobody else up."""
    gateway = await limited(lab, {"jobs_running": 1})
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await anna.prompt(slow(0, steps=1000, step_seconds=0.05))

    async def send(comfy: Comfy, count: int) -> list[str]:
        return [await comfy.prompt(slow(n, steps=1)) for n in range(count)]

    await asyncio.gather(*(send(anna, 50) for _ in range(4)))
    await anna.post("/interrupt", {})
    for prompt_id in await send(ben, 3):
        await ben.entry(prompt_id)
    assert len((await anna.get("/queue"))["queue_pending"]) > 100


async def test_open_bytes(lab: Lab) -> None:
    """What a tenant's open prompts take in memory: its own prompts wait for it alone, and it comes back."""
    gateway = await limited(lab, {"open_bytes": 300_000})
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    noise = {"extra_data": {"extra_pnginfo": {"noise": "x" * 130_000}}}
    first = await anna.prompt(slow(0, steps=1000, step_seconds=0.05), **noise)
    await anna.running(first)
    second = await anna.prompt(slow(1), **noise)
    more = {"prompt": slow(2), **noise}
    async with lab.http.post(f"{gateway.url}/prompt", json=more, headers=anna.headers) as answer:
        info = await refusal(answer, "open_bytes")
        assert 260_000 < info["used"] < 300_000
    large = {"prompt": slow(2), "x": "y" * 300_000}
    async with lab.http.post(f"{gateway.url}/prompt", json=large, headers=anna.headers) as answer:
        await refusal(answer, "open_bytes", 413)
    await ben.prompt(slow(3), **noise)
    await anna.post("/queue", {"delete": [second]})
    await anna.prompt(slow(4), **noise)
