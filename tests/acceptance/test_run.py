"""POST /gateway/run: a graph in, the picture or JSON out; what comes late, fails, or is given up."""

from __future__ import annotations

import asyncio
import json

import pytest
import pytest_asyncio

from tests.support.lab import Lab, Simulator, until
from tests.support.runs import Runner
from tests.support.security_world import KEYS, start
from tests.support.v2 import V2Caller
from tests.support.workflows import failing, slow

pytestmark = pytest.mark.asyncio(loop_scope="module")
PNG = b"\x89PNG"
IMAGE = {"Accept": "image/*"}
NOBODYS = "00000000-0000-4000-8000-000000000000"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def anna(shared_lab: Lab) -> Runner:
    """The first caller of one gateway for all tests that disturb nobody."""
    gateway = await start(shared_lab, *await shared_lab.simulators(2, "--record"))
    return Runner(shared_lab, gateway, KEYS["anna"])


async def test_a_graph_in_the_picture_or_json_out(anna: Runner) -> None:
    ben = anna.as_other(KEYS["ben"])
    shown = await anna.run({"prompt": slow(1)})
    assert (shown.status, shown.body["status"], shown.body["error"]) == (200, "succeeded", None)
    (output,) = shown.body["outputs"]
    assert (output["node_id"], output["type"], output["content_type"]) == ("2", "image", "image/png")
    content = await anna("GET", output["url"])
    assert content.raw.startswith(PNG)
    assert len(content.raw) == output["size_bytes"]

    # A graph alone is a body as well, as on POST /prompt.
    picture = await anna.run(slow(2), headers=IMAGE)
    assert (picture.status, picture.headers["Content-Type"]) == (200, "image/png")
    assert picture.raw.startswith(PNG)
    prompt_id = picture.headers["X-Gateway-Prompt-Id"]
    assert (await anna("GET", picture.headers["Content-Location"])).raw == picture.raw
    assert f'<{anna.gateway.url}/gateway/run/{prompt_id}>; rel="describedby"' in picture.headers["Link"]

    # The result can be had again, whole or in part, by its owner and by an admin alone.
    again = await anna("GET", f"/gateway/run/{prompt_id}", headers={**IMAGE, "Range": "bytes=0-3"})
    assert (again.status, again.raw) == (206, PNG)
    assert (await anna("GET", f"/gateway/run/{prompt_id}")).body["prompt_id"] == prompt_id
    for id_ in (prompt_id, NOBODYS, "nope"):
        assert (await ben("GET", f"/gateway/run/{id_}")).status == 404
    boss = anna.as_other(KEYS["boss"])
    own = await boss.run(slow(98, steps=1), headers=IMAGE)
    seen = await boss("GET", f"/gateway/run/{shown.body['prompt_id']}", headers=IMAGE)
    # An admin's own file of the same name is another one.
    assert seen.headers["Content-Disposition"] == own.headers["Content-Disposition"]
    assert content.raw == seen.raw != own.raw
    # One job on all surfaces.
    assert (await anna("GET", f"/history/{prompt_id}")).body[prompt_id]["status"]["status_str"] == "success"


async def test_the_first_output_of_the_type_that_was_asked_for(anna: Runner) -> None:
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 2, "color": 5}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "saved"}},
        "4": {"class_type": "PrimitiveInt", "inputs": {"value": 4711}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}},
    }
    picture = await anna.run({"prompt": prompt}, headers={"Accept": "image/png, */*;q=0.5"})
    assert 'filename="saved' in picture.headers["Content-Disposition"]
    assert picture.headers["Link"].count('rel="related"') == 4
    text = await anna.run({"prompt": prompt}, headers={"Accept": "text/plain"})
    assert (text.headers["Content-Type"], text.raw) == ("text/plain; charset=utf-8", b"4711")
    for accept, status in (("application/json", 200), ("*/*", 200), ("video/*", 406)):
        answer = await anna.run({"prompt": prompt}, headers={"Accept": accept})
        assert (answer.status, answer.body["status"], len(answer.body["outputs"])) == (status, "succeeded", 5)
    assert answer.body["error"]["type"] == "no_such_output"
    assert "image/png" in answer.body["error"]["details"]


async def test_what_takes_longer_is_fetched_later(anna: Runner) -> None:
    held = slow(3, steps=1000, step_seconds=0.05)
    late = await anna.run({"prompt": held}, headers={**IMAGE, "Prefer": "wait=0"})
    assert (late.status, late.headers["Preference-Applied"]) == (202, "wait=0")
    assert late.body["status"] in ("queued", "running")
    assert int(late.headers["Retry-After"]) >= 1
    location = late.headers["Location"]
    assert location == late.body["urls"]["self"]
    # The GET waits in the same way, and a cancelled job is told of at once.
    waiting = asyncio.create_task(anna("GET", location, headers=IMAGE))
    assert (await anna("POST", late.body["urls"]["cancel"])).status == 200
    cancelled = await waiting
    assert (cancelled.status, cancelled.body["error"]["type"]) == (409, "job_cancelled")

    quick = await anna.run({"prompt": slow(4, steps=4)}, headers={"Prefer": "respond-async"})
    assert (quick.status, quick.headers["Preference-Applied"]) == (202, "respond-async")
    assert (await anna("GET", quick.headers["Location"], headers=IMAGE)).raw.startswith(PNG)


async def test_who_goes_away_may_cancel_the_job(anna: Runner) -> None:
    for where, query in (({"cancel_on_disconnect": True}, ""), ({}, "?cancel_on_disconnect=true"), ({}, "")):
        before = await anna.open_jobs()
        prompt = {"prompt": slow(5, steps=400, step_seconds=0.05), **where}
        task = asyncio.create_task(anna("POST", f"/gateway/run{query}", json=prompt))
        (made,) = await until(lambda before=before: anna.new_jobs(before), what="a job")  # type: ignore[misc]
        task.cancel()
        assert await asyncio.gather(task, return_exceptions=True)
        await until(lambda made=made: anna.was_given_up(made), what="499")  # type: ignore[misc]
        if where or query:
            await until(lambda made=made: anna.is_over(made), what="a cancelled job")  # type: ignore[misc]
            assert (await anna("GET", f"/gateway/run/{made}")).status == 409
        else:
            assert (await anna("GET", f"/api/v2/jobs/{made}")).body["status"] in ("queued", "running")
            await anna("POST", f"/api/jobs/{made}/cancel")
    # No backend hears of the field.
    sent = [await each.recorded(anna.lab.http) for each in anna.lab.servers if isinstance(each, Simulator)]
    assert "/prompt" in json.dumps(sent)
    assert "cancel_on_disconnect" not in json.dumps(sent)
    for body, query in (
        ({"prompt": slow(), "cancel_on_disconnect": 5}, ""),
        ({"prompt": slow()}, "?cancel_on_disconnect=x"),
    ):
        answer = await anna("POST", f"/gateway/run{query}", json=body)
        assert (answer.status, answer.body["error"]["type"]) == (400, "invalid_body")


async def test_errors_are_comfyuis_own(anna: Runner) -> None:
    missing = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}
    native = await anna("POST", "/prompt", json={"prompt": missing})
    answer = await anna.run({"prompt": missing}, headers=IMAGE)
    assert (answer.status, answer.body) == (native.status, native.body)
    assert answer.body["node_errors"]["1"]["errors"][0]["type"] == "required_input_missing"
    for body, type_ in (
        ("{no", "invalid_json"),
        ("[]", "invalid_body"),
        ('{"nodes": [], "links": []}', "workflow_not_exported"),
    ):
        answer = await anna("POST", "/gateway/run", data=body)
        assert (answer.status, answer.body["error"]["type"]) == (400, type_)
    failed = await anna.run({"prompt": failing("boom")}, headers=IMAGE)
    assert (failed.status, failed.body["status"]) == (422, "failed")
    error = failed.body["error"]
    assert (error["type"], error["details"]) == ("execution_error", "boom")
    assert error["extra_info"] == {"node_id": "3", "class_type": "FailNode", "fault": "caller"}
    assert (await anna("GET", failed.body["urls"]["self"])).status == 422


async def test_a_request_may_be_sent_again(anna: Runner) -> None:
    body = {"prompt": slow(6), "prompt_id": "11111111-1111-4111-8111-111111111111"}
    first, second = await asyncio.gather(anna.run(body), anna.run(body))
    assert first.body["prompt_id"] == second.body["prompt_id"] == body["prompt_id"]
    assert first.body["outputs"][0]["url"] == second.body["outputs"][0]["url"]
    key = {"Idempotency-Key": "run-1"}
    assert (await anna.run({"prompt": {}}, headers=key)).status == 400
    assert (await anna.run({"prompt": slow(7, steps=1)}, headers=key)).status == 200
    again = await anna.run({"prompt": slow(7, steps=1)}, headers=key)
    assert (again.status, again.body["error"]["type"]) == (422, "idempotency_key_reuse")
    # The Comfy API v2 has the same keys.
    v2 = V2Caller(anna.lab, anna.gateway, KEYS["anna"])
    assert (await v2("POST", "/jobs", json={"workflow": slow(8)}, headers=key)).status == 422


async def test_a_drained_fleet_keeps_the_job(anna: Runner) -> None:
    boss = anna.as_other(KEYS["boss"])
    for name in ("b1", "b2"):
        assert (await boss("POST", f"/gateway/backends/{name}/drain")).status == 200
    late = await anna.run({"prompt": slow(12, steps=1)}, headers={"Prefer": "wait=0"})
    assert (late.status, late.body["status"], late.body["queue_position"]) == (202, "queued", 1)
    waiting = asyncio.create_task(anna("GET", late.headers["Location"], headers=IMAGE))
    for name in ("b1", "b2"):
        assert (await boss("POST", f"/gateway/backends/{name}/resume")).status == 200
    assert (await waiting).raw.startswith(PNG)
