"""What a client may rely on, whether it speaks to one ComfyUI, or to a gateway before one, or before three."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from gateway.simulator.nodes import seed_colour
from tests.support.comfy_client import Comfy, Listener
from tests.support.lab import Lab
from tests.support.pictures import colour
from tests.support.web_ui import WEB_UI
from tests.support.workflows import failing, slow

CLIENTS = ("anna", "ben")
PAGE = 7
ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass
class Posted:
    """A prompt of the script, what it was answered, and how it must end."""

    graph: dict[str, Any]
    client: str
    status: str
    more: dict[str, Any] = field(default_factory=dict)
    prompt_id: str = ""
    number: float = 0

    @property
    def seed(self) -> int:
        """Whose picture it is."""
        return int(self.graph["1"]["inputs"]["seed"])


def script() -> list[Posted]:
    """24 prompts: three that run until they are interrupted, and behind them short, repeated, failing, urgent ones."""
    posted = [Posted(slow(n, steps=600, step_seconds=0.1), CLIENTS[n % 2], "cancelled") for n in range(3)]
    for n in range(21):
        graph, status, more = slow(100 + n, steps=1 + n % 3, step_seconds=0.01), "completed", {}
        match n % 7:
            case 1:
                graph = posted[-1].graph
            case 2:
                graph = slow(100 + n, save=False)
            case 3:
                graph, status = failing(f"failure {n}"), "failed"
            case 4:
                more = {"front": True}
            case 5:
                status = "deleted"
            case 6:
                more = {"prompt_id": str(uuid.uuid4()), "extra_data": {"n": n}}
        posted.append(Posted(graph, CLIENTS[n % 2], status, more))
    return posted


async def play(comfy: Comfy, posted: list[Posted]) -> dict[str, Listener]:
    """Send all, delete some while they are pending, interrupt what runs, and hear the rest to its end."""
    listeners = {client: await comfy.listen(client, flags=WEB_UI) for client in CLIENTS}
    for item in posted:
        body = {"prompt": item.graph, "client_id": item.client, **item.more}
        status, answer = await comfy.post("/prompt", body)
        assert status == 200, answer
        item.prompt_id, item.number = answer["prompt_id"], answer["number"]
    await comfy.running(posted[0].prompt_id)
    await check_open(comfy, posted)
    first, second, third = (item.prompt_id for item in posted if item.status == "deleted")
    for _ in range(2):
        assert await comfy.post("/queue", {"delete": [first]}) == (200, "")
    for cancelled in (True, False):
        assert await comfy.post(f"/api/jobs/{second}/cancel") == (200, {"cancelled": cancelled})
        assert await comfy.post("/api/jobs/cancel", {"job_ids": [third]}) == (200, {"cancelled": cancelled})
    await check_open(comfy, [item for item in posted if item.status != "deleted"])
    for item in posted[:3]:
        await comfy.running(item.prompt_id)
        assert await comfy.post("/interrupt", {"prompt_id": item.prompt_id}) == (200, "")
    for client, listener in listeners.items():
        waited = {item.prompt_id for item in posted if item.client == client and item.status != "deleted"}
        while waited:
            event = await listener.receive()
            if event["type"] == "executing" and event["data"]["node"] is None:
                waited.remove(event["data"]["prompt_id"])
    return listeners


async def check_open(comfy: Comfy, posted: list[Posted]) -> None:
    """While the first ones run, every prompt is in the queue once, and counted once."""
    queue = await comfy.get("/queue")
    listed = [(item[1], item[0], item[2]) for items in queue.values() for item in items]
    key = str
    assert sorted(listed, key=key) == sorted(((p.prompt_id, p.number, p.graph) for p in posted), key=key)
    assert (await comfy.get("/prompt"))["exec_info"]["queue_remaining"] == len(posted)
    jobs = (await comfy.get("/api/jobs"))["jobs"]
    shown = {"in_progress": len(queue["queue_running"]), "pending": len(queue["queue_pending"])}
    assert Counter(job["status"] for job in jobs) == shown
    assert {job["id"]: job["priority"] for job in jobs} == {p.prompt_id: p.number for p in posted}


async def check_ended(comfy: Comfy, posted: list[Posted], listeners: dict[str, Listener], backends: int) -> None:
    """All that holds once every prompt has ended."""
    counts = [abs(item.number) for item in posted]
    assert all(after > before for before, after in pairwise(counts))
    assert [item for item in posted if (item.number < 0) != bool(item.more.get("front"))] == []
    assert await comfy.get("/queue") == {"queue_running": [], "queue_pending": []}
    kept = {item.prompt_id: item for item in posted if item.status != "deleted"}
    history: dict[str, Any] = await comfy.get("/history")
    assert history.keys() == kept.keys()
    ends = [entry["status"]["messages"][-1][1]["timestamp"] for entry in history.values()]
    # Several backends have several clocks; each client's own order is checked below.
    assert backends > 1 or ends == sorted(ends)
    for item in posted:
        await check_entry(comfy, item, history.get(item.prompt_id))
    for client, listener in listeners.items():
        check_story(client, listener, history)
    await check_pictures(comfy, kept, history)
    await check_pages(comfy, list(history))
    await check_jobs(comfy, kept)


async def check_entry(comfy: Comfy, item: Posted, entry: dict[str, Any] | None) -> None:
    """Its entry is what was sent and how it ended; one that was deleted while it was pending has none."""
    found = await comfy.get(f"/history/{item.prompt_id}")
    if entry is None:
        assert found == {}
        assert item.status == "deleted"
        async with comfy.http.get(f"{comfy.url}/api/jobs/{item.prompt_id}") as answer:
            assert answer.status == 404
        return
    assert found == {item.prompt_id: entry}
    number, prompt_id, graph, extra, outputs = entry["prompt"]
    assert (number, prompt_id, graph, outputs) == (item.number, item.prompt_id, item.graph, ["2"])
    assert extra == {**item.more.get("extra_data", {}), "client_id": item.client, "create_time": extra["create_time"]}
    job = await comfy.get(f"/api/jobs/{item.prompt_id}")
    assert job["status"] == item.status
    assert job["outputs_count"] == (1 if item.status == "completed" else 0)


def check_story(client: str, listener: Listener, history: dict[str, Any]) -> None:
    """What a client hears of each of its prompts is a whole story; in the order of their ends they are in /history."""
    own = [prompt_id for prompt_id, entry in history.items() if entry["prompt"][3]["client_id"] == client]
    ended: list[str] = []
    stories: dict[str, list[dict[str, Any]]] = {}
    for event in listener.heard:
        if (prompt_id := event["data"].get("prompt_id")) is not None:
            assert prompt_id not in ended, event
            stories.setdefault(prompt_id, []).append(event)
            if event["type"] == "executing" and event["data"]["node"] is None:
                ended.append(prompt_id)
    assert ended == own
    assert stories.keys() == set(own)
    for prompt_id, story in stories.items():
        types = [event["type"] for event in story]
        assert types[:2] == ["execution_start", "execution_cached"]
        assert types.count("execution_start") == types.count("execution_cached") == 1
        assert sum(types.count(end) for end in ENDS) == 1
        assert types[-2] in ENDS
        told = [event["data"]["output"] for event in story if event["type"] == "executed"]
        assert told == list(history[prompt_id]["outputs"].values())
        assert history[prompt_id]["status"]["messages"][-1] == [types[-2], story[-2]["data"]]
    remaining = [e["data"]["status"]["exec_info"]["queue_remaining"] for e in listener.heard if e["type"] == "status"]
    assert min(remaining) >= 0


async def check_pictures(comfy: Comfy, kept: dict[str, Posted], history: dict[str, Any]) -> None:
    """Under each name is the picture of the prompt that made it; only a repeated prompt names one again."""
    graphs: dict[str, dict[str, Any]] = {}
    for prompt_id, entry in history.items():
        item = kept[prompt_id]
        images = comfy.images(entry)
        assert len(images) == (1 if item.status == "completed" else 0)
        for image in images:
            assert colour(await comfy.view(image)) == seed_colour(item.seed)
            assert graphs.setdefault(str(sorted(image.items())), item.graph) == item.graph


async def check_pages(comfy: Comfy, ids: list[str]) -> None:
    """The pages of /history are the whole, in its order."""
    pages: list[str] = []
    for offset in range(0, len(ids) + PAGE, PAGE):
        pages += await comfy.get("/history", max_items=str(PAGE), offset=str(offset))
    assert pages == ids
    assert list(await comfy.get("/history", max_items=str(PAGE))) == ids[-PAGE:]
    assert list(await comfy.get("/history", max_items="1000")) == ids


async def check_jobs(comfy: Comfy, kept: dict[str, Posted]) -> None:
    """The pages of /api/jobs cover every job once in each order, and the statuses add up."""
    for sort_by in ("created_at", "execution_duration"):
        for order in ("asc", "desc"):
            jobs: list[dict[str, Any]] = []
            more = True
            while more:
                query = {"sort_by": sort_by, "sort_order": order, "limit": str(PAGE), "offset": str(len(jobs))}
                page = await comfy.get("/api/jobs", **query)
                assert page["pagination"]["total"] == len(kept)
                jobs += page["jobs"]
                more = page["pagination"]["has_more"]
            assert sorted(job["id"] for job in jobs) == sorted(kept)
            keys = [_sort_key(job, sort_by) for job in jobs]
            assert keys == sorted(keys, reverse=order == "desc")
    wanted = Counter(item.status for item in kept.values())
    for status in ("pending", "in_progress", "completed", "failed", "cancelled"):
        found = (await comfy.get("/api/jobs", status=status))["jobs"]
        assert len(found) == wanted[status]
        assert {kept[job["id"]].status for job in found} <= {status}


async def check_history_deletion(comfy: Comfy) -> None:
    """Entries that are deleted are gone from every list, and no others; again and unknown ones are no error."""
    first, *rest = await comfy.get("/history")
    for _ in range(2):
        assert await comfy.post("/history", {"delete": [first, "unknown"]}) == (200, "")
        assert list(await comfy.get("/history")) == rest
        assert await comfy.get(f"/history/{first}") == {}
        assert first not in {job["id"] for job in (await comfy.get("/api/jobs"))["jobs"]}
    assert await comfy.post("/history", {"clear": True}) == (200, "")
    assert await comfy.get("/history") == {}
    assert (await comfy.get("/api/jobs"))["jobs"] == []


def _sort_key(job: dict[str, Any], sort_by: str) -> int:
    if sort_by == "created_at":
        return int(job["create_time"])
    return int(job["execution_end_time"] - job["execution_start_time"])


@pytest.mark.parametrize("backends", [0, 1, 3], ids=["alone", "gateway-1", "gateway-3"])
async def test_the_same_for_a_client(lab: Lab, backends: int) -> None:
    simulators = await lab.simulators(backends or 1, "--cache-ram")
    url = (await lab.gateway(*simulators, dispatch__max_queue=5)).url if backends else simulators[0].url
    comfy = Comfy(lab.http, url)
    posted = script()
    listeners = await play(comfy, posted)
    await check_ended(comfy, posted, listeners, backends)
    await check_history_deletion(comfy)
