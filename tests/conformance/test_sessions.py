"""Recorded WebSocket sessions: every event, in its order."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from typing import Any

import aiohttp
import pytest

from tests.conformance.replay import exchange, normal, recording
from tests.conformance.target import Target
from tests.support.lab import Lab, until

NAMES = [
    "ws_success_with_preview_metadata",
    "ws_success_legacy_preview",
    "ws_execution_error",
    "ws_interrupted",
    "ws_cancel_via_jobs_api",
    "ws_prompt_with_own_prompt_id_front_and_extra_data",
    "ws_second_run_cached",
    "ws_partly_cached_new_output_node",
    "ws_no_client_id_on_prompt",
]
_STOPPERS = ("/interrupt", "/cancel")
pytestmark = pytest.mark.asyncio(loop_scope="module")


def _told(entry: dict[str, Any]) -> Any:
    """A recorded message, in the form that `_heard` gives."""
    return normal(entry["json"]) if "json" in entry else f"binary {entry['binary_event_type']}"


def _heard(message: aiohttp.WSMessage) -> Any:
    if message.type is aiohttp.WSMsgType.BINARY:
        return f"binary {struct.unpack('>I', message.data[:4])[0]}"
    value = json.loads(message.data)
    if value["type"] == "feature_flags":
        value["data"] = {"supports_preview_metadata": value["data"]["supports_preview_metadata"]}
    return normal(value)


def _wanted(log: list[dict[str, Any]], target: Target) -> list[Any]:
    told = [_told(entry) for entry in log if entry["dir"] == "server->client"]
    for message in told:
        if isinstance(message, dict) and message["type"] == "feature_flags":
            message["data"] = {"supports_preview_metadata": True}
    return told


async def _run_before(lab: Lab, target: Target, prompt: dict[str, Any]) -> None:
    """What was recorded "from cache" needs a run before it."""
    body = {"prompt": prompt}
    _, answer, _ = await exchange(lab.http, target.url, {"method": "POST", "path": "/prompt", "json": body})

    async def look() -> Any:
        path = f"/history/{answer['prompt_id']}"
        return (await exchange(lab.http, target.url, {"method": "GET", "path": path}))[1]

    await until(look)


def _fresh(value: Any, ids: dict[str, str]) -> Any:
    """A recorded request with ids of its own."""
    if isinstance(value, dict):
        return {key: _fresh(item, ids) for key, item in value.items()}
    if isinstance(value, list):
        return [_fresh(item, ids) for item in value]
    if isinstance(value, str):
        for old, new in ids.items():
            value = value.replace(old, new)
    return value


@pytest.mark.parametrize("name", NAMES)
async def test_session(target: Target, lab: Lab, name: str) -> None:
    record = recording(f"{name}.json")
    log = record["log"]
    exchanges = [entry["exchange"] for entry in log if entry["dir"] == "http"]
    flags = [entry["json"] for entry in log if entry["dir"] == "client->server"]
    wanted = _wanted(log, target)
    seed = uuid.uuid4().int % 2**31
    ids = {record["client_id"]: str(uuid.uuid4()), exchanges[0]["body"]["prompt_id"]: str(uuid.uuid4())}
    post = json.loads(json.dumps(_fresh(exchanges[0]["request"], ids)))
    _set_seed(post["json"]["prompt"], seed)
    if "cached" in name:
        before = json.loads(json.dumps(post["json"]["prompt"]))
        if name.startswith("ws_partly"):
            before.pop("3")
            before["2"]["inputs"]["images"] = ["1", 0]
        await _run_before(lab, target, before)
    if target.kind == "gateway" and name == "ws_no_client_id_on_prompt":
        # Where ComfyUI tells everybody, the gateway tells nobody.
        wanted = [m for m in wanted if isinstance(m, dict) and m["type"] in ("status", "feature_flags")]
    async with lab.http.ws_connect(f"{target.url}/ws?clientId={ids[record['client_id']]}", max_msg_size=0) as socket:
        for message in flags:
            await socket.send_json(message)
        heard = [_heard(await socket.receive(20)) for _ in range(1 + len(flags))]
        stoppers = [e for e in exchanges[1:] if e["request"]["path"].endswith(_STOPPERS)]
        progress = sum(_type(m) == "progress" for m in wanted)
        if stoppers and target.simulator is not None:
            # Take no step after the last that was recorded, because the stop may come late.
            await target.simulator.fault(lab.http, f"silent:{progress}")
        status, answer, _ = await exchange(lab.http, target.url, post)
        assert status == 200, answer
        ids[exchanges[0]["body"]["prompt_id"]] = answer["prompt_id"]
        assert normal(answer) == normal(exchanges[0]["body"])
        while len(heard) < len(wanted):
            heard.append(_heard(await socket.receive(20)))
            if stoppers and sum(_type(m) == "progress" for m in heard) == progress:
                await _play(lab, target, stoppers.pop(0), ids)
        assert _comparable(heard) == _comparable(wanted)
        with pytest.raises(asyncio.TimeoutError):
            await socket.receive(0.2)
    if target.simulator is not None:
        await target.simulator.no_faults(lab.http)
    for recorded in exchanges[1:]:
        if recorded["request"]["path"].startswith(("/history/", "/api/jobs/")) and "cancel" not in str(recorded):
            await _play(lab, target, recorded, ids, seed)


def _comparable(messages: list[Any]) -> list[Any]:
    """A ``status`` may come before or after its neighbour: that it comes is compared, not where."""
    return [m for m in messages if _type(m) != "status"] + [m for m in messages if _type(m) == "status"]


def _type(message: Any) -> str:
    return str(message["type"]) if isinstance(message, dict) else str(message)


def _set_seed(prompt: dict[str, Any], seed: int) -> None:
    for node in prompt.values():
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] = seed


async def _play(
    lab: Lab, target: Target, recorded: dict[str, Any], ids: dict[str, str], seed: int | None = None
) -> None:
    wanted = json.loads(json.dumps(recorded["body"]))
    status, body, _ = await exchange(lab.http, target.url, _fresh(recorded["request"], ids))
    assert status == recorded["status"]
    if seed is None:
        return
    for value in (wanted, body):
        _drop_seed(value)
    assert normal(body) == normal(wanted)


def _drop_seed(value: Any) -> None:
    if isinstance(value, dict):
        value.pop("seed", None)
        for item in value.values():
            _drop_seed(item)
    elif isinstance(value, list):
        for item in value:
            _drop_seed(item)
