"""The ids of prompts on a backend: a hostile backend ties no job to another one by them, and no client sees them."""

from __future__ import annotations

import json
import uuid

import pytest
from aiohttp import web

from tests.security.proxied import BENS, IDS, MARK, Proxied, annas, is_bens_own, what_ben_sees
from tests.support.comfy_client import Comfy, Listener
from tests.support.security_world import ask, broadcast, caller
from tests.support.workflows import failing, slow

pytestmark = pytest.mark.asyncio(loop_scope="module")

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
async def test_an_odd_answer_ties_a_job_to_nobodys_entry(proxied: Proxied, is_queued: bool) -> None:
    """The backend has the prompt and answers with another's id, or with none; or has not even queued it."""
    backend, anna, ben = proxied.backend, proxied.anna, proxied.ben
    await anna.prompt(annas(), prompt_id=IDS["ended"])
    before = await anna.entry(IDS["ended"])
    for place, make in enumerate(ODD.values()):
        running = await anna.prompt(annas(steps=1000, step_seconds=0.02))
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


async def test_an_entry_under_a_backends_own_id_counts_only_with_the_assignments_mark(proxied: Proxied) -> None:
    """It answers with an id that nobody knows, under which it then shows another's entry."""
    backend, anna, ben = proxied.backend, proxied.anna, proxied.ben
    await anna.prompt(annas(), prompt_id=IDS["ended"])
    before = await anna.entry(IDS["ended"])
    entry = await Comfy(proxied.lab.http, backend.url).entry(backend.ids[0])
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


async def test_a_backend_that_gives_ids_of_its_own_is_found_by_the_mark(proxied: Proxied) -> None:
    """It is too old to honour ours, and its answer is lost: what it queued is found there, and not run twice."""
    backend, ben, there = proxied.backend, proxied.ben, Comfy(proxied.lab.http, proxied.backend.url)
    await backend.simulator.fault(proxied.lab.http, "no-prompt-id")
    before = {*await there.get("/history")}
    foreign = await there.prompt(slow(1, steps=1000, step_seconds=0.05))
    backend.rewrite = lambda _: b"{}"
    prompt_id = await ben.prompt(slow(BENS), prompt_id=IDS["ended"])
    assert prompt_id == IDS["ended"]
    await there.post("/interrupt", {"prompt_id": foreign})
    await is_bens_own(ben, await ben.entry(prompt_id), slow(BENS))
    assert len({*await there.get("/history")} - before) == len(backend.sent) == 2


# -- nobody sees what is the gateway's alone ------------------------------------------------------------------------


def raw_of(listener: Listener) -> bytes:
    """All that a socket heard."""
    return b"\n".join(event["raw"] if "raw" in event else json.dumps(event).encode() for event in listener.heard)


async def all_seen(proxied: Proxied, *prompt_ids: str) -> bytes:
    """What Anna and an admin can read."""
    paths = ["/history", "/queue", "/api/jobs?limit=100", "/prompt", "/gateway/backends", "/api/v2/jobs?limit=100"]
    paths += [path + prompt_id for prompt_id in prompt_ids for path in ("/history/", "/api/jobs/", "/api/v2/jobs/")]
    paths += [f"/api/v2/jobs/{prompt_id}/workflow" for prompt_id in prompt_ids]
    callers = [proxied.anna, caller(proxied.lab, proxied.gateway, "boss")]
    return b"\n".join([(await ask(each, "GET", path)).body for each in callers for path in paths])


@pytest.mark.parametrize("fault", [None, "no-prompt-id"], ids=["", "no-prompt-id"])
async def test_no_client_sees_an_upstream_id(proxied: Proxied, fault: str | None) -> None:
    """In events, previews, histories, queues, refusals and errors, also of a node that speaks of its prompt's id."""
    backend, anna, client_id = proxied.backend, proxied.anna, str(uuid.uuid4())
    if fault is not None:
        await backend.simulator.fault(proxied.lab.http, fault)
    flags = {"supports_preview_metadata": True}
    sockets = [await anna.listen(client_id), await anna.listen(client_id, "&events=interleave", flags=flags)]
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
        answer = await ask(anna, "POST", "/prompt", {"prompt": prompt, "client_id": client_id})
        seen += answer.body
        if answer.status == 200:
            ids.append(json.loads(answer.body)["prompt_id"])
            assert f"of {ids[-1]}, {ids[-1]}".encode() in answer.body
    await anna.running(ids[-1])
    told = {"type": "custom", "data": {"prompt_id": theirs[-1], "text": f"this is {theirs[-1]}", "x": [theirs[-1]]}}
    await broadcast(proxied.lab, backend.simulator, told)
    for listener in sockets:
        await listener.next("custom", prompt_id=ids[-1], text=f"this is {ids[-1]}", x=[ids[-1]])
    seen += await all_seen(proxied, *ids)
    await anna.post("/interrupt", {"prompt_id": ids[-1]})
    for listener in sockets:
        await listener.end_of(ids[-1])
        seen += raw_of(listener)
        await listener.socket.close()
    seen += await all_seen(proxied, *ids)
    assert {json.loads(event["raw"][8 : 8 + int.from_bytes(event["raw"][4:8], "big")])["prompt_id"]
            for event in sockets[1].heard if event["type"] == "binary 4"} <= set(ids)  # fmt: skip
    assert any(event["type"] == "binary 4" for event in sockets[1].heard)
    assert (len(backend.ids), len(theirs)) == (6, 5)
    assert b"gateway_assignment" not in seen
    assert not [each for each in {*backend.ids, *theirs} if each.encode() in seen]
    for each in (json.dumps(body["extra_data"]) for body in backend.sent):
        assert "gateway_assignment" in each


async def test_a_client_cannot_write_the_mark(proxied: Proxied) -> None:
    """What it puts there itself is its own to see, and means nothing."""
    backend, anna = proxied.backend, proxied.anna
    extra = {"gateway_assignment": "mine"}
    prompt_id = await anna.prompt(slow(1), extra_data=extra)
    entry = await anna.entry(prompt_id)
    assert entry["prompt"][3]["gateway_assignment"] == "mine"
    assert backend.sent[0]["extra_data"]["gateway_assignment"] == backend.ids[0]
