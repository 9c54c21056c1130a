"""Recorded HTTP exchanges: status, headers that matter, and bodies."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp
import pytest
from PIL import Image

from tests.conformance.replay import exchange, expected_body, normal, recording
from tests.conformance.target import Target
from tests.support.lab import Lab, until

PROMPT_ERRORS = recording("prompt_errors.json")
MISC = [e for e in recording("misc_gets.json") if not e["request"]["path"].startswith(("/history?", "/api/jobs?limit"))]
# Their content is a matter of the installation: only the kind of answer is compared.
_INSTALLATION = (
    "/system_stats",
    "/features",
    "/experiment/models",
    "/node_replacements",
    "/embeddings",
    "/models/checkpoints",
    "/users",
    "/settings",
    "/userdata",
    "/internal/logs",
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def _name(recorded: dict[str, Any]) -> str:
    body = recorded["request"].get("json")
    return f"{recorded['request']['method']} {recorded['request']['path']} {str(body)[:60]}"


@pytest.mark.parametrize("recorded", PROMPT_ERRORS, ids=lambda r: f"{PROMPT_ERRORS.index(r)}")
async def test_prompt_errors(target: Target, lab: Lab, recorded: dict[str, Any]) -> None:
    status, body, headers = await exchange(lab.http, target.url, recorded["request"])
    if recorded["status"] == 500 and target.kind == "gateway":
        # ComfyUI answers these with a bare 500; the gateway says what is wrong.
        assert status == 400
        assert body["error"]["type"].startswith("invalid_")
        return
    assert status == recorded["status"], body
    assert normal(body) == normal(expected_body(recorded["body"]))
    assert headers["Content-Type"] == recorded["headers"]["Content-Type"]


@pytest.mark.parametrize("recorded", MISC, ids=lambda r: str(r["request"]["path"]))
async def test_gets(target: Target, lab: Lab, recorded: dict[str, Any]) -> None:
    path = recorded["request"]["path"]
    status, body, headers = await exchange(lab.http, target.url, recorded["request"])
    if path.startswith("/userdata") and status == 200:
        return
    assert status == recorded["status"], body
    wanted = expected_body(recorded["body"])
    if target.kind == "gateway" and status >= 400 and wanted == {"_bytes": 0}:
        # A ComfyUI leaves it at the status; the gateway says what is wrong.
        assert body["error"]["message"]
        return
    assert headers.get("Content-Type") == recorded["headers"].get("Content-Type")
    if wanted == "(elided)":
        return
    if path.startswith(_INSTALLATION):
        assert type(body) is type(wanted)
        if path == "/system_stats":
            assert body["system"].keys() == wanted["system"].keys()
            assert body["devices"][0].keys() == wanted["devices"][0].keys()
        return
    assert normal(body) == normal(wanted)


async def test_queue_lifecycle(target: Target, lab: Lab) -> None:
    """Three prompts, one deleted, the rest cleared, the running one interrupted: each answer as recorded."""
    await exchange(lab.http, target.url, {"method": "POST", "path": "/history", "json": {"clear": True}})
    if target.simulator is not None:
        # The prompt that is to be interrupted must not end before.
        await target.simulator.fault(lab.http, "silent")
    ids: dict[str, str] = {}
    steps = recording("queue_lifecycle.json")
    for place, recorded in enumerate(steps):
        request = _with_ids(recorded["request"], ids)
        if place == 3:
            await _until_running(lab, target, ids[steps[0]["body"]["prompt_id"]])
        if place == len(steps) - 1:
            await _until_empty(lab, target)
        status, body, headers = await exchange(lab.http, target.url, request)
        assert status == recorded["status"], (request, body)
        if "prompt_id" in (recorded["body"] or {}):
            ids[recorded["body"]["prompt_id"]] = body["prompt_id"]
        wanted = expected_body(recorded["body"])
        for value in (body, wanted):
            # Created within one millisecond, they come in any order.
            value.get("jobs", []).sort(key=lambda job: job["status"])
        assert normal(body) == normal(wanted), request
        if "_bytes" in recorded["body"]:
            assert headers["Content-Length"] == "0"
    if target.simulator is not None:
        await target.simulator.no_faults(lab.http)


def _with_ids(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _with_ids(item, ids) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_ids(item, ids) for item in value]
    return ids.get(value, value) if isinstance(value, str) else value


async def _until_running(lab: Lab, target: Target, prompt_id: str) -> None:
    async def look() -> bool:
        _, body, _ = await exchange(lab.http, target.url, {"method": "GET", "path": "/queue"})
        return [item[1] for item in body["queue_running"]] == [prompt_id]

    await until(look)


async def _until_empty(lab: Lab, target: Target) -> None:
    async def look() -> bool:
        _, body, _ = await exchange(lab.http, target.url, {"method": "GET", "path": "/prompt"})
        return bool(body["exec_info"]["queue_remaining"] == 0)

    await until(look)


def _png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


async def _upload(http: aiohttp.ClientSession, url: str, data: bytes, name: str, **fields: str) -> tuple[int, Any]:
    form = aiohttp.FormData()
    form.add_field("image", data, filename=name, content_type="image/png")
    for key, value in fields.items():
        form.add_field(key, value)
    path = "/upload/mask" if "original_ref" in fields else "/upload/image"
    async with http.post(url + path, data=form) as answer:
        return answer.status, await answer.json() if answer.status == 200 else None


async def test_uploads(target: Target, lab: Lab) -> None:
    """As recorded: new, same again, other bytes, overwrite, subfolder, temp, traversal, mask."""
    red, blue = _png((255, 0, 0)), _png((0, 0, 255))
    name = f"conformance-{id(lab)}.png"
    other = name.replace(".png", " (1).png")
    plain = {"name": name, "subfolder": "", "type": "input"}
    assert await _upload(lab.http, target.url, red, name) == (200, plain)
    assert await _upload(lab.http, target.url, red, name) == (200, plain)
    assert await _upload(lab.http, target.url, blue, name) == (200, {**plain, "name": other})
    assert await _upload(lab.http, target.url, blue, name, overwrite="true") == (200, plain)
    assert await _upload(lab.http, target.url, red, name, subfolder="s/t") == (200, {**plain, "subfolder": "s/t"})
    assert await _upload(lab.http, target.url, red, name, type="temp") == (200, {**plain, "type": "temp"})
    assert (await _upload(lab.http, target.url, red, name, subfolder="../..", overwrite="1"))[0] == 400
    reference = f'{{"filename": "{name}", "type": "input", "subfolder": ""}}'
    mask = await _upload(lab.http, target.url, _png((0, 0, 0)), f"mask-{name}", original_ref=reference)
    assert mask == (200, {**plain, "name": f"mask-{name}"})
    async with lab.http.get(f"{target.url}/view?filename={name}&type=input") as answer:
        assert answer.status == 200
        assert await answer.read() == blue
    async with lab.http.get(f"{target.url}/view?filename={name}&type=input&subfolder=s/t") as answer:
        assert await answer.read() == red


async def test_view(target: Target, lab: Lab) -> None:
    data = _png((10, 200, 30))
    name = f"view-{id(lab)}.png"
    await _upload(lab.http, target.url, data, name, overwrite="true")
    recorded = {e["request"]["path"]: e for e in recording("upload_and_view.json") if e["request"]["method"] == "GET"}
    for path, wanted in recorded.items():
        ranged = wanted["status"] == 206
        headers = {"Range": "bytes=0-9"} if ranged else {}
        url = target.url + path.replace("subfolder=s/t", "subfolder=").replace("pic.png", name)
        async with lab.http.get(url, headers=headers) as answer:
            body = await answer.read()
            assert answer.status == wanted["status"], path
            is_told = target.kind == "gateway" and wanted["status"] >= 400
            assert not is_told or json.loads(body)["error"]["message"], path
            for header in () if is_told else ("Content-Type", "Accept-Ranges"):
                assert answer.headers.get(header) == wanted["headers"].get(header), (path, header)
            if wanted["status"] in (200, 206):
                # A ComfyUI says it of some files; the gateway, at whose origin browsers send keys, of all.
                sniffed = "nosniff" if target.kind == "gateway" else wanted["headers"].get("X-Content-Type-Options")
                assert answer.headers.get("X-Content-Type-Options") == sniffed, path
                assert answer.headers["Content-Disposition"] == f'filename="{name}"'
                assert ("ETag" in answer.headers) == ("Etag" in wanted["headers"])
            if ranged:
                assert body == data[:10]
                assert answer.headers["Content-Range"] == f"bytes 0-9/{len(data)}"
    async with lab.http.get(f"{target.url}/view?filename={name}&type=input") as answer:
        etag = answer.headers["ETag"]
    url = f"{target.url}/view?filename={name}&type=input"
    async with lab.http.get(url, headers={"If-None-Match": etag}) as answer:
        assert answer.status == 304
