"""Results that nodes send over the WebSocket: none is dropped, whatever its size and however slowly it is read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator.nodes import bulk_picture
from tests.support.comfy_client import Comfy, Listener
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.workflows import slow

MB = 10**6
LEGACY_HEAD = b"\0\0\0\x01\0\0\0\x02"


def bulk(pictures: int = 0, picture_bytes: int = 0, text_bytes: int = 0, values: int = 0) -> dict[str, Any]:
    """A prompt whose node sends much."""
    inputs = {"pictures": pictures, "picture_bytes": picture_bytes, "text_bytes": text_bytes, "values": values}
    return {"1": {"class_type": "BulkNode", "inputs": inputs}}


def websocket(width: int = 64, batch: int = 2, seed: int = 1) -> dict[str, Any]:
    """A prompt that sends pictures over the socket, after a sampler that shows previews."""
    sampler = {"steps": 3, "step_seconds": 0.01, "seed": seed, "width": width, "height": width}
    empty = {"width": width, "height": 48, "batch_size": batch, "color": seed}
    return {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "SlowSampler", "inputs": sampler},
        "4": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["3", 0]}},
    }


def pictures(listener: Listener) -> list[bytes]:
    """The pictures of the size of results that were heard, without their heads."""
    found = [event["raw"] for event in listener.heard if event["type"].startswith("binary")]
    return [raw[raw.index(b"\x89PNG") :] for raw in found if b"\x89PNG" in raw[:400]]


async def hear(listener: Listener, prompt_id: str) -> None:
    """Listen to the end of a prompt, however long that takes."""
    async with asyncio.timeout(60):
        await listener.end_of(prompt_id)


async def metric(lab: Lab, gateway: GatewayProcess, name: str) -> float:
    """A metric's value, of all labels together."""
    text = await (await lab.http.get(f"{gateway.url}/metrics")).text()
    lines = [line for line in text.splitlines() if line.startswith(f"comfyui_gateway_{name}")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.mark.parametrize(("flags", "size"), [(None, 40 * MB), ({"supports_preview_metadata": True}, MB)])
async def test_a_large_picture_arrives_whole(lab: Lab, flags: dict[str, Any] | None, size: int) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c", flags=flags)
    prompt_id = await comfy.prompt(bulk(1, size), "c")
    await hear(listener, prompt_id)
    (picture,) = pictures(listener)
    assert picture == bulk_picture(0, size)
    (raw,) = [event["raw"] for event in listener.heard if event["type"].startswith("binary")]
    if flags is None:
        assert raw.startswith(LEGACY_HEAD + b"\x89PNG")
    else:
        head = raw[: raw.index(b"\x89PNG")]
        assert prompt_id.encode() in head
        assert gateway.upstream_ids()[prompt_id].encode() not in head


async def test_results_are_told_from_previews_and_in_order(lab: Lab) -> None:
    """Whatever form they come in, clients hear what the ComfyUI alone says to them, save that more may be left out."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    told: dict[str, list[list[str]]] = {}
    for n, flags in enumerate((None, {"supports_preview_metadata": True})):
        for url in (simulator.url, gateway.url):
            comfy = Comfy(lab.http, url)
            listener = await comfy.listen(f"c{n}", flags=flags)
            await hear(listener, await comfy.prompt(websocket(seed=n), f"c{n}"))
            assert len(pictures(listener)) == 3
            types = [event["type"] for event in listener.heard]
            told.setdefault(url, []).append([type_ for type_ in types if type_ not in ("status", "feature_flags")])
    assert told[gateway.url] == told[simulator.url]
    assert await metric(lab, gateway, 'events_relayed_total{kind="result"}') == 6
    assert await metric(lab, gateway, 'events_relayed_total{kind="preview"}') == 6


async def test_a_backend_that_sends_no_metadata(lab: Lab) -> None:
    simulator = await lab.simulator("--fail", "no-metadata")
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    await hear(listener, await comfy.prompt(websocket(), "c"))
    assert len(pictures(listener)) == 3
    assert await metric(lab, gateway, 'events_relayed_total{kind="result"}') == 3


async def test_a_slow_reader_gets_all(lab: Lab) -> None:
    """It reads nothing until the job is over; what waits for it is on disk, and gone when it has it."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, sessions__max_buffer=2**20)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    again = await comfy.listen("c")
    await comfy.prompt(bulk(8, 3 * MB), "c")
    small = await comfy.prompt(bulk(100, 40_000), "c")
    await comfy.entry(small)

    async def is_on_disk() -> bool:
        return await metric(lab, gateway, "sockets_spooled_bytes") >= 20 * MB

    await until(is_on_disk)
    # Once, whoever waits for it.
    assert sum(file.stat().st_size for file in (gateway.data_dir / "spool").iterdir()) <= 28 * MB
    for each in (listener, again):
        await hear(each, small)
        wanted = [bulk_picture(place, 3 * MB) for place in range(8)]
        assert pictures(each) == wanted + [bulk_picture(place, 40_000) for place in range(100)]

    async def is_empty() -> bool:
        return not await metric(lab, gateway, "sockets_spooled_bytes") and not any(
            (gateway.data_dir / "spool").iterdir()
        )

    await until(is_empty)


async def test_many_sessions_take_little_memory(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, sessions__max_buffer=2**20)
    comfy = Comfy(lab.http, gateway.url)
    listeners = [await comfy.listen(f"c{n}") for n in range(8)]
    before = peak_memory(gateway)
    prompt_ids = [await comfy.prompt(bulk(2, 8 * MB), f"c{n}") for n in range(8)]
    for prompt_id in prompt_ids:
        await comfy.entry(prompt_id)
    for listener, prompt_id in zip(listeners, prompt_ids, strict=True):
        await hear(listener, prompt_id)
        assert [len(picture) for picture in pictures(listener)] == [8 * MB] * 2
    # Half of the pictures would be more. How much was there at once depends on how fast the disk took it.
    assert peak_memory(gateway) - before < 100 * MB


def peak_memory(gateway: GatewayProcess) -> int:
    """The most memory that a process has had so far."""
    lines = Path(f"/proc/{gateway.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


async def test_results_wait_for_their_prompts_turn(lab: Lab) -> None:
    """A prompt that ends while another one is told of: its results come after that one's end, none is missing."""
    gateway = await lab.gateway(*await lab.simulators(2), sessions__max_buffer=2**20)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    first = await comfy.prompt(slow(steps=1000), "c")
    await comfy.running(first)
    second = await comfy.prompt(bulk(4, MB), "c")
    await comfy.entry(second)
    assert (await comfy.post("/interrupt", {"prompt_id": first}))[0] == 200
    await hear(listener, first)
    assert not pictures(listener)
    await hear(listener, second)
    assert pictures(listener) == [bulk_picture(place, MB) for place in range(4)]


async def test_a_backend_that_dies_amid_results(lab: Lab) -> None:
    """The job runs again elsewhere: its client gets each picture of that run, and no half of any."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(bulk(60, MB // 2), "c")
    while not pictures(listener):
        await listener.receive()
    (backend,) = [each for each in simulators if (await each.requests(lab.http)).get("POST /prompt")]
    await backend.kill()
    await hear(listener, prompt_id)
    numbers = [int(picture[8:16]) for picture in pictures(listener)]
    assert pictures(listener) == [bulk_picture(number, MB // 2) for number in numbers]
    assert numbers[-60:] == list(range(60))
    assert numbers == [*range(len(numbers) - 60), *range(60)]


async def test_past_the_quota_the_socket_is_closed_and_the_log_tells(lab: Lab) -> None:
    simulator = await lab.simulator()
    settings = {"sessions__max_buffer": 4 * MB, "sessions__tenant_spool": 8 * MB}
    gateway = await lab.gateway(simulator, **settings)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(bulk(8, 3 * MB), "c")
    assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    with pytest.raises(AssertionError, match="closed"):
        await hear(listener, prompt_id)
    dropped = [line for line in gateway.log_lines() if line["event"] == "result_dropped"]
    assert {line["prompt_id"] for line in dropped} == {prompt_id}
    assert await metric(lab, gateway, 'events_dropped_total{kind="result"}') >= 3
    # What was let go counts no more.
    listener = await comfy.listen("d")
    prompt_id = await comfy.prompt(bulk(1, 3 * MB), "d")
    await hear(listener, prompt_id)
    assert pictures(listener) == [bulk_picture(0, 3 * MB)]


@pytest.mark.parametrize("size", [100_000, 9 * MB])
async def test_a_large_executed_arrives_whole_and_in_order(lab: Lab, size: int) -> None:
    """If it is long others have their turn while it is read, and past 8 MiB a process apart reads it."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(bulk(text_bytes=size), "c")
    await hear(listener, prompt_id)
    (executed,) = [event for event in listener.heard if event["type"] == "executed"]
    assert executed["data"]["output"] == {"text": ["x" * size]}
    told = listener.of(prompt_id)
    after = ["executing", "executed", "progress_state", "execution_success", "executing"]
    assert told[told.index("executed") - 1 :] == after
    entry = await comfy.entry(prompt_id)
    assert entry["outputs"] == {"1": executed["data"]["output"]}
    job = await comfy.get(f"/api/jobs/{prompt_id}")
    assert job["outputs"] == entry["outputs"]
    async with lab.http.get(f"{gateway.url}/history") as answer:
        assert (await answer.json())[prompt_id] == entry
    listed = (await comfy.get("/api/jobs"))["jobs"][0]
    assert len(str(listed)) < 2000
    assert "cut-" not in str(listed)


async def test_what_an_entry_has_no_room_for_is_left_out(lab: Lab) -> None:
    """The job ends as it ended, and its client hears all of it."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, history__max_result=MB)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt({**bulk(text_bytes=2 * MB), **saving("2")}, "c")
    await hear(listener, prompt_id)
    entry = await comfy.entry(prompt_id)
    assert entry["status"]["status_str"] == "success"
    assert list(entry["outputs"]) == ["3"]
    assert entry["gateway_left_out"] == {"1": 2 * MB + len('{"text": [""]}')}
    (executed,) = [event for event in listener.heard if event["type"] == "executed" and event["data"]["node"] == "1"]
    assert len(executed["data"]["output"]["text"][0]) == 2 * MB


def saving(node_id: str) -> dict[str, Any]:
    """Nodes that save a picture; the saver has the next id."""
    empty = {"width": 64, "height": 48, "batch_size": 1, "color": 1}
    inputs = {"images": [node_id, 0], "filename_prefix": "ComfyUI"}
    return {
        node_id: {"class_type": "EmptyImage", "inputs": empty},
        str(int(node_id) + 1): {"class_type": "SaveImage", "inputs": inputs},
    }
