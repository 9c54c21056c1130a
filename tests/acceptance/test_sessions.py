"""What WebSockets are told, by which prompt, in which order."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

import pytest

from tests.support.comfy_client import Comfy, Listener
from tests.support.lab import Lab, until
from tests.support.workflows import failing, slow

LIFE = {"execution_start", "execution_cached", "executing", "executed", "execution_success"}


def prompt_ids(listener: Listener) -> list[str]:
    """The prompts that were told of, in order, each once per stretch."""
    found: list[str] = []
    for event in listener.heard:
        prompt_id = event["data"].get("prompt_id")
        if prompt_id and (not found or found[-1] != prompt_id):
            found.append(prompt_id)
    return found


async def test_two_clients_hear_only_their_own_one_prompt_at_a_time(lab: Lab) -> None:
    """Six prompts run in parallel on three backends; each client is told of its three, one after the other."""
    gateway = await lab.gateway(*await lab.simulators(3))
    comfy = Comfy(lab.http, gateway.url)
    listeners = {name: await comfy.listen(name) for name in ("anna", "ben")}
    ids: dict[str, list[str]] = {"anna": [], "ben": []}
    for n in range(3):
        for name in listeners:
            ids[name].append(await comfy.prompt(slow(n, steps=6), name))
    for name, listener in listeners.items():
        ends: set[str] = set()
        while len(ends) < 3:
            event = await listener.receive()
            if event["type"] == "executing" and event["data"]["node"] is None:
                ends.add(event["data"]["prompt_id"])
                assert event["data"]["prompt_id"] in await comfy.get("/history")
        told = prompt_ids(listener)
        assert sorted(told) == sorted(ids[name])
        for prompt_id in told:
            types = listener.of(prompt_id)
            assert types[0] == "execution_start"
            assert types[-2:] == ["execution_success", "executing"]
            assert set(types) >= LIFE
        remaining = [
            e["data"]["status"]["exec_info"]["queue_remaining"] for e in listener.heard if e["type"] == "status"
        ]
        assert max(remaining) <= 6


async def test_interleaved_when_the_client_can_tell(lab: Lab) -> None:
    """A client that declared supports_preview_metadata, or asked for it, hears of parallel prompts as they happen."""
    gateway = await lab.gateway(*await lab.simulators(2))
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c", flags={"supports_preview_metadata": True})
    asked = await comfy.listen("c", "&events=interleave")
    ids = [await comfy.prompt(slow(n, steps=20), "c") for n in range(2)]
    for one in (listener, asked):
        ends = 0
        while ends < 2:
            event = await one.receive()
            ends += event["type"] == "executing" and event["data"]["node"] is None
        assert len(prompt_ids(one)) > 2
        assert set(prompt_ids(one)) == set(ids)
    assert {e["type"] for e in listener.heard if e["type"].startswith("binary")} == {"binary 4"}
    assert {e["type"] for e in asked.heard if e["type"].startswith("binary")} == {"binary 1"}


async def test_previews_are_converted_for_a_client_that_does_not_know_type_4(lab: Lab) -> None:
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    old = await comfy.listen("c")
    new = await comfy.listen("c", flags={"supports_preview_metadata": True})
    prompt_id = await comfy.prompt(slow(), "c")
    await old.end_of(prompt_id)
    await new.end_of(prompt_id)
    (first, *_) = [e["raw"] for e in old.heard if e["type"] == "binary 1"]
    assert struct.unpack(">II", first[:8]) == (1, 1)
    assert first[8:10] == b"\xff\xd8"
    (raw, *_) = [e["raw"] for e in new.heard if e["type"] == "binary 4"]
    length = struct.unpack(">I", raw[4:8])[0]
    assert json.loads(raw[8 : 8 + length])["prompt_id"] == prompt_id
    assert raw[8 + length :] == first[8:]


async def test_two_sockets_with_one_client_id_both_hear(lab: Lab) -> None:
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    sockets = [await comfy.listen("same") for _ in range(2)]
    prompt_id = await comfy.prompt(slow(), "same")
    for listener in sockets:
        await listener.end_of(prompt_id)
        assert set(listener.of(prompt_id)) >= LIFE


async def test_a_late_socket_is_told_where_its_job_is(lab: Lab) -> None:
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    early = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(steps=60), "c")
    await early.next("progress")
    late = await comfy.listen("c")
    assert late.heard[0]["data"]["sid"] == "c"
    assert late.heard[0]["data"]["status"]["exec_info"]["queue_remaining"] == 1
    assert (await late.receive())["data"] == {"node": "1", "display_node": "1", "prompt_id": prompt_id}
    state = await late.receive()
    assert state["type"] == "progress_state"
    assert state["data"]["nodes"]["1"]["state"] == "running"
    await late.end_of(prompt_id)


async def test_a_prompt_without_client_id_reaches_nobody(lab: Lab) -> None:
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow())
    await comfy.entry(prompt_id)
    mine = await comfy.prompt(slow(2), "c")
    await listener.end_of(mine)
    assert listener.of(prompt_id) == []


async def test_status_is_zero_only_when_the_history_can_be_read(lab: Lab) -> None:
    """What comfy-api-simplified relies on: at the first queue_remaining 0 it reads /history."""
    gateway = await lab.gateway(*await lab.simulators(2))
    comfy = Comfy(lab.http, gateway.url)
    for seed in range(5):
        listener = await comfy.listen(f"c{seed}")
        prompt_id = await comfy.prompt(slow(seed, steps=1, step_seconds=0.01), f"c{seed}")
        while (await listener.next("status"))["data"]["status"]["exec_info"]["queue_remaining"] != 0:
            pass
        assert prompt_id in await comfy.get(f"/history/{prompt_id}")
        await listener.socket.close()


async def test_an_error_ends_the_story(lab: Lab) -> None:
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(failing(), "c")
    await listener.next("execution_error")
    assert prompt_id in await comfy.get(f"/history/{prompt_id}")
    await listener.end_of(prompt_id)


async def test_a_slow_reader_holds_up_nobody_and_is_closed(lab: Lab) -> None:
    """A socket that is not read fills its buffer and is closed; the other of the same session hears everything."""
    gateway = await lab.gateway(await lab.simulator(), sessions__max_buffer=400_000, sessions__stalled_after=1)
    comfy = Comfy(lab.http, gateway.url)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    writer.write(
        b"GET /ws?clientId=c HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()
    good = await comfy.listen("c")
    prompts = [await comfy.prompt(_wide(n), "c") for n in range(3)]
    for prompt_id in prompts:
        await good.end_of(prompt_id)
        assert good.of(prompt_id)[-2:] == ["execution_success", "executing"]

    async def closed() -> bool:
        async with lab.http.get(f"{gateway.url}/metrics") as answer:
            text = await answer.text()
        return "comfyui_gateway_sockets_closed_slow_total 1.0" in text

    await until(closed, 30, "the slow reader is closed")
    writer.close()


def _wide(seed: int) -> dict[str, Any]:
    """A prompt whose progress_state is large: many nodes."""
    prompt = slow(seed, steps=40, step_seconds=0.005)
    for n in range(100, 200):
        prompt[str(n)] = {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}
        prompt[str(n + 1000)] = {"class_type": "PreviewImage", "inputs": {"images": [str(n), 0]}}
    return prompt


@pytest.mark.parametrize("path", ["/ws", "/api/ws"])
async def test_a_socket_without_client_id_gets_one(lab: Lab, path: str) -> None:
    gateway = await lab.gateway(await lab.simulator())
    async with lab.http.ws_connect(gateway.url + path) as socket:
        greeting = json.loads((await socket.receive(5)).data)
    assert len(greeting["data"]["sid"]) == 32
