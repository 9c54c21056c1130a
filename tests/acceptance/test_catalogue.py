"""The merged catalogue, where a prompt can run, and what is refused before it waits."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.replay import exchange, expected_body, normal, recording
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.odd_info import DROPPED, KEPT, REPAIRED
from tests.support.pictures import png
from tests.support.uploads import busy, load, upload
from tests.support.workflows import slow, text_to_image

PROMPT_ERRORS = recording("prompt_errors.json")


def choices(info: dict[str, Any], node: str, name: str) -> list[str]:
    """The choices of a list of a node class."""
    listed: list[str] = info[node]["input"]["required"][name][0]
    return listed


async def test_unequal_backends_as_one(lab: Lab) -> None:
    """The union of classes and lists, with an ETag that stays until something changes."""
    first = await lab.simulator("--models", "a,both", "--without", "ImageBlur")
    second = await lab.simulator("--models", "b,both", "--loras", "style/x")
    gateway = await lab.gateway(first, second)
    comfy = Comfy(lab.http, gateway.url)

    async def merged() -> bool:
        return "ImageBlur" in await comfy.get("/object_info")

    await until(merged)
    info = await comfy.get("/object_info")
    names = ["a.safetensors", "both.safetensors", "b.safetensors"]
    assert choices(info, "CheckpointLoaderSimple", "ckpt_name") == names
    assert choices(info, "LoraLoader", "lora_name") == ["style/x.safetensors"]
    assert await comfy.get("/models/checkpoints") == names
    assert await comfy.get("/object_info/ImageBlur") == {"ImageBlur": info["ImageBlur"]}
    folders = await comfy.get("/experiment/models")
    assert len(folders) == len({folder["name"] for folder in folders})
    async with lab.http.get(f"{gateway.url}/object_info", headers={"Accept-Encoding": "gzip"}) as answer:
        etag = answer.headers["ETag"]
        assert answer.headers["Content-Encoding"] == "gzip"
    async with lab.http.get(f"{gateway.url}/api/object_info", headers={"If-None-Match": etag}) as answer:
        assert answer.status == 304
        assert await answer.read() == b""
    await upload(comfy, png((1, 1, 1)), "new.png")
    async with lab.http.get(f"{gateway.url}/object_info", headers={"If-None-Match": etag}) as answer:
        assert answer.status == 200
        assert answer.headers["ETag"] != etag


async def test_the_last_good_copy_serves_while_all_are_down(lab: Lab) -> None:
    """Also after a restart of the gateway; and a backend that comes back otherwise is read again."""
    simulator = await lab.simulator("--models", "old")
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    assert await comfy.get("/models/checkpoints") == ["old.safetensors"]
    await simulator.kill()
    await lab.backends_up(gateway, 0)
    before = await comfy.get("/object_info")
    assert await comfy.get("/models/checkpoints") == ["old.safetensors"]
    await gateway.stop()
    kept = lab.directory / "data" / "catalogue" / "b1.json.gz"
    assert "SaveImage" in json.loads(gzip.decompress(kept.read_bytes()))
    gateway = await lab.gateway(simulator, up=0)
    comfy = Comfy(lab.http, gateway.url)
    assert await comfy.get("/object_info") == before
    await lab.simulator("--models", "new", port=simulator.port)
    await lab.backends_up(gateway, 1)
    assert choices(await comfy.get("/object_info"), "CheckpointLoaderSimple", "ckpt_name") == ["new.safetensors"]
    assert await comfy.get("/models/checkpoints") == ["new.safetensors"]


async def test_a_damaged_copy_is_passed_over(lab: Lab) -> None:
    folder = lab.directory / "data" / "catalogue"
    folder.mkdir(parents=True)
    (folder / "b1.json.gz").write_bytes(b"no gzip")
    gateway = await lab.gateway(await lab.simulator())
    assert "SaveImage" in await Comfy(lab.http, gateway.url).get("/object_info")


async def test_a_prompt_goes_where_its_model_is(lab: Lab) -> None:
    """However short the queues elsewhere are."""
    first, second = await lab.simulator("--models", "a,both"), await lab.simulator("--models", "b,both")
    gateway = await lab.gateway(first, second)
    comfy = Comfy(lab.http, gateway.url)
    await busy(lab, second, 3)
    ids = [await comfy.prompt(text_to_image(n, 2, model="b.safetensors")) for n in range(4)]
    queue = await Comfy(lab.http, second.url).get("/queue")
    assert {item[1] for item in queue["queue_pending"]} >= {gateway.upstream_ids()[each] for each in ids}
    other = await comfy.prompt(text_to_image(9, 2, model="a.safetensors"))
    entry = await comfy.entry(other)
    assert gateway.upstream_ids()[other] in await Comfy(lab.http, first.url).get("/history")
    assert entry["status"]["status_str"] == "success"
    status, answer = await comfy.post("/prompt", {"prompt": text_to_image(model="nowhere.safetensors")})
    assert (status, answer["node_errors"]["1"]["errors"][0]["type"]) == (400, "value_not_in_list")


async def test_what_no_backend_has_together_is_said(lab: Lab) -> None:
    """One has the model, the other the node class: ComfyUI's own 400, with what is missing where."""
    first = await lab.simulator("--models", "a", "--without", "ImageBlur")
    second = await lab.simulator("--models", "b")
    gateway = await lab.gateway(first, second)
    comfy = Comfy(lab.http, gateway.url)
    prompt = text_to_image(model="a.safetensors")
    prompt["8"] = {
        "class_type": "ImageBlur",
        "inputs": {"image": ["5", 0], "blur_radius": 1, "sigma": 1.0},
    }
    prompt["7"]["inputs"]["images"] = ["8", 0]
    status, answer = await comfy.post("/prompt", {"prompt": prompt})
    assert status == 400
    assert answer["error"]["type"] in ("missing_node_type", "prompt_outputs_failed_validation")
    assert answer["error"]["extra_info"]["backends"] == {
        "b1": ["has no node class 'ImageBlur'"],
        "b2": ["has no 'a.safetensors' for CheckpointLoaderSimple.ckpt_name"],
    }
    assert await comfy.get("/queue") == {"queue_running": [], "queue_pending": []}


async def test_a_prompt_waits_for_the_only_backend_that_can(lab: Lab) -> None:
    first, second = await lab.simulator("--models", "a"), await lab.simulator("--models", "b")
    gateway = await lab.gateway(first, second)
    comfy = Comfy(lab.http, gateway.url)
    await second.fault(lab.http, "refuse:2")
    await lab.backends_up(gateway, 1)
    waiting = await comfy.prompt(text_to_image(1, 2, model="b.safetensors"))
    passing = await comfy.prompt(text_to_image(2, 2, model="a.safetensors"))
    await comfy.entry(passing)
    assert [item[1] for item in (await comfy.get("/queue"))["queue_pending"]] == [waiting]
    assert (await comfy.entry(waiting))["status"]["status_str"] == "success"
    assert gateway.upstream_ids()[waiting] in await Comfy(lab.http, second.url).get("/history")


@pytest.mark.parametrize("sent", ["sub/style.safetensors", "sub\\style.safetensors"])
async def test_separators_of_another_platform(lab: Lab, sent: str) -> None:
    """Each backend gets the name as it lists it, the client finds what it sent."""
    simulators = [
        await lab.simulator("--loras", "sub/style", "--models", "m"),
        await lab.simulator("--loras", "sub\\style", "--models", "m"),
    ]
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)

    async def both() -> bool:
        return len(choices(await comfy.get("/object_info"), "LoraLoader", "lora_name")) == 1

    await until(both)
    ids = []
    for n in range(4):
        prompt = text_to_image(n, 2, model="m.safetensors")
        prompt["9"] = {
            "class_type": "LoraLoader",
            "inputs": {
                "lora_name": sent,
                "strength_model": 1.0,
                "strength_clip": 1.0,
                "model": ["1", 0],
                "clip": ["1", 1],
            },
        }
        prompt["6"]["inputs"]["model"] = ["9", 0]
        ids.append((await comfy.prompt(prompt), prompt))
    for prompt_id, prompt in ids:
        entry = await comfy.entry(prompt_id)
        assert entry["status"]["status_str"] == "success"
        assert entry["prompt"][2] == prompt
    ran = [len(await Comfy(lab.http, simulator.url).get("/history")) for simulator in simulators]
    assert sorted(ran) == [2, 2]


async def test_a_prompt_that_has_to_wait_is_validated_as_comfyui_does(lab: Lab) -> None:
    """Each recorded error, from a gateway whose only backend is full."""
    simulator = await lab.simulator("--models", "", "--seed", "1")
    gateway = await lab.gateway(simulator, dispatch__max_queue=1)
    comfy = Comfy(lab.http, gateway.url)
    holder = await comfy.prompt(slow(1, steps=1000, step_seconds=0.1))
    before = (await simulator.requests(lab.http))["POST /prompt"]
    for recorded in PROMPT_ERRORS:
        status, body, headers = await exchange(lab.http, gateway.url, recorded["request"])
        if recorded["status"] == 500:
            assert status == 400
            continue
        assert status == recorded["status"], body
        assert normal(body) == normal(expected_body(recorded["body"]))
        assert headers["Content-Type"] == recorded["headers"]["Content-Type"]
    assert (await simulator.requests(lab.http))["POST /prompt"] == before
    accepted = [item for item in (await comfy.get("/queue"))["queue_pending"] if item[1] != holder]
    assert [item[4] for item in accepted] == [["2"]]


async def test_while_all_are_down_a_file_that_may_be_there_is_not_refused(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    await simulator.kill()
    await lab.backends_up(gateway, 0)
    prompt_id = await comfy.prompt(load("by-hand.png"))
    status, _ = await comfy.post("/prompt", {"prompt": {"1": {"class_type": "Nope", "inputs": {}}}})
    assert status == 400
    await lab.simulator(port=simulator.port)
    entry = await comfy.entry(prompt_id)
    # What only the backend can know fails the job later, as ComfyUI would.
    assert entry["status"]["status_str"] == "error"
    assert "Invalid image file: by-hand.png" in str(entry["status"]["messages"])


async def test_a_file_put_there_by_hand_is_fetched_from_where_it_is(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "hand.png").write_bytes(png((40, 50, 60)))
    first, second = await lab.simulator("--base-dir", str(tmp_path)), await lab.simulator()
    gateway = await lab.gateway(first, second)
    comfy = Comfy(lab.http, gateway.url)
    ids = await asyncio.gather(*(comfy.prompt(load("hand.png", f"h{n}")) for n in range(4)))
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    ran = [len(await Comfy(lab.http, simulator.url).get("/history")) for simulator in (first, second)]
    assert sorted(ran) == [2, 2]


async def test_one_backends_odd_answer_spoils_nothing_of_the_others(lab: Lab) -> None:
    """Malformed classes of every kind, also under the names of the other's, and answers that are no catalogue."""
    odd, good = await lab.simulators(2)
    gateway = await lab.gateway(odd, good, catalogue__refresh=0.03)
    comfy, behind = Comfy(lab.http, gateway.url), Comfy(lab.http, good.url)

    async def asked_again() -> bool:
        return (await odd.requests(lab.http)).get("GET /object_info", 0) >= before + 2

    async def answer(body: bytes) -> None:
        async with lab.http.post(f"{odd.url}/simulator/object_info", data=body) as told:
            assert told.status == 200

    async def check() -> None:
        info, own = await comfy.get("/object_info"), await behind.get("/object_info")
        assert {name: info.get(name) for name in own} == own
        assert (await comfy.get("/object_info/SaveImage"))["SaveImage"] == own["SaveImage"]
        entry = await comfy.entry(await comfy.prompt(slow(1, steps=1)))
        assert entry["status"]["status_str"] == "success"

    own = await behind.get("/object_info")
    classes = list(own)
    many = {classes[n % len(classes)]: description for n, description in enumerate(DROPPED.values())}
    many |= {f"Odd{n}": description for n, description in enumerate({**DROPPED, **REPAIRED, **KEPT}.values())}
    # A class that the odd one does not describe well is not its to run.
    many["SaveImage"] = DROPPED["an array"]
    await answer(json.dumps({**many, "Marker": KEPT["no inputs"]}).encode())

    async def is_read() -> bool:
        return "Marker" in await comfy.get("/object_info")

    await until(is_read, what="the odd answer in the catalogue")
    assert json.dumps((await comfy.get("/object_info"))["Marker"]) == json.dumps(KEPT["no inputs"])
    ran = len(await behind.get("/history"))
    await check()
    await check()
    assert len(await behind.get("/history")) == ran + 2
    assert any(line["event"] == "object_info_partly_unreadable" for line in gateway.log_lines())
    for body in (b"null", b"[]", b'"x"', b"7", b"{", b"[" * 100_000, b'{"error": "x"}', b"{}", b"\xff", b"NaN"):
        before = (await odd.requests(lab.http))["GET /object_info"]
        await answer(body)
        await until(asked_again, what=repr(body[:20]))
        await check()
        assert "Marker" in await comfy.get("/object_info")
    assert await gateway.stop() == 0
    gateway = await lab.gateway(odd, good)
    comfy = Comfy(lab.http, gateway.url)
    await check()


async def test_a_backends_error_about_a_model_is_its_answer(lab: Lab) -> None:
    """A ComfyUI answers 500 about a model file that it can't read. Another backend's better answer goes before."""
    path = "/view_metadata/checkpoints?filename=a.safetensors"
    backends = [await lab.simulator("--fail", "500:/view_metadata/checkpoints"), await lab.simulator()]
    gateway = await lab.gateway(*backends)

    async def ask(url: str) -> tuple[int, bytes]:
        async with lab.http.get(url + path) as answer:
            assert "Retry-After" not in answer.headers
            return answer.status, await answer.read()

    assert (await ask(gateway.url))[0] == 404
    await backends[1].fault(lab.http, "500:/view_metadata/checkpoints")
    assert await ask(gateway.url) == await ask(backends[0].url)


async def test_backends_that_are_down_are_not_said_to_have_never_answered(lab: Lab) -> None:
    backend = await lab.simulator()
    gateway = await lab.gateway(backend)
    await backend.kill()
    await lab.backends_up(gateway, 0)
    for path in ("/view_metadata/checkpoints?filename=a.safetensors", "/models/loras"):
        async with lab.http.get(gateway.url + path) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
            error = (await answer.json())["error"]
            assert (error["type"], error["message"]) == ("no_backend", "No backend answered")
