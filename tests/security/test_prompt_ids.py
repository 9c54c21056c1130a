"""A prompt_id is its client's own name for a job: whoever knows another's gets nothing by it, whatever fails."""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from gateway.simulator.nodes import seed_colour
from tests.security.proxied import (
    ANNAS,
    BENS,
    IDS,
    MARK,
    OTHER,
    TRUST,
    Proxied,
    annas,
    is_bens_own,
    what_ben_sees,
)
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.pictures import colour
from tests.support.raw_http import between, drop
from tests.support.security_world import caller, start
from tests.support.workflows import failing, slow

# The backend is not there.
AWAY = "away"
FAULTS = ("500:/prompt", "drop-answer", "hold-prompt", "hold-answer", "no-prompt-id", "slow:0.05", AWAY)
sharing = pytest.mark.asyncio(loop_scope="module")


async def deleted_here_alone(proxied: Proxied, *prompt_ids: str) -> None:
    """Delete history entries of Anna's, while the backend refuses that."""
    simulator, http = proxied.backend.simulator, proxied.lab.http
    await simulator.fault(http, "500:/history")
    asked = (await simulator.requests(http)).get("POST /history", 0)
    await proxied.anna.post("/history", {"delete": list(prompt_ids)})

    async def refused() -> bool:
        return (await simulator.requests(http)).get("POST /history", 0) > asked

    await until(refused, what="the backend was asked to delete")
    await simulator.no_faults(http)


async def sent_while(
    proxied: Proxied, fault: str, comfy: Comfy, prompt: dict[str, Any], *prompt_ids: str
) -> dict[str, int]:
    """Send a prompt under each of these ids at once while something fails; the statuses."""
    lab, simulator = proxied.lab, proxied.backend.simulator
    asked = (await simulator.requests(lab.http)).get("POST /prompt", 0)

    async def send(prompt_id: str) -> int:
        return (await comfy.post("/prompt", {"prompt": prompt, "prompt_id": prompt_id}))[0]

    async def heard() -> bool:
        return (await simulator.requests(lab.http)).get("POST /prompt", 0) >= asked + len(prompt_ids)

    async with AsyncExitStack() as stack:
        if fault == AWAY:
            await stack.enter_async_context(proxied.backend.away())
        elif fault != "drop-answer":
            await simulator.fault(lab.http, fault)
        if fault == "drop-answer":
            # If an answer is dropped, the fault is over, so the prompts go one by one.
            statuses = []
            for prompt_id in prompt_ids:
                await simulator.fault(lab.http, fault)
                statuses.append(await send(prompt_id))
        else:
            sending = asyncio.gather(*(send(prompt_id) for prompt_id in prompt_ids))
            if fault.startswith("hold"):
                await until(heard, what="the prompts are at the backend")
                await simulator.no_faults(lab.http)
            statuses = await sending
    await simulator.no_faults(lab.http)
    await lab.backends_up(proxied.gateway, 1)
    return dict(zip(prompt_ids, statuses, strict=True))


@sharing
async def test_the_id_of_an_ended_job_opens_nothing(proxied: Proxied) -> None:
    """Anna's ended, failed and deleted jobs, and each fault that a POST /prompt may meet."""
    anna, ben = proxied.anna, proxied.ben
    for name in ("ended", "failed", "deleted"):
        await anna.prompt(failing(MARK) if name == "failed" else annas(), prompt_id=IDS[name])
        await anna.entry(IDS[name])
    await deleted_here_alone(proxied, IDS["deleted"])
    ids = [IDS[name] for name in ("ended", "failed", "deleted")]
    before = await anna.get("/history")
    assert set(before) == set(ids[:2])
    for place, fault in enumerate(FAULTS):
        prompt = slow(BENS + place, steps=1, prefix="bens")
        statuses = await sent_while(proxied, fault, ben, prompt, *ids)
        assert set(statuses.values()) == ({500} if fault == "500:/prompt" else {200}), fault
        for prompt_id, status in statuses.items():
            if status == 200:
                await is_bens_own(ben, await ben.entry(prompt_id), prompt)
        assert MARK.encode() not in await what_ben_sees(ben, *ids), fault
        await ben.post("/history", {"clear": True})
        assert await anna.get("/history") == before, fault
        (image,) = anna.images(before[IDS["ended"]])
        assert colour(await anna.view(image)) == seed_colour(ANNAS), fault


@sharing
async def test_the_id_of_an_open_job_opens_nothing(proxied: Proxied) -> None:
    """Anna's job runs, another waits behind it, and Ben's come and go under the same ids."""
    anna, ben = proxied.anna, proxied.ben
    ids = [IDS["running"], IDS["pending"]]
    await anna.prompt(annas(steps=1000, step_seconds=0.02), prompt_id=ids[0])
    await anna.running(ids[0])
    await anna.prompt(annas(), prompt_id=ids[1])
    for place, fault in enumerate(FAULTS):
        prompt = slow(BENS + place, steps=1, prefix="bens")
        statuses = await sent_while(proxied, fault, ben, prompt, *ids)
        assert set(statuses.values()) == ({500} if fault == "500:/prompt" else {200}), fault
        seen = await what_ben_sees(ben, *ids)
        assert MARK.encode() not in seen, fault
        for prompt_id in ids:
            await ben.post("/interrupt", {"prompt_id": prompt_id})
            await ben.post(f"/api/jobs/{prompt_id}/cancel")
        assert await ben.get("/queue") == {"queue_running": [], "queue_pending": []}, fault
        await anna.running(ids[0])
    await anna.post("/interrupt", {"prompt_id": ids[0]})
    assert (await anna.entry(ids[0]))["status"]["messages"][-1][0] == "execution_interrupted"
    (image,) = anna.images(await anna.entry(ids[1]))
    assert colour(await anna.view(image)) == seed_colour(ANNAS)
    assert MARK.encode() not in await what_ben_sees(ben, *ids)


@sharing
async def test_a_delete_that_the_backend_did_not_confirm_is_tried_again(proxied: Proxied) -> None:
    anna, simulator, http = proxied.anna, proxied.backend.simulator, proxied.lab.http
    there = Comfy(http, simulator.url)

    async def gone() -> bool:
        return not {*proxied.backend.ids} & {*await there.get("/history")}

    await anna.entry(await anna.prompt(slow(ANNAS, steps=1)))
    await anna.post("/history", {"clear": True})
    await until(gone)
    prompt_id = await anna.prompt(slow(ANNAS, steps=1))
    await anna.entry(prompt_id)
    await deleted_here_alone(proxied, prompt_id)
    await until(gone, what="the entry is gone there")


async def test_a_backend_that_hangs_gives_nothing_away(lab: Lab) -> None:
    simulator = await lab.simulator()
    patience: dict[str, Any] = {"probe__interval": 0.1, "probe__timeout": 0.3, "probe__lost_after": 0.5}
    patience |= {"dispatch__send_timeout": 0.1, "dispatch__backoff": 0.05, "dispatch__attempts": 10}
    gateway = await start(lab, simulator, **patience, **TRUST)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await anna.prompt(annas(), prompt_id=IDS["ended"])
    before = await anna.entry(IDS["ended"])
    await simulator.fault(lab.http, "hang")
    await ben.prompt(slow(BENS, prefix="bens"), prompt_id=IDS["ended"])
    await simulator.no_faults(lab.http)
    await is_bens_own(ben, await ben.entry(IDS["ended"]), slow(BENS, prefix="bens"))
    assert await anna.entry(IDS["ended"]) == before
    # It would wait for the requests that hang.
    await simulator.kill()


async def test_a_gateway_that_is_killed_while_it_sends(lab: Lab) -> None:
    """What it finds out afterwards is of its own assignment."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator, **TRUST)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await anna.prompt(annas(), prompt_id=IDS["ended"])
    before = await anna.entry(IDS["ended"])
    await simulator.fault(lab.http, "hold-prompt")
    asked = (await simulator.requests(lab.http))["POST /prompt"]
    sending = asyncio.create_task(ben.post("/prompt", {"prompt": slow(BENS), "prompt_id": IDS["ended"]}))

    async def heard() -> bool:
        return (await simulator.requests(lab.http))["POST /prompt"] > asked

    await until(heard)
    await gateway.kill()
    await asyncio.wait([sending])
    assert sending.exception() is not None
    again = await start(lab, simulator, dispatch__backoff=0.05, **TRUST)
    await simulator.no_faults(lab.http)
    anna, ben = caller(lab, again, "anna"), caller(lab, again, "ben")
    await is_bens_own(ben, await ben.entry(IDS["ended"]), slow(BENS))
    assert await anna.entry(IDS["ended"]) == before


@sharing
@pytest.mark.parametrize("fault", ["drop-answer", AWAY, "500:/prompt"])
async def test_a_deleted_jobs_result_is_not_a_new_ones(proxied: Proxied, fault: str) -> None:
    """Of one tenant: the backend has the old entry still."""
    anna = proxied.anna
    await anna.prompt(slow(ANNAS), prompt_id=IDS["deleted"])
    await anna.entry(IDS["deleted"])
    await deleted_here_alone(proxied, IDS["deleted"])
    (status,) = (await sent_while(proxied, fault, anna, slow(OTHER), IDS["deleted"])).values()
    if status == 200:
        await is_bens_own(anna, await anna.entry(IDS["deleted"]), slow(OTHER))
    else:
        assert await anna.get("/history") == {}


# -- what is journalled, and what of a given-up assignment is remembered ---------------------------------------------


@sharing
async def test_each_assignment_is_journalled_before_the_backend_hears_of_it(proxied: Proxied) -> None:
    """Each under a fresh id, which is nobody's but the gateway's."""
    anna, backend = proxied.anna, proxied.backend
    missing = []

    async def look(request: web.Request, body: bytes) -> web.Response | None:
        if (request.method, request.path) != ("POST", "/prompt"):
            return None
        sent = json.loads(body)["prompt_id"]
        if sent not in proxied.gateway.upstream_ids().values():
            missing.append(sent)
        # It is asked again, once it has waited.
        return drop(request) if len(backend.sent) == 1 else None

    backend.hook = look
    for n in range(3):
        prompt_id = str(uuid.uuid4())
        assert await anna.prompt(slow(n), prompt_id=prompt_id) == prompt_id
        entry = await anna.entry(prompt_id)
        assert entry["prompt"][1] == prompt_id
    assert not missing
    assert len(backend.ids) == len(set(backend.ids)) >= 4
    assert prompt_id not in backend.ids


async def test_a_lost_job_is_taken_back_after_a_restart(lab: Lab) -> None:
    """Its backend was away, and so was the gateway: it has run on, and is not run again."""
    async with between(lab, await lab.simulator()) as backend:
        gateway = await start(lab, backend.url, dispatch__attempts=5, **TRUST)
        anna = caller(lab, gateway, "anna")
        # It ends once that is switched off.
        await backend.simulator.fault(lab.http, "silent")
        prompt_id = await anna.prompt(slow(ANNAS))
        await anna.running(prompt_id)

        async def waits() -> bool:
            return bool((await anna.get("/queue"))["queue_pending"])

        async with backend.away():
            await until(waits)
            await gateway.kill()
        again = await start(lab, backend.url, dispatch__attempts=5, **TRUST)
        anna = caller(lab, again, "anna")
        await anna.running(prompt_id)
        await backend.simulator.no_faults(lab.http)
        (image,) = anna.images(await anna.entry(prompt_id))
        assert colour(await anna.view(image)) == seed_colour(ANNAS)
        assert len(backend.sent) == 1


async def test_a_cancelled_job_is_recognised_after_a_restart(lab: Lab) -> None:
    """Its backend was away as it was cancelled: the copy is taken out of the queue there, and never starts."""
    async with between(lab, await lab.simulator()) as backend:
        gateway = await start(lab, backend.url, **TRUST)
        anna, there = caller(lab, gateway, "anna"), Comfy(lab.http, backend.simulator.url)
        foreign = await there.prompt(slow(1, steps=1000, step_seconds=0.05))
        prompt_id = await anna.prompt(slow(2, steps=1000, step_seconds=0.05))

        async def queued() -> bool:
            return len((await there.get("/queue"))["queue_pending"]) == 1

        await until(queued)
        async with backend.away():
            await lab.backends_up(gateway, 0)
            await anna.post("/queue", {"delete": [prompt_id]})
            await gateway.kill()
        await start(lab, backend.url, **TRUST)

        async def taken_out() -> bool:
            queue = await there.get("/queue")
            return [item[1] for items in queue.values() for item in items] == [foreign]

        await until(taken_out, what="the copy is gone")
