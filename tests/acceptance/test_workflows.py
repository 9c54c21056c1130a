"""Named workflows: stored once, run with their parameters alone, each tenant's own."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import pytest_asyncio

from gateway.workflows.model import RESERVED
from gateway.workflows.reading import FIELDS
from tests.support.keys_api import audit
from tests.support.lab import Lab
from tests.support.runs import Runner
from tests.support.security_world import KEYS, start
from tests.support.v2 import V2Caller
from tests.support.workflows import slow, text_to_image

pytestmark = pytest.mark.asyncio(loop_scope="module")
PNG = b"\x89PNG"
IMAGE = {"Accept": "image/*"}
PATH = "/gateway/workflows"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def anna(shared_lab: Lab) -> Runner:
    """The first caller of one gateway for all tests that disturb nobody."""
    gateway = await start(shared_lab, await shared_lab.simulator(), workflows__max_count=3, workflows__max_size="20KB")
    return Runner(shared_lab, gateway, KEYS["anna"])


async def graph_of(anna: Runner, prompt_id: str) -> Any:
    """The graph that ran."""
    return (await anna("GET", f"/history/{prompt_id}")).body[prompt_id]["prompt"][2]


async def test_a_text_in_the_picture_out(anna: Runner) -> None:
    made = await anna("PUT", f"{PATH}/portrait", data=json.dumps(text_to_image()))
    assert made.status == 201, made.raw
    names = ["prompt", "negative", "seed", "steps", "width", "height", "batch_size"]
    assert list(made.body["parameters"]) == names
    assert made.body["parameters"]["prompt"] == {"targets": [{"node": "2", "input": "text"}], "type": "string"}
    seed = made.body["parameters"]["seed"]
    assert (seed["random"], seed["minimum"], seed["maximum"]) == (True, 0, 2**64 - 1)
    picture = await anna("POST", f"{PATH}/portrait/run", json={"prompt": "a cat"}, headers=IMAGE)
    assert picture.raw.startswith(PNG), picture.raw[:500]
    graph = await graph_of(anna, picture.headers["X-Gateway-Prompt-Id"])
    assert graph["2"]["inputs"]["text"] == "a cat"
    assert (graph["3"]["inputs"]["text"], graph["6"]["inputs"]["steps"]) == ("", 4)

    given = {
        "prompt": "a dog",
        "negative": "cats",
        "seed": 5,
        "steps": 2.0,
        "width": 64,
        "height": 128,
        "batch_size": 2,
    }
    shown = await anna("POST", f"{PATH}/portrait/run", json={**given, "extra_data": {"metadata": {"a": "b"}}})
    assert (shown.status, shown.body["parameters"]) == (200, {**given, "steps": 2})
    assert len(shown.body["outputs"]) == 2
    expected = text_to_image(seed=5, steps=2)
    expected["2"]["inputs"]["text"], expected["3"]["inputs"]["text"] = "a dog", "cats"
    expected["4"]["inputs"] = {"width": 64, "height": 128, "batch_size": 2}
    assert await graph_of(anna, shown.body["prompt_id"]) == expected
    # Without a seed each run has its own, and the answer tells it.
    seeds = set()
    for _ in range(2):
        queued = await anna("POST", f"{PATH}/portrait/jobs", json={"width": 64, "height": 64, "steps": 1})
        assert queued.status == 202
        seeds.add(queued.body["parameters"]["seed"])
        assert (await anna("GET", queued.headers["Location"], headers=IMAGE)).raw.startswith(PNG)
    assert len(seeds) == 2


async def test_parameters_of_an_owner_and_their_schema(anna: Runner) -> None:
    graph = slow(1, steps=1)
    graph["1"]["_meta"] = {"title": "Sampler"}
    parameters = {
        "steps": {"node": 1, "input": "steps", "minimum": 1, "maximum": 3},
        "colour": {"title": "Sampler", "input": "seed", "type": "integer", "required": True, "description": "a number"},
        "width": {"class_type": "SlowSampler", "input": "width", "type": "choice", "choices": [64, 128]},
        "name": {"node": "2", "input": "filename_prefix", "max_length": 8},
    }
    body = {"graph": graph, "parameters": parameters, "description": "a test"}
    assert (await anna("PUT", f"{PATH}/own", json=body)).status == 201
    shown = (await anna("GET", f"{PATH}/own")).body
    assert (shown["graph"], shown["description"]) == (graph, "a test")
    schema = shown["schema"]
    assert schema["required"] == ["colour"]
    assert schema["properties"]["steps"] == {"type": "integer", "minimum": 1, "maximum": 3, "default": 1}
    check = jsonschema_rs.validator_for(schema)
    for values, wrong in (
        ({"colour": 3}, []),
        ({"colour": 3, "steps": 3, "width": 128, "name": "x"}, []),
        ({}, ["colour"]),
        ({"colour": "red", "steps": 0, "width": 65}, ["colour", "steps", "width"]),
        ({"colour": 1, "name": "x" * 9, "other": 1}, ["name", "other"]),
        ({"colour": True, "steps": 1.5}, ["colour", "steps"]),
    ):
        answer = await anna("POST", f"{PATH}/own/run", json=values)
        assert check.is_valid(values) is (not wrong), values
        assert answer.status == (400 if wrong else 200), answer.body
        if wrong:
            error = answer.body["error"]
            assert (error["type"], sorted(error["extra_info"]["parameters"])) == ("invalid_parameters", wrong)
    told = (await anna("POST", f"{PATH}/own/run", json={"colour": 3, "steps": 9})).body["error"]
    assert told["details"] == "'steps': 9 was given; allowed: an integer from 1 to 3"
    assert told["extra_info"]["parameters"] == {"steps": {"given": "9", "allowed": "an integer from 1 to 3"}}
    # The same of a backend's refusal.
    parameters["steps"] = {"node": "1", "input": "steps", "type": "integer", "maximum": 10**9}
    assert (await anna("PUT", f"{PATH}/own", json={**body, "parameters": parameters})).status == 200
    refused = await anna("POST", f"{PATH}/own/run", json={"colour": 3, "steps": 10**8})
    assert refused.status == 400
    (error,) = refused.body["node_errors"]["1"]["errors"]
    assert (error["extra_info"]["input_name"], error["extra_info"]["parameter"]) == ("steps", "steps")


async def test_what_can_not_be_stored(anna: Runner) -> None:
    graph = slow()
    for parameters, said in (
        ({"x y": {"node": "1", "input": "seed"}}, "'parameters.x y'"),
        ({"extra_data": {"node": "1", "input": "seed"}}, "none of prompt_id"),
        ({"a": {"node": "9", "input": "seed"}}, "'parameters.a.node': \"9\" was given; allowed: one of 1, 2"),
        ({"a": {"node": "1", "input": "sed"}}, "an input of node 1: steps, step_seconds"),
        ({"a": {"title": "x", "node": "1", "input": "seed"}}, "one of node, title, class_type"),
        (
            {"a": {"node": "1", "input": "seed", "type": "int"}},
            "one of string, integer, number, boolean, choice, image",
        ),
        (
            {"a": {"node": "1", "input": "seed", "default": "x"}},
            "'parameters.a.default': \"x\" was given; allowed: an integer",
        ),
        ({"a": {"node": "1", "input": "seed", "minimum": 5, "maximum": 4}}, "at most the maximum, 4"),
        ({"a": {"node": "1", "input": "seed", "minimum": 10**400}}, "a number"),
        ({"a": {"node": "2", "input": "filename_prefix", "random": True}}, "no integer"),
        ([1], "an object with at most 100 parameters"),
    ):
        answer = await anna("PUT", f"{PATH}/bad", json={"graph": graph, "parameters": parameters})
        assert (answer.status, answer.body["error"]["type"]) == (400, "invalid_parameters"), answer.body
        assert said in answer.body["error"]["details"], answer.body
    for body, type_ in (
        ("{no", "invalid_json"),
        ("[]", "invalid_workflow"),
        ("{}", "invalid_workflow"),
        ('{"graph": {}}', "invalid_workflow"),
        ('{"graph": {"1": {"class_type": "A"}}, "parameter": {}}', "invalid_workflow"),
        ('{"graph": {"1": {"class_type": "A"}}, "description": "\\ud800"}', "invalid_workflow"),
        ('{"graph": {"1": 5}}', "invalid_prompt"),
        ('{"nodes": [], "links": []}', "workflow_not_exported"),
        ('{"graph": {"nodes": [], "links": []}}', "workflow_not_exported"),
    ):
        answer = await anna("PUT", f"{PATH}/bad", data=body)
        assert (answer.status, answer.body["error"]["type"]) == (400, type_), (body, answer.body)
    for name in ("-x", "x" * 65, "a%20b", "%C3%A4"):
        assert (await anna("PUT", f"{PATH}/{name}", json=graph)).status == 400, name
    large = await anna("PUT", f"{PATH}/bad", json={"graph": graph, "description": "x" * 20_000})
    assert (large.status, large.body["error"]["extra_info"]["limit"]) == (413, "max_size")
    assert (await anna("GET", f"{PATH}/bad")).status == 404
    assert (await anna("POST", f"{PATH}/bad/run")).status == 404
    names = [each["name"] for each in (await anna("GET", PATH)).body["workflows"]]
    for n in range(3 - len(names)):
        assert (await anna("PUT", f"{PATH}/n{n}", json=graph)).status == 201
    full = await anna("PUT", f"{PATH}/more", json=graph)
    assert (full.status, full.body["error"]["type"]) == (409, "too_many_workflows")
    assert (await anna("PUT", f"{PATH}/n0" if len(names) < 3 else f"{PATH}/{names[0]}", json=graph)).status == 200


async def test_another_tenant_sees_nothing_and_an_admin_may_clean_up(anna: Runner) -> None:
    ben, boss = anna.as_other(KEYS["ben"]), anna.as_other(KEYS["boss"])
    assert (await ben("PUT", f"{PATH}/mine", json=slow(steps=1))).status == 201
    assert [each["name"] for each in (await ben("GET", PATH)).body["workflows"]] == ["mine"]
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/run"), ("POST", "/jobs")):
        answer = await anna(method, f"{PATH}/mine{path}")
        assert (answer.status, answer.body["error"]["type"]) == (404, "unknown_workflow")
    assert "mine" not in str((await anna("GET", PATH)).body)
    assert (await anna("GET", f"{PATH}?tenant=ben")).body == (await anna("GET", PATH)).body
    assert (await boss("GET", PATH)).body == {"workflows": []}
    assert (await boss("GET", f"{PATH}/mine?tenant=ben")).body["name"] == "mine"
    assert (await boss("DELETE", f"{PATH}/mine?tenant=ben")).status == 204
    assert (await ben("GET", f"{PATH}/mine")).status == 404
    for action, who in (("workflow_stored", "ben"), ("workflow_deleted", "boss")):
        (line,) = [line for line in audit(anna.gateway, action) if line["what"] == "mine"]
        assert line["who"] == who
    assert line["whose"] == "ben"


async def test_images_are_uploads_or_assets(anna: Runner) -> None:
    ben = anna.as_other(KEYS["ben"])
    v2 = V2Caller(anna.lab, anna.gateway, KEYS["ben"])
    picture = (await ben.run({"prompt": slow(77, steps=1)}, headers=IMAGE)).raw
    asset = (await v2.upload(picture, "photo.png")).body
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    made = (await ben("PUT", f"{PATH}/edit", json=graph)).body
    assert made["parameters"] == {"image": {"targets": [{"node": "1", "input": "image"}], "type": "image"}}
    output = (await ben.run({"prompt": slow(78, steps=1)})).body["outputs"][0]
    for value in ("photo.png", {"id": asset["id"]}, {"id": output["id"]}):
        answer = await ben("POST", f"{PATH}/edit/run", json={"image": value})
        assert (answer.status, answer.body["status"]) == (200, "succeeded"), answer.body
    for value, given in (({"id": "asset_nope"}, '"asset_nope"'), (5, "5"), ("", '""')):
        answer = await ben("POST", f"{PATH}/edit/run", json={"image": value})
        assert answer.status == 400
        assert answer.body["error"]["extra_info"]["parameters"]["image"]["given"] == given
    missing = await ben("POST", f"{PATH}/edit/run", json={"image": "nope.png"})
    assert missing.status == 400
    assert missing.body["node_errors"]["1"]["errors"][0]["extra_info"]["parameter"] == "image"


async def test_the_commands_and_the_fields_of_the_document(anna: Runner, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "running.md").read_text()
    (tmp_path / "workflow_api.json").write_text(json.dumps(text_to_image(steps=1)))
    environment = {"KEY": KEYS["mate"], "URL": anna.gateway.url, "PATH": os.environ["PATH"]}
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block, wanted in zip(blocks, (b'"status":"succeeded"', b'"name": "portrait"'), strict=True):
        process = await asyncio.create_subprocess_exec("bash", "-ec", block, cwd=tmp_path, env=environment, stdout=-1)
        said, _ = await process.communicate()
        assert process.returncode == 0
        assert wanted in said
        assert (tmp_path / "cat.png").read_bytes().startswith(PNG)
        (tmp_path / "cat.png").unlink()
    (example,) = re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert {field for each in json.loads(example)["parameters"].values() for field in each} <= set(FIELDS)
    assert all(f"`{name}`" in text for name in (*FIELDS, *RESERVED))
