"""Custom nodes that keep state in their process, and writes that a running node waits for, over three backends."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from typing import Any

from aiohttp import FormData
from PIL import Image

from tests.support.comfy_client import Comfy, Listener
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.security_world import ask
from tests.support.two_users import ANNA, BEN
from tests.support.workflows import slow

CONFIG = f"""
auth:
  keys:
    - {{name: anna, key: "{ANNA}"}}
    - {{name: ben, key: "{BEN}"}}
tenants: {{default: {{nodes: {{trust: [gwtest]}}}}}}
routes: {{users: [/api/etn, POST /picker, POST /cg-image-filter-message]}}
dispatch: {{backoff: 10ms}}
"""


async def start(lab: Lab) -> tuple[list[Simulator], GatewayProcess, Comfy, Comfy]:
    """Three backends with such nodes, and a gateway with two tenants."""
    config = lab.directory / "gateway.yaml"
    config.write_text(CONFIG)
    simulators = await lab.simulators(3, "--custom-nodes")
    gateway = await lab.gateway(*simulators, options=("--config", str(config)))
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))

    async def knows() -> bool:
        return "PickerNode" in await anna.get("/object_info")

    await until(knows)
    return simulators, gateway, anna, ben


def png(colour: int) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


async def put(comfy: Comfy, id_: str, picture: bytes) -> int:
    """PUT a picture; the status."""
    async with comfy.http.put(f"{comfy.url}/api/etn/image/{id_}", data=picture, headers=comfy.headers) as answer:
        return answer.status


async def fetch(comfy: Comfy, id_: str) -> tuple[int, bytes]:
    """GET a picture; the status and the body."""
    async with comfy.http.get(f"{comfy.url}/api/etn/image/{id_}", headers=comfy.headers) as answer:
        return answer.status, await answer.read()


def stored(id_: str) -> dict[str, Any]:
    """A prompt that loads a picture from its backend's memory, and keeps the result there."""
    return {
        "1": {"class_type": "ETN_LoadImageCache", "inputs": {"id": id_}},
        "2": {"class_type": "ETN_SaveImageCache", "inputs": {"images": ["1", 0], "format": "PNG"}},
    }


def picker(node_id: str = "1", label: str = "any") -> dict[str, Any]:
    """A prompt that waits for a choice."""
    return {node_id: {"class_type": "PickerNode", "inputs": {"label": label}}}


async def store_job(comfy: Comfy, colour: int) -> None:
    """Put a picture, run a prompt that names it, fetch the result by the id that the history tells."""
    id_ = str(uuid.uuid4())
    assert await put(comfy, id_, png(colour)) == 201
    listener = await comfy.listen(id_)
    prompt_id = await comfy.prompt(stored(id_), id_)
    entry = await ended(comfy, listener, prompt_id)
    assert entry["status"]["status_str"] == "success", entry["status"]
    status, body = await fetch(comfy, entry["outputs"]["2"]["images"][0]["id"])
    assert status == 200, body
    assert Image.open(io.BytesIO(body)).getpixel((0, 0)) == (colour, 0, 0)


async def ended(comfy: Comfy, listener: Listener, prompt_id: str) -> dict[str, Any]:
    """The history entry of a prompt, once its client was told of the end."""
    await listener.end_of(prompt_id)
    await listener.socket.close()
    return await comfy.entry(prompt_id)


async def waiting_pick(comfy: Comfy, prompt: dict[str, Any]) -> tuple[Listener, str]:
    """Start a prompt, and return its listener and its id when its node waits."""
    client_id = uuid.uuid4().hex
    listener = await comfy.listen(client_id)
    prompt_id = await comfy.prompt(prompt, client_id)
    await listener.next("picker-waiting")
    return listener, prompt_id


async def pick_job(comfy: Comfy, number: int) -> None:
    """Run a prompt that waits, and choose: by the prompt's id in the body or in the query, or by the node's."""
    node_id, choice = f"pick-{number}", f"choice-{number}"
    listener, prompt_id = await waiting_pick(comfy, picker(node_id))
    by = (f"/picker?prompt_id={prompt_id}", f"/picker/{prompt_id}", f"/picker/{node_id}", "/picker")[number % 4]
    status, answer = await comfy.post(by, {"prompt_id": prompt_id, "choice": choice})
    assert status == 200, (by, answer)
    assert answer == {"picked": node_id if number % 4 == 2 else prompt_id}
    assert (await ended(comfy, listener, prompt_id))["outputs"][node_id]["text"] == [choice]


async def select(comfy: Comfy, graph_id: str, selection: list[int]) -> None:
    """Answer the filter of a workflow, as its web page does."""
    form = FormData(default_to_multipart=True)
    form.add_field("response", json.dumps({"graph_id": graph_id, "selection": selection}))
    async with comfy.http.post(f"{comfy.url}/cg-image-filter-message", data=form, headers=comfy.headers) as answer:
        assert (answer.status, await answer.json()) == (200, {})


async def test_each_job_gets_its_own_state_and_choice(lab: Lab) -> None:
    _, _, anna, ben = await start(lab)
    jobs = [job(comfy, n) for comfy in (anna, ben) for n in range(5) for job in (store_job, pick_job)]
    assert len(await asyncio.gather(*jobs)) == 20


async def test_lost_state_is_a_clear_failure(lab: Lab) -> None:
    simulators, gateway, anna, _ = await start(lab)
    id_ = str(uuid.uuid4())
    assert await put(anna, id_, png(9)) == 201
    _, prompt_id = await waiting_pick(anna, picker(label=id_))
    own = Comfy(lab.http, "")
    for simulator in simulators:
        own.url = simulator.url
        if (await fetch(own, id_))[0] == 200:
            assert (await own.get("/prompt"))["exec_info"]["queue_remaining"] == 1
            await simulator.kill()
    await lab.backends_up(gateway, 2)
    messages = (await anna.entry(prompt_id))["status"]["messages"]
    assert messages[-1][1]["exception_type"] == "StateLost", messages
    assert id_ in messages[-1][1]["exception_message"]
    status, answer = await anna.post("/prompt", {"prompt": stored(id_)})
    assert (status, answer["error"]["type"]) == (400, "state_lost")
    status, body = await fetch(anna, id_)
    assert (status, b"state_lost" in body) == (410, True)
    await asyncio.gather(store_job(anna, 1), pick_job(anna, 1))
    assert await put(anna, id_, png(9)) == 201
    assert (await anna.entry(await anna.prompt(stored(id_))))["status"]["status_str"] == "success"


async def test_what_names_nothing_of_the_tenants_reaches_no_process_by_chance(lab: Lab) -> None:
    simulators, _, anna, ben = await start(lab)
    id_ = str(uuid.uuid4())
    assert await put(anna, id_, png(9)) == 201
    assert (await fetch(ben, id_))[0] == (await fetch(ben, str(uuid.uuid4())))[0] == 404
    assert await put(ben, id_, png(5)) == 201
    assert (await fetch(anna, id_))[1] == png(9)
    assert (await fetch(ben, id_))[1] == png(5)
    # An id of his own beside it opens nothing of hers, and an id that can't be kept apart is nobody's.
    hers, his = (str(uuid.uuid4()) for _ in range(2))
    assert await put(anna, hers, png(9)) == await put(ben, his, png(5)) == 201
    for simulator in simulators:
        # Put hers on each backend, because one of them has his.
        assert {await put(Comfy(lab.http, simulator.url), each, png(9)) for each in (hers, "abc")} <= {200, 201}
    assert (await fetch(ben, f"{hers}?id={his}"))[0] == 404
    for weak in ("abc", "x" * 129, "abc~1234"):
        assert (await put(anna, weak, png(9)), (await fetch(ben, weak))[0]) == (409, 404)
    own = await ben.prompt(slow(steps=1))
    await ben.entry(own)
    listener, graph_id = await anna.listen("filters"), str(uuid.uuid4())
    filters = {"1": {"class_type": "Image Filter", "inputs": {"graph_id": graph_id}}}
    known = [await anna.prompt(filters, "filters") for _ in range(2)]
    queues = [(await Comfy(lab.http, simulator.url).get("/prompt"))["exec_info"] for simulator in simulators]
    assert sorted(queue["queue_remaining"] for queue in queues) == [0, 0, 2]
    for number, prompt_id in enumerate(known):
        await listener.next("cg-image-filter-images", graph_id=graph_id)
        await select(anna, graph_id, [number])
        assert (await anna.entry(prompt_id))["outputs"]["1"]["text"] == [f"[{number}]"]
    (_, first), (_, second) = [await waiting_pick(anna, picker()) for _ in range(2)]
    for path in ("/picker", "/picker/1"):
        status, answer = await anna.post(path, {"choice": "x"})
        assert (status, answer["error"]["type"]) == (409, "write_owner_unclear"), (path, answer)
        assert "prompt_id" in answer["error"]["details"]
    _, third = await waiting_pick(anna, picker())
    assert (await ben.post("/picker", {"prompt_id": first, "choice": "x"}))[0] == 404
    for path in ("/picker/1", "/picker?node_id=1"):
        assert (await ben.post(path, {"choice": "x"}))[1]["error"]["type"] == "write_owner_unclear"
    # He names a prompt of his own beside, hides the id in what is not looked at, or calls JSON something else.
    named = json.dumps({"choice": "x", "prompt_id": "1"}).encode()
    decoys = json.dumps({"a_id": [f"d{n}" for n in range(64)], "choice": "x", "prompt_id": "1"}).encode()
    many = "&".join(f"a_id={n}" for n in range(2, 70))
    for path, kind, body in (
        (f"/picker/1?own_id={own}", "application/json", b'{"choice": "x"}'),
        (f"/picker?{many}&prompt_id=1", "application/json", b'{"choice": "x"}'),
        ("/picker", "application/json", decoys),
        ("/picker", "application/octet-stream", named + b" " * 70_000),
        ("/picker", "multipart/form-data; boundary=x", named),
        ("/picker", "application/x-www-form-urlencoded", named),
    ):
        answer = await ask(ben, "POST", path, body, Content_Type=kind)
        assert (answer.status, b"write_owner_unclear" in answer.body) == (409, True), (path, kind, answer)
    for prompt_id in (first, second, third):
        assert (await anna.post("/picker", {"prompt_id": prompt_id, "choice": prompt_id}))[0] == 200
        assert (await anna.entry(prompt_id))["outputs"]["1"]["text"] == [prompt_id]
