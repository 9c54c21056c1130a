"""Jobs of the Comfy API v2: their life, lists, keys, cancellation, and that another tenant sees nothing of it."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from io import BytesIO

import pytest
import pytest_asyncio

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.security_world import KEYS, caller
from tests.support.v2 import V2Caller, V2World, start_v2
from tests.support.workflows import failing, slow

pytestmark = pytest.mark.asyncio(loop_scope="module")
NOBODYS = "00000000-0000-4000-8000-000000000000"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(shared_lab: Lab) -> V2World:
    """One gateway for all tests that disturb nobody."""
    return await start_v2(shared_lab)


async def test_a_job_from_its_submission_to_its_bytes(world: V2World) -> None:
    anna, ben = world.anna, world.ben
    workflow = slow(steps=4, step_seconds=0.05)
    job = await anna.submit(workflow, metadata={"client": "acme"}, priority=5)
    seen = await anna.reaches(job["id"], "running", "succeeded")
    if seen["status"] == "running":
        assert seen["progress"]["nodes_total"] == 2
        assert seen["completed_at"] is None
    done = await anna.reaches(job["id"])
    assert (done["status"], done["metadata"], done["priority"]) == ("succeeded", {"client": "acme"}, 5)
    times = [datetime.fromisoformat(done[name]) for name in ("created_at", "started_at", "completed_at", "expires_at")]
    assert times == sorted(times)
    took = (times[2] - times[1]).total_seconds() * 1000
    assert abs(done["metrics"]["execution_ms"] - took) <= 1
    (output,) = done["outputs"]
    assert (output["node_id"], output["type"], output["content_type"]) == ("2", "image", "image/png")
    content = await anna.content(output)
    assert content.raw.startswith(b"\x89PNG")
    assert len(content.raw) == output["size_bytes"]
    asset = (await anna("GET", f"/assets/{output['id']}")).body
    assert (asset["job_id"], asset["size_bytes"], asset["url"]) == (job["id"], len(content.raw), output["url"])
    shown = (await anna("GET", f"/jobs/{job['id']}/workflow")).body
    assert shown == {"workflow": workflow, "format": "api"}
    # The same job on the native routes, and nothing of it for anybody else.
    native = caller(world.lab, world.gateway, "anna")
    entry = (await native.get(f"/history/{job['id']}"))[job["id"]]
    assert entry["prompt"][3]["metadata"] == {"client": "acme"}
    for path in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/workflow", f"/jobs/{job['id']}/events"):
        assert (await ben("GET", path)).status == 404
    assert (await ben("POST", f"/jobs/{job['id']}/cancel")).status == 404
    for path in (f"/assets/{output['id']}", f"/assets/{output['id']}/content"):
        assert (await ben("GET", path)).status == 404
    assert (await ben("GET", "/jobs")).body == {"jobs": [], "truncated": False}
    # An admin sees it.
    assert (await V2Caller(world.lab, world.gateway, KEYS["boss"]).job(job["id"]))["status"] == "succeeded"


async def test_a_native_job_is_the_same_job_here(world: V2World) -> None:
    native = caller(world.lab, world.gateway, "anna")
    prompt_id = await native.prompt(slow(7, steps=1), client_id="someone")
    assert (await world.anna.reaches(prompt_id))["status"] == "succeeded"
    assert (await world.anna("GET", f"/jobs/{prompt_id}/workflow")).body["workflow"] == slow(7, steps=1)


async def test_a_failed_job_tells_its_error(world: V2World) -> None:
    job = await world.anna.run(failing("boom"))
    assert (job["status"], job["outputs"]) == ("failed", [])
    error = job["error"]
    assert (error["code"], error["node_id"], error["class_type"]) == ("node_execution_error", "3", "FailNode")
    assert error["message"].strip() == "boom"
    assert error["traceback"] is None


async def test_texts_and_files_of_any_key_are_outputs(world: V2World) -> None:
    workflow = {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": 4711}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        "3": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 2, "color": 5}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "sub/many"}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    job = await world.anna.run(workflow)
    found = {(each["node_id"], each["type"]) for each in job["outputs"]}
    assert found == {("2", "text"), ("4", "image"), ("5", "image")}
    assert len(job["outputs"]) == 5
    assert len({each["id"] for each in job["outputs"]}) == 5
    for each in job["outputs"]:
        content = await world.anna.content(each)
        assert (content.status, len(content.raw)) == (200, each["size_bytes"])
    (text,) = [each for each in job["outputs"] if each["type"] == "text"]
    content = await world.anna.content(text, Range="bytes=1-2")
    assert (content.status, content.raw) == (206, b"71")
    assert content.headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_a_list_goes_from_page_to_page(world: V2World) -> None:
    ben = world.ben
    assert (await world.anna("GET", "/jobs?limit=100")).body["truncated"] is False
    ids = []
    for n in range(5):
        job = await ben.submit(slow(n, steps=1), metadata={"run": "a" if n % 2 else "b", "n": str(n)})
        ids.append(job["id"])
        await ben.reaches(job["id"])
    seen, cursor, pages = [], "", 0
    while True:
        page = (await ben("GET", f"/jobs?limit=2{cursor}")).body
        seen += [item["id"] for item in page["jobs"]]
        pages += 1
        if "next_cursor" not in page:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert (seen, pages) == (ids[::-1], 3)
    for item in page["jobs"]:
        assert item["create_time"] == item["created_at"]
        assert item["outputs"]
    labelled = (await ben("GET", "/jobs?metadata%5Brun%5D=a&metadata%5Bn%5D=3")).body["jobs"]
    assert [item["id"] for item in labelled] == [ids[3]]
    assert (await ben("GET", "/jobs?status=failed,queued")).body["jobs"] == []
    assert len((await ben("GET", "/jobs?status=succeeded")).body["jobs"]) == 5
    for query, code in (
        ("limit=0", "invalid_request"),
        ("limit=101", "invalid_request"),
        ("limit=x", "invalid_request"),
        ("limit=1_0", "invalid_request"),
        ("limit=%201", "invalid_request"),
        ("status=done", "invalid_request"),
        ("cursor=abc", "invalid_cursor"),
        ("metadata=a", "invalid_metadata_filter"),
        ("metadata[]=a", "invalid_metadata_filter"),
        ("&".join(f"metadata[k{n}]=a" for n in range(4)), "invalid_metadata_filter"),
    ):
        answer = await ben("GET", f"/jobs?{query}")
        assert (answer.status, answer.body["error"]["code"]) == (400, code), query


async def test_a_page_ends_where_its_jobs_have_many_outputs(world: V2World) -> None:
    mate = V2Caller(world.lab, world.gateway, KEYS["mate"])
    many = {"1": {"class_type": "TellNode", "inputs": {"ui": json.dumps({"text": ["x"] * 600})}}}
    ids = [(await mate.run(many))["id"] for _ in range(3)]
    first = (await mate("GET", "/jobs?limit=100")).body
    assert ([item["id"] for item in first["jobs"]], first["truncated"]) == (ids[:0:-1], True)
    last = (await mate("GET", f"/jobs?limit=100&cursor={first['next_cursor']}")).body
    assert ([item["id"] for item in last["jobs"]], last["truncated"]) == (ids[:1], False)
    assert len(last["jobs"][0]["outputs"]) == 600
    async with mate.stream(last["jobs"][0]) as stream:
        events = await stream.rest()
    assert [name for name, _ in events] == ["output"] * 600 + ["status"]


async def test_an_accepted_job_with_results_too_long_for_the_answer_is_accepted(world: V2World) -> None:
    inputs = {"pictures": 0, "picture_bytes": 0, "text_bytes": 0, "values": 200_000}
    body = {"workflow": {"1": {"class_type": "BulkNode", "inputs": inputs}}}
    answer = await world.anna("POST", "/jobs", json=body, headers={"Prefer": "wait=20"})
    assert (answer.status, answer.body["status"]) == (201, "queued")
    job = await world.anna("GET", f"/jobs/{answer.body['id']}")
    assert (job.status, job.body["error"]["code"]) == (503, "upstream_unreachable")


async def test_an_output_that_its_backend_lacks_is_unavailable(world: V2World) -> None:
    told = json.dumps({"images": [{"filename": "none.png", "subfolder": "", "type": "output"}]})
    job = await world.anna.run({"1": {"class_type": "TellNode", "inputs": {"ui": told}}})
    content = await world.anna.content(job["outputs"][0])
    assert (content.status, content.body["error"]["code"]) == (404, "output_unavailable")
    run = f"{world.gateway.url}/gateway/run/{job['id']}"
    async with world.lab.http.get(run, headers={**world.anna.headers, "Accept": "image/*"}) as result:
        assert (result.status, (await result.json())["error"]["type"]) == (404, "output_unavailable")


async def test_a_class_that_no_url_can_name_is_unknown(world: V2World) -> None:
    body = '{"workflow": {"1": {"class_type": "No\\ud800", "inputs": {}}}}'
    for _ in range(2):
        answer = await world.anna("POST", "/jobs", data=body)
        assert (answer.status, answer.body["error"]["code"]) == (422, "invalid_workflow")


async def test_refusals_in_their_order(world: V2World) -> None:
    anna, graph = world.anna, slow(steps=1)
    missing = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}
    for body, status, code in (
        ("{no json", 400, "invalid_request"),
        ("[1]", 400, "invalid_request"),
        ("null", 400, "invalid_request"),
        ('{"workflow": {1: 2}}', 400, "invalid_request"),
        ({"webhook_url": "https://a", "workflow": []}, 422, "invalid_workflow"),
        ({"workflow": graph, "inputs": {}}, 422, "invalid_workflow"),
        ({}, 422, "invalid_workflow"),
        ({"workflow": [], "metadata": 5}, 422, "invalid_workflow"),
        ({"workflow": {"nodes": [], "links": []}, "metadata": 5}, 422, "workflow_format_ui"),
        ({"workflow": graph, "metadata": "x" * 1025, "extra_data": {"a": 1}}, 422, "invalid_request"),
        ({"workflow": graph, "metadata": {"a b": "x"}}, 422, "metadata_invalid"),
        ({"workflow": graph, "metadata": {"a": "x\u202e"}}, 422, "metadata_invalid"),
        # Halves of characters, with which many JSON parsers read no page of jobs.
        ({"workflow": graph, "metadata": "x\ud800"}, 422, "invalid_request"),
        ({"workflow": graph, "metadata": {"a": "\udfffx"}}, 422, "metadata_invalid"),
        ({"workflow": graph, "metadata": {f"k{n}": "" for n in range(17)}}, 422, "metadata_invalid"),
        ({"workflow": graph, "priority": True}, 422, "invalid_request"),
        ({"workflow": graph, "priority": 1_000_001}, 422, "invalid_request"),
        ({"workflow": graph, "extra_data": {"auth_token_comfy_org": "x"}}, 400, "invalid_request"),
        ({"workflow": graph, "extra_data": {"api_key_comfy_org": 5}}, 400, "invalid_request"),
        ({"workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}, 422, "invalid_workflow"),
        ({"workflow": {}}, 422, "invalid_workflow"),
        ({"workflow": missing}, 422, "invalid_workflow"),
    ):
        data = body if isinstance(body, str) else json.dumps(body)
        answer = await anna("POST", "/jobs", data=data, headers={"Idempotency-Key": "free"})
        assert (answer.status, answer.body["error"]["code"]) == (status, code), (body, answer.body)
    details = answer.body["error"]["details"]
    assert details["node_errors"]["1"]["errors"][0]["type"] == "required_input_missing"
    # None of these made a job, so the key is free.
    await anna.submit(graph, headers={"Idempotency-Key": "free"}, webhook_url=None, unknown=1)


async def test_each_error_has_the_form(world: V2World) -> None:
    anna = world.anna
    for method, path, status, code in (
        ("GET", f"/jobs/{NOBODYS}", 404, "not_found"),
        ("GET", "/jobs/nope", 404, "not_found"),
        ("POST", "/jobs/nope/cancel", 404, "not_found"),
        ("GET", "/jobs/..%2f..%2fqueue", 404, "not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "", 404, "not_found"),
        ("PUT", "/jobs", 405, "method_not_allowed"),
        ("DELETE", f"/jobs/{NOBODYS}", 405, "method_not_allowed"),
        ("GET", "/assets/by-hash/blake3:00", 405, "method_not_allowed"),
        ("TRACE", "/jobs", 405, "method_not_allowed"),
        ("GET", "/assets/from-hash", 405, "method_not_allowed"),
        ("POST", "/assets/from-path", 405, "method_not_allowed"),
    ):
        answer = await anna(method, path)
        assert (answer.status, answer.body["error"]["code"]) == (status, code), path
        assert answer.headers["X-Comfy-Request-Id"] == answer.headers["X-Request-Id"]
    nobody = V2Caller(world.lab, world.gateway)
    for path in ("/jobs", "/nothing"):
        answer = await nobody("GET", path)
        assert (answer.status, answer.body["error"]["code"]) == (401, "unauthorized")
    foreign = await anna("POST", "/jobs", json={}, headers={"Origin": "http://evil.example"})
    assert (foreign.status, foreign.body["error"]["code"]) == (403, "forbidden_origin")
    big = json.dumps({"workflow": {"1": {"class_type": "x" * 13_000_000, "inputs": {}}}})
    answer = await anna("POST", "/jobs", data=BytesIO(big.encode()))
    assert (answer.status, answer.body["error"]["code"]) == (413, "payload_too_large")
    assert (await anna("GET", "/health")).body == {"status": "healthy"}
    assert set((await anna("GET", "/openapi.json")).body["paths"]) >= {"/api/v2/jobs", "/api/v2/assets"}
    # ComfyUI's own.
    async with world.lab.http.get(f"{world.gateway.url}/api/v2/userdata", headers=anna.headers) as own:
        assert (own.status, await own.json()) == (200, [])


async def test_a_long_graph(world: V2World) -> None:
    """Its body and its history entry are split and not parsed."""
    workflow = {
        **slow(41, steps=1),
        "9": {"class_type": "PrimitiveString", "inputs": {"value": "[{x" + "xyz" * 200_000}},
    }
    workflow["10"] = {"class_type": "PreviewAny", "inputs": {"source": ["9", 0]}}
    job = await world.anna.run(workflow, metadata={"n": "long"})
    assert job["status"] == "succeeded", job
    assert job["metadata"] == {"n": "long"}
    assert {(each["node_id"], each["type"]) for each in job["outputs"]} == {("2", "image"), ("10", "text")}
    assert (await world.anna("GET", f"/jobs/{job['id']}/workflow")).body["workflow"] == workflow


async def test_a_partners_key_is_kept_nowhere(world: V2World) -> None:
    job = await world.anna.submit(slow(steps=1), extra_data={"api_key_comfy_org": "hunter2-hunter2"})
    await world.anna.reaches(job["id"])
    for path in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/workflow", "/jobs"):
        assert b"hunter2" not in (await world.anna("GET", path)).raw
    assert "hunter2" not in world.gateway.log.read_text()
    assert not [each for each in world.gateway.data_dir.glob("gateway.sqlite3*") if b"hunter2" in each.read_bytes()]


async def test_a_key_is_used_once_by_each_tenant(world: V2World) -> None:
    headers = {"Idempotency-Key": "k" * 255}
    for caller_ in (world.anna, world.ben):
        await caller_.submit(slow(steps=1), headers=headers)
        for body in (slow(steps=1), slow(2, steps=2)):
            answer = await caller_("POST", "/jobs", json={"workflow": body}, headers=headers)
            assert (answer.status, answer.body["error"]["code"]) == (422, "idempotency_key_reuse")
    for key in ("", "k" * 256):
        answer = await world.anna("POST", "/jobs", json={"workflow": slow()}, headers={"Idempotency-Key": key})
        assert (answer.status, answer.body["error"]["code"]) == (400, "invalid_request")
    twice = [
        world.anna("POST", "/jobs", json={"workflow": slow(steps=1)}, headers={"Idempotency-Key": "race"})
        for _ in range(8)
    ]
    assert sorted(each.status for each in await asyncio.gather(*twice)) == [201, *[422] * 7]


async def test_an_answer_may_wait_for_the_end(world: V2World) -> None:
    body = {"workflow": slow(steps=2)}
    answer = await world.anna("POST", "/jobs", json=body, headers={"Prefer": "respond-async, wait=20"})
    assert (answer.status, answer.body["status"]) == (200, "succeeded")
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert len(answer.body["outputs"]) == 1
    long = {"workflow": slow(steps=100, step_seconds=0.1)}
    answer = await world.anna("POST", "/jobs", json=long, headers={"Prefer": "wait=0"})
    assert (answer.status, answer.body["status"]) == (201, "queued")
    assert answer.headers["Location"] == answer.body["urls"]["self"]
    await world.anna("POST", answer.body["urls"]["cancel"])
    await world.anna.reaches(answer.body["id"], "canceled")


async def test_outputs_come_while_the_job_runs(world: V2World) -> None:
    workflow = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 77}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "early"}},
        "3": {"class_type": "SlowSampler", "inputs": {"steps": 400, "step_seconds": 0.1, "seed": 5, "width": 8,
                                                      "height": 8}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "late"}},
    }  # fmt: skip
    job = await world.anna.submit(workflow)

    async def early() -> object:
        seen = await world.anna.job(job["id"])
        return seen["outputs"]

    (output,) = await until(early)
    assert output["size_bytes"] == len((await world.anna.content(output)).raw)
    await world.anna("POST", job["urls"]["cancel"])
    await world.anna.reaches(job["id"], "canceled")


async def test_comfy_clients_see_v2_jobs_in_their_queue(world: V2World) -> None:
    job = await world.anna.submit(slow(steps=100, step_seconds=0.1))
    native: Comfy = caller(world.lab, world.gateway, "anna")

    async def is_running() -> bool:
        return [item[1] for item in (await native.get("/queue"))["queue_running"]] == [job["id"]]

    await until(is_running)
    assert (await native.get(f"/api/jobs/{job['id']}"))["status"] == "in_progress"
    await native.post("/interrupt", {"prompt_id": job["id"]})
    assert (await world.anna.reaches(job["id"]))["status"] == "canceled"
