"""A prompt_id is its client's own name for a job: whoever knows another's gets nothing by it, whatever fails."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.simulator.nodes import seed_colour
from tests.acceptance.test_guide_clients import colour
from tests.comfy_client import Comfy, Listener
from tests.lab import GatewayProcess, Lab, Simulator, until
from tests.security.between import between
from tests.security.world import ask, broadcast, caller, start
from tests.workflows import failing, slow

# What only Anna ever wrote, and the colours of what each makes.
MARK = "annas-mark"
ANNAS, BENS, OTHER = 0x112233, 0x070809, 0x445566
NAMES = ("ended", "failed", "deleted", "running", "pending")
IDS = {name: f"{n}1111111-2222-4333-8444-555555555555" for n, name in enumerate(NAMES, start=1)}
# `partial_execution_targets` that are no list: ComfyUI's own bare 500.
TARGETS = "targets"
FAULTS = (TARGETS, "500:/prompt", "drop-answer", "hold-prompt", "hold-answer", "no-prompt-id", "slow:0.2", "refuse:0.3")
# A pack that is trusted runs for isolated tenants, too.
TRUST = {"tenants__default__nodes__trust": "*"}


def annas(**more: Any) -> dict[str, Any]:
    """A workflow of Anna's: its file bears her mark."""
    return slow(ANNAS, prefix=f"{MARK}/{MARK}", **more)


async def deleted_here_alone(lab: Lab, simulator: Simulator, comfy: Comfy, *prompt_ids: str) -> None:
    """Delete history entries, while the backend refuses that."""
    await simulator.fault(lab.http, "500:/history")
    asked = (await simulator.requests(lab.http)).get("POST /history", 0)
    await comfy.post("/history", {"delete": list(prompt_ids)})

    async def refused() -> bool:
        return (await simulator.requests(lab.http)).get("POST /history", 0) > asked

    await until(refused, what="the backend was asked to delete")
    await simulator.no_faults(lab.http)


async def what_ben_sees(ben: Comfy, *prompt_ids: str) -> bytes:
    """All that he can read by these ids, and without any."""
    paths = ["/history", "/queue", "/api/jobs?limit=100", "/prompt"]
    paths += [path + prompt_id for prompt_id in prompt_ids for path in ("/history/", "/api/jobs/")]
    return b"\n".join([(await ask(ben, "GET", path)).body for path in paths])


async def is_bens_own(ben: Comfy, entry: dict[str, Any], prompt: dict[str, Any]) -> None:
    """Assert that an entry of his is of this prompt of his."""
    assert entry["prompt"][2] == prompt
    assert [colour(await ben.view(image)) for image in ben.images(entry)] == [
        seed_colour(prompt["1"]["inputs"]["seed"])
    ]


async def sent_while(
    lab: Lab, simulator: Simulator, fault: str, comfy: Comfy, prompt: dict[str, Any], *prompt_ids: str
) -> dict[str, int]:
    """Send a prompt under each of these ids while something fails; the statuses."""
    more = {"partial_execution_targets": 5} if fault == TARGETS else {}
    asked = (await simulator.requests(lab.http)).get("POST /prompt", 0)
    if fault != TARGETS:
        await simulator.fault(lab.http, fault)
    if fault.startswith("refuse"):
        await until(lambda: listens(lab, simulator, is_wanted=False), what="it refuses")
    statuses = {}
    for prompt_id in prompt_ids:
        if fault == "drop-answer":
            await simulator.fault(lab.http, fault)
        body = {"prompt": prompt, "prompt_id": prompt_id, **more}
        sending = asyncio.create_task(comfy.post("/prompt", body))
        if fault.startswith("hold"):

            async def heard(most: int = asked) -> bool:
                return (await simulator.requests(lab.http)).get("POST /prompt", 0) > most

            await until(heard, what="the prompt is at the backend")
            asked += 1
            async with lab.http.delete(f"{simulator.url}/simulator/faults"):
                pass
            statuses[prompt_id] = (await sending)[0]
            await simulator.fault(lab.http, fault)
        else:
            statuses[prompt_id] = (await sending)[0]
    await until(lambda: listens(lab, simulator, is_wanted=True), what="it listens")
    await simulator.no_faults(lab.http)

    async def is_up() -> bool:
        async with lab.http.get(f"{comfy.url}/readyz") as answer:
            return bool((await answer.json())["backends_up"] == 1)

    await until(is_up, what="the backend takes work")
    return statuses


async def listens(lab: Lab, simulator: Simulator, *, is_wanted: bool) -> bool:
    """Return True if a backend listens, or does not, as it is wanted."""
    try:
        await simulator.requests(lab.http)
    except aiohttp.ClientConnectionError:
        return not is_wanted
    return is_wanted


async def test_the_id_of_an_ended_job_opens_nothing(lab: Lab) -> None:
    """Anna's ended, failed and deleted jobs, and each fault that a POST /prompt may meet."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator, dispatch__backoff=0.1, **TRUST)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    for name in ("ended", "failed", "deleted"):
        await anna.prompt(failing(MARK) if name == "failed" else annas(), prompt_id=IDS[name])
        await anna.entry(IDS[name])
    await deleted_here_alone(lab, simulator, anna, IDS["deleted"])
    ids = [IDS[name] for name in ("ended", "failed", "deleted")]
    before = await anna.get("/history")
    assert set(before) == set(ids[:2])
    for place, fault in enumerate(FAULTS):
        prompt = slow(BENS + place, steps=1, prefix="bens")
        statuses = await sent_while(lab, simulator, fault, ben, prompt, *ids)
        assert set(statuses.values()) == ({500} if fault in (TARGETS, "500:/prompt") else {200}), fault
        for prompt_id, status in statuses.items():
            if status == 200:
                await is_bens_own(ben, await ben.entry(prompt_id), prompt)
        assert MARK.encode() not in await what_ben_sees(ben, *ids), fault
        await ben.post("/history", {"clear": True})
        assert await anna.get("/history") == before, fault
        (image,) = anna.images(before[IDS["ended"]])
        assert colour(await anna.view(image)) == seed_colour(ANNAS), fault


async def test_the_id_of_an_open_job_opens_nothing(lab: Lab) -> None:
    """Anna's job runs, another waits behind it, and Ben's come and go under the same ids."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator, dispatch__backoff=0.1, **TRUST)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    ids = [IDS["running"], IDS["pending"]]
    await anna.prompt(annas(steps=1000, step_seconds=0.05), prompt_id=ids[0])
    await anna.running(ids[0])
    await anna.prompt(annas(), prompt_id=ids[1])
    for place, fault in enumerate(FAULTS):
        prompt = slow(BENS + place, steps=1, prefix="bens")
        statuses = await sent_while(lab, simulator, fault, ben, prompt, *ids)
        assert set(statuses.values()) == ({500} if fault in (TARGETS, "500:/prompt") else {200}), fault
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


async def test_a_backend_that_hangs_gives_nothing_away(lab: Lab) -> None:
    simulator = await lab.simulator()
    patience = {"probe__lost_after": 1.5, "probe__timeout": 0.5, "dispatch__send_timeout": 0.3}
    gateway = await start(lab, simulator, dispatch__backoff=0.1, **patience, **TRUST)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await anna.prompt(annas(), prompt_id=IDS["ended"])
    before = await anna.entry(IDS["ended"])
    await sent_while(lab, simulator, "hang", ben, slow(BENS, prefix="bens"), IDS["ended"])
    await is_bens_own(ben, await ben.entry(IDS["ended"]), slow(BENS, prefix="bens"))
    assert await anna.entry(IDS["ended"]) == before


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
    again = await start(lab, simulator, **TRUST)
    await simulator.no_faults(lab.http)
    anna, ben = caller(lab, again, "anna"), caller(lab, again, "ben")
    await is_bens_own(ben, await ben.entry(IDS["ended"]), slow(BENS))
    assert await anna.entry(IDS["ended"]) == before


@pytest.mark.parametrize("fault", ["drop-answer", "500:/prompt", "refuse:0.3"])
async def test_a_deleted_jobs_result_is_not_a_new_ones(lab: Lab, fault: str) -> None:
    """Of one tenant: the backend has the old entry still."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator, dispatch__backoff=0.1, **TRUST)
    anna = caller(lab, gateway, "anna")
    await anna.prompt(slow(ANNAS), prompt_id=IDS["deleted"])
    await anna.entry(IDS["deleted"])
    await deleted_here_alone(lab, simulator, anna, IDS["deleted"])
    (status,) = (await sent_while(lab, simulator, fault, anna, slow(OTHER), IDS["deleted"])).values()
    if status == 200:
        await is_bens_own(anna, await anna.entry(IDS["deleted"]), slow(OTHER))
    else:
        assert await anna.get("/history") == {}


async def test_a_delete_that_the_backend_did_not_confirm_is_tried_again(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await start(lab, simulator, **TRUST)
    anna = caller(lab, gateway, "anna")
    await anna.entry(await anna.prompt(slow(ANNAS, steps=1)))
    await anna.post("/history", {"clear": True})
    there = Comfy(lab.http, simulator.url)

    async def gone() -> bool:
        return await there.get("/history") == {}

    await until(gone)
    await anna.entry(await anna.prompt(slow(ANNAS, steps=1)))
    await simulator.fault(lab.http, "500:/history")
    await anna.post("/history", {"clear": True})

    async def asked() -> bool:
        return (await simulator.requests(lab.http))["POST /history"] >= 3

    await until(asked, what="it is asked again")
    await simulator.no_faults(lab.http)
    await until(gone, what="the entry is gone there")


# -- what is journalled, and what of a given-up assignment is remembered ---------------------------------------------


async def test_each_assignment_is_journalled_before_the_backend_hears_of_it(lab: Lab) -> None:
    """Each under a fresh id, which is nobody's but the gateway's."""
    async with between(lab, await lab.simulator()) as backend:
        gateway = await start(lab, backend.url, dispatch__backoff=0.05, **TRUST)
        anna = caller(lab, gateway, "anna")
        missing = []

        async def look(request: web.Request, body: bytes) -> web.Response | None:
            if (request.method, request.path) != ("POST", "/prompt"):
                return None
            sent = json.loads(body)["prompt_id"]
            if sent not in gateway.upstream_ids().values():
                missing.append(sent)
            if len(backend.sent) < 3:
                # It is asked again, once it has waited.
                request.transport.abort()  # type: ignore[union-attr]
            return None if len(backend.sent) >= 3 else web.Response(status=500)

        backend.hook = look
        for n in range(3):
            prompt_id = str(uuid.uuid4())
            assert await anna.prompt(slow(n), prompt_id=prompt_id) == prompt_id
            entry = await anna.entry(prompt_id)
            assert entry["prompt"][1] == prompt_id
        assert not missing
        assert len(backend.ids) == len(set(backend.ids)) >= 5
        assert prompt_id not in backend.ids
        await gateway.stop()


async def test_a_lost_job_is_taken_back_after_a_restart(lab: Lab) -> None:
    """Its backend was away, and so was the gateway: it has run on, and is not run again."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator, dispatch__attempts=5, **TRUST)
    anna = caller(lab, gateway, "anna")
    prompt_id = await anna.prompt(slow(ANNAS, steps=60, step_seconds=0.05))
    await anna.running(prompt_id)
    await simulator.fault(lab.http, "refuse:1.2")

    async def waits() -> bool:
        return bool((await anna.get("/queue"))["queue_pending"])

    await until(waits)
    await gateway.kill()
    again = await start(lab, simulator, dispatch__attempts=5, **TRUST)
    await caller(lab, again, "anna").entry(prompt_id)
    assert (await simulator.requests(lab.http))["POST /prompt"] == 1


async def test_a_cancelled_job_is_recognised_after_a_restart(lab: Lab) -> None:
    """Its backend was away as it was cancelled: the copy is taken out of the queue there, and never starts."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator, **TRUST)
    anna, there = caller(lab, gateway, "anna"), Comfy(lab.http, simulator.url)
    foreign = await there.prompt(slow(1, steps=1000, step_seconds=0.05))
    prompt_id = await anna.prompt(slow(2, steps=1000, step_seconds=0.05))

    async def queued() -> bool:
        return len((await there.get("/queue"))["queue_pending"]) == 1

    await until(queued)
    await simulator.fault(lab.http, "refuse:1.2")

    async def away() -> bool:
        async with lab.http.get(f"{gateway.url}/readyz") as answer:
            return bool((await answer.json())["backends_up"] == 0)

    await until(away)
    await anna.post("/queue", {"delete": [prompt_id]})
    await gateway.kill()
    await start(lab, simulator, **TRUST)

    async def taken_out() -> bool:
        queue = await there.get("/queue")
        return [item[1] for items in queue.values() for item in items] == [foreign]

    await until(taken_out, what="the copy is gone")


# -- hostile backends -----------------------------------------------------------------------------------------------

ODD = {
    "another's ended": lambda ended, running: {"prompt_id": ended},
    "another's running": lambda ended, running: {"prompt_id": running},
    "a list": lambda ended, running: {"prompt_id": [ended]},
    "a number": lambda ended, running: {"prompt_id": 5},
    "none": lambda ended, running: {},
    "null": lambda ended, running: {"prompt_id": None},
    "long": lambda ended, running: {"prompt_id": "a" * 100_000},
    "short": lambda ended, running: {"prompt_id": "a"},
    "a path": lambda ended, running: {"prompt_id": f"../history/{ended}"},
    "no object": lambda ended, running: [ended],
    "no node_errors": lambda ended, running: {"prompt_id": ended, "node_errors": ended},
}


@pytest.mark.parametrize("is_queued", [True, False], ids=["queued", "not-queued"])
async def test_an_odd_answer_ties_a_job_to_nobodys_entry(lab: Lab, is_queued: bool) -> None:
    """The backend has the prompt and answers with another's id, or with none; or has not even queued it."""
    async with between(lab, await lab.simulator()) as backend:
        gateway = await start(lab, backend.url, dispatch__backoff=0.05, **TRUST)
        anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
        await anna.prompt(annas(), prompt_id=IDS["ended"])
        before = await anna.entry(IDS["ended"])
        for place, make in enumerate(ODD.values()):
            running = await anna.prompt(annas(steps=1000, step_seconds=0.05))
            await anna.running(running)
            odd = json.dumps(make(backend.ids[0], backend.ids[-1])).encode()

            async def hook(request: web.Request, _: bytes, odd: bytes = odd) -> web.Response | None:
                is_prompt = (request.method, request.path) == ("POST", "/prompt")
                return web.Response(body=odd, content_type="application/json") if is_prompt and not is_queued else None

            backend.hook, backend.rewrite = hook, lambda _, odd=odd: odd  # type: ignore[misc]
            prompt_id, prompt = str(uuid.uuid4()), slow(BENS + place, steps=1, prefix="bens")
            seen = await ask(ben, "POST", "/prompt", {"prompt": prompt, "prompt_id": prompt_id})
            assert seen.status == (200 if is_queued else 500), (odd[:100], seen)
            assert not [each for each in backend.ids if each.encode() in seen.body]
            await anna.post("/interrupt", {"prompt_id": running})
            await anna.entry(running)
            if is_queued:
                await is_bens_own(ben, await ben.entry(prompt_id), prompt)
            assert MARK.encode() not in await what_ben_sees(ben, prompt_id, IDS["ended"])
            backend.hook = backend.rewrite = None
        assert await anna.entry(IDS["ended"]) == before
        await gateway.stop()


async def test_an_entry_under_a_backends_own_id_counts_only_with_the_assignments_mark(lab: Lab) -> None:
    """It answers with an id that nobody knows, under which it then shows another's entry."""
    async with between(lab, await lab.simulator()) as backend:
        gateway = await start(lab, backend.url, dispatch__backoff=0.05, **TRUST)
        anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
        await anna.prompt(annas(), prompt_id=IDS["ended"])
        before = await anna.entry(IDS["ended"])
        entry = await Comfy(lab.http, backend.url).entry(backend.ids[0])
        own: list[str] = []

        async def hook(request: web.Request, _: bytes) -> web.Response | None:
            if (request.method, request.path) == ("POST", "/prompt"):
                own.append(str(uuid.uuid4()))
                return web.json_response({"prompt_id": own[-1], "number": 1, "node_errors": {}})
            asked = request.path.rpartition("/")[2]
            return web.json_response({asked: entry}) if asked in own else None

        backend.hook = hook
        prompt_id = await ben.prompt(slow(BENS, prefix="bens"))
        told = await ben.entry(prompt_id)
        assert told["status"]["status_str"] == "error"
        assert MARK.encode() not in await what_ben_sees(ben, prompt_id)
        assert len(own) > 1
        assert await anna.entry(IDS["ended"]) == before
        await gateway.stop()


async def test_a_backend_that_gives_ids_of_its_own_is_found_by_the_mark(lab: Lab) -> None:
    """It is too old to honour ours, and its answer is lost: what it queued is found there, and not run twice."""
    async with between(lab, await lab.simulator("--fail", "no-prompt-id")) as backend:
        gateway = await start(lab, backend.url, **TRUST)
        ben, there = caller(lab, gateway, "ben"), Comfy(lab.http, backend.url)
        foreign = await there.prompt(slow(1, steps=1000, step_seconds=0.05))
        backend.rewrite = lambda _: b"{}"
        prompt_id = await ben.prompt(slow(BENS), prompt_id=IDS["ended"])
        assert prompt_id == IDS["ended"]
        await there.post("/interrupt", {"prompt_id": foreign})
        await is_bens_own(ben, await ben.entry(prompt_id), slow(BENS))
        assert len(await there.get("/history")) == 2
        await gateway.stop()


# -- nobody sees what is the gateway's alone ------------------------------------------------------------------------


def raw_of(listener: Listener) -> bytes:
    """All that a socket heard."""
    return b"\n".join(event["raw"] if "raw" in event else json.dumps(event).encode() for event in listener.heard)


async def all_seen(lab: Lab, gateway: GatewayProcess, *prompt_ids: str) -> bytes:
    """What Anna and an admin can read."""
    paths = ["/history", "/queue", "/api/jobs?limit=100", "/prompt", "/gateway/backends"]
    paths += [path + prompt_id for prompt_id in prompt_ids for path in ("/history/", "/api/jobs/")]
    callers = [caller(lab, gateway, name) for name in ("anna", "boss")]
    return b"\n".join([(await ask(each, "GET", path)).body for each in callers for path in paths])


@pytest.mark.parametrize("old", [(), ("--fail", "no-prompt-id")], ids=["", "no-prompt-id"])
async def test_no_client_sees_an_upstream_id(lab: Lab, old: tuple[str, ...]) -> None:
    """In events, previews, histories, queues, refusals and errors, also of a node that speaks of its prompt's id."""
    async with between(lab, await lab.simulator(*old)) as backend:
        gateway = await start(lab, backend.url, **TRUST)
        anna = caller(lab, gateway, "anna")
        flags = {"supports_preview_metadata": True}
        sockets = [await anna.listen("c"), await anna.listen("c", "&events=interleave", flags=flags)]
        theirs: list[str] = []

        def note(answer: bytes) -> bytes:
            value = json.loads(answer)
            theirs.append(value["prompt_id"])
            error = {"type": "t", "message": f"of {theirs[-1]}, {backend.ids[-1]}", "details": "", "extra_info": {}}
            value["node_errors"]["2"] = {"errors": [error], "dependent_outputs": ["2"], "class_type": "SaveImage"}
            return json.dumps(value).encode()

        backend.rewrite = note
        seen, ids = b"", []
        partly = {**slow(1), "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 5], "filename_prefix": "x"}}}
        bad = slow(2, steps=-1)
        for prompt in (slow(1), slow(1), partly, failing("boom"), bad, slow(3, steps=200)):
            answer = await ask(anna, "POST", "/prompt", {"prompt": prompt, "client_id": "c"})
            seen += answer.body
            if answer.status == 200:
                ids.append(json.loads(answer.body)["prompt_id"])
                assert f"of {ids[-1]}, {ids[-1]}".encode() in answer.body
        await anna.running(ids[-1])
        told = {"type": "custom", "data": {"prompt_id": theirs[-1], "text": f"this is {theirs[-1]}", "x": [theirs[-1]]}}
        await broadcast(lab, backend.simulator, told)
        for listener in sockets:
            await listener.next("custom", prompt_id=ids[-1], text=f"this is {ids[-1]}", x=[ids[-1]])
        seen += await all_seen(lab, gateway, *ids)
        await anna.post("/interrupt", {"prompt_id": ids[-1]})
        for listener in sockets:
            await listener.end_of(ids[-1])
            seen += raw_of(listener)
        seen += await all_seen(lab, gateway, *ids)
        assert {json.loads(event["raw"][8 : 8 + int.from_bytes(event["raw"][4:8], "big")])["prompt_id"]
                for event in sockets[1].heard if event["type"] == "binary 4"} <= set(ids)  # fmt: skip
        assert any(event["type"] == "binary 4" for event in sockets[1].heard)
        assert (len(backend.ids), len(theirs)) == (6, 5)
        assert b"gateway_assignment" not in seen
        assert not [each for each in {*backend.ids, *theirs} if each.encode() in seen]
        for each in (json.dumps(body["extra_data"]) for body in backend.sent):
            assert "gateway_assignment" in each
        await gateway.stop()


async def test_a_client_cannot_write_the_mark(lab: Lab) -> None:
    """What it puts there itself is its own to see, and means nothing."""
    async with between(lab, await lab.simulator()) as backend:
        gateway = await start(lab, backend.url, **TRUST)
        anna = caller(lab, gateway, "anna")
        extra = {"gateway_assignment": "mine"}
        prompt_id = await anna.prompt(slow(1), extra_data=extra)
        entry = await anna.entry(prompt_id)
        assert entry["prompt"][3]["gateway_assignment"] == "mine"
        assert backend.sent[0]["extra_data"]["gateway_assignment"] == backend.ids[0]
        await gateway.stop()
