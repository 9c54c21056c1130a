"""Two tenants and an admin whose jobs have the same id: each link leads to the job that it was given with."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab
from tests.support.pictures import colour
from tests.support.security_world import KEYS, caller
from tests.support.v2 import V2Caller, start_v2
from tests.support.workflows import slow

SAME = "11111111-2222-4333-8444-555555555555"
# The seed of each caller's job is the colour of its picture.
COLOURS = {"anna": (0, 0, 10), "ben": (0, 0, 20), "boss": (0, 0, 30)}


async def submitted(comfy: Comfy, seed: int, **more: Any) -> None:
    """Submit a job with the id that all have."""
    body = {"prompt": slow(seed, prefix="same", **more), "prompt_id": SAME}
    async with comfy.http.post(f"{comfy.url}/prompt", json=body, headers=comfy.headers) as answer:
        assert (answer.status, (await answer.json())["prompt_id"]) == (200, SAME)


async def run_of(lab: Lab, gateway: GatewayProcess, headers: Mapping[str, str], query: str) -> Any:
    """The answer of GET /gateway/run/{prompt_id}."""
    async with lab.http.get(f"{gateway.url}/gateway/run/{SAME}{query}", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_an_admins_links_lead_to_the_same_job(lab: Lab) -> None:
    world = await start_v2(lab)
    callers = {name: V2Caller(lab, world.gateway, KEYS[name]) for name in COLOURS}
    boss = callers["boss"]
    for name, (_, _, seed) in COLOURS.items():
        await submitted(caller(lab, world.gateway, name), seed, steps=1)
        await callers[name].reaches(SAME, "succeeded")
    for path in ("/jobs", f"/jobs/{SAME}", "/assets/x", "/assets/x/content", f"/jobs/{SAME}/events"):
        assert (await boss("GET", f"{path}?tenant=nobody")).status == 404
    listed = (await boss("GET", "/jobs")).body["jobs"]
    assert [each["id"] for each in listed] == [SAME] * 3
    # Their order is that of their submission, the newest first.
    for name, item in zip(reversed(COLOURS), listed, strict=True):
        own = await callers[name].job(SAME)
        for link in (item["urls"]["self"], own["urls"]["self"] if name == "boss" else f"/jobs/{SAME}?tenant={name}"):
            shown = (await boss("GET", link)).body
            assert shown["created_at"] == own["created_at"]
            assert shown["urls"] == item["urls"]
        assert item["urls"]["self"] == own["urls"]["self"] + ("" if name == "boss" else f"?tenant={name}")
        async with boss.stream(shown) as stream:
            events = await stream.rest()
        (told,) = [data for what, data in events if what == "output"]
        (output,) = shown["outputs"]
        run = await run_of(lab, world.gateway, boss.headers, urlsplit(item["urls"]["self"]).query and f"?tenant={name}")
        for each in (output, told, run["outputs"][0]):
            assert colour((await boss("GET", each["url"])).raw) == COLOURS[name], (name, each["url"])
        for link in (run["urls"]["job"], run["urls"]["self"]):
            assert link.partition("?")[2] == item["urls"]["self"].partition("?")[2]
        asset = (await boss("GET", f"/assets/{output['id']}?tenant={name}")).body
        assert colour((await boss("GET", asset["url"])).raw) == COLOURS[name]
        # A user's own answers name no tenant, and say nothing of the others.
        assert "tenant" not in str(own)
        if name != "boss":
            seen = (await callers[name]("GET", f"{own['urls']['self']}?tenant=boss")).body
            assert seen["created_at"] == own["created_at"]


async def test_an_admins_stream_stays_with_its_job(lab: Lab) -> None:
    """It would go over to the admin's own job of the same id, as soon as there is one."""
    world = await start_v2(lab)
    boss = V2Caller(lab, world.gateway, KEYS["boss"])
    await submitted(caller(lab, world.gateway, "anna"), 10, steps=200, step_seconds=0.1)
    await world.anna.reaches(SAME, "running")
    async with boss.stream({"urls": {"events": f"{world.gateway.url}/api/v2/jobs/{SAME}/events"}}) as stream:
        assert (await stream.next() or ("", {}))[1]["status"] == "running"
        await submitted(caller(lab, world.gateway, "boss"), 30, steps=1)
        await world.anna("POST", f"/jobs/{SAME}/cancel")
        async with asyncio.timeout(30):
            events = await stream.rest()
    assert events[-1] == ("status", {"status": "canceled"})
    assert (await boss.reaches(SAME))["status"] == "succeeded"


async def test_a_run_with_a_tenant_in_its_query_is_the_callers_own(lab: Lab) -> None:
    world = await start_v2(lab)
    headers = {"X-API-Key": KEYS["boss"]}
    body = {"prompt": slow(30, steps=1), "prompt_id": SAME}
    url = f"{world.gateway.url}/gateway/run?tenant=anna"
    async with lab.http.post(url, json=body, headers=headers) as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "succeeded")
