"""What must be so when the dust has settled, as far as it can be seen from outside."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from gateway.comfy import json_codec
from gateway.simulator.nodes import seed_colour
from tests.chaos.clients import Accepted, Client
from tests.chaos.plan import BACKENDS, EXCUSES
from tests.chaos.story import TERMINAL, Place
from tests.chaos.world import AFTERMATH, World
from tests.support.comfy_client import Comfy
from tests.support.lab import until
from tests.support.pictures import colour

ENDED_WITH = {"success": "execution_success", "error": "execution_error"}
# How many more there may be in the end than in the beginning: files and sockets, threads, tasks.
FEW = (8, 6, 8)

History = dict[str, dict[str, Any]]


@dataclass
class Found:
    """What was found wrong, and how many jobs ran more than once."""

    problems: list[str] = field(default_factory=list)
    reruns: int = 0


async def look(comfy: Comfy, world: World, clients: list[Client]) -> tuple[History, Found]:
    """Look at everything that clients can see, and at what the backends wrote."""
    history: History = await comfy.get("/history", max_items="10000")
    found = Found()
    problems = found.problems
    for client in clients:
        problems += client.problems
        for accepted in client.accepted:
            problems += _entry_problems(accepted, history.get(accepted.prompt_id))
        problems += _story_problems(client, history)
    problems += _strangers(clients, history)
    problems += _id_problems(world, clients, history)
    problems += await _picture_problems(comfy, history)
    problems += await _list_problems(comfy, history)
    executions = _executions(world)
    found.reruns = sum(len(runs) > 1 for runs in executions.values())
    problems += _run_twice(world, clients, executions)
    return history, found


def _id_problems(world: World, clients: list[Client], history: History) -> list[str]:
    """No client is told what a job is called on its backend."""
    ids = {each for each in world.gateways[-1].upstream_ids().values() if each}
    said = json_codec.dumps(history).decode()
    problems = [f"{each}: /history names it" for each in ids if each in said]
    told = {prompt_id for client in clients for prompt_id in client.listening.stories}
    return problems + [f"{each}: events name it" for each in ids & told]


def _terminal_of(entry: dict[str, Any]) -> list[str]:
    return [name for name, _ in entry["status"]["messages"] if name in TERMINAL]


def seed_of(graph: dict[str, Any]) -> int:
    return int(graph["1"]["inputs"]["seed"])


def _entry_problems(accepted: Accepted, entry: dict[str, Any] | None) -> list[str]:
    """Each id that was answered 200 has one entry, and it is its own; unless its client went back on it."""
    name, task = accepted.prompt_id, accepted.task
    if entry is None:
        return [] if accepted.cancel_asked else [f"{name}: no history entry"]
    if accepted.is_gone:
        return [f"{name}: it was cancelled and gone, and has an entry: {_terminal_of(entry)}"]
    if entry["prompt"][1] != name or seed_of(entry["prompt"][2]) != task.seed:
        return [f"{name}: the entry is another prompt's"]
    ends = _terminal_of(entry)
    wanted = {"execution_error" if task.fails else "execution_success"}
    if accepted.cancel_asked:
        wanted.add("execution_interrupted")
    if len(ends) != 1 or ends[0] not in wanted:
        return [f"{name}: ended with {ends}: {entry['status']['messages'][-1][1].get('exception_message')}"]
    return []


def _story_problems(client: Client, history: History) -> list[str]:
    """A story has the end that the history tells; nobody who was connected all along missed one."""
    problems = []
    if client.listening.remaining != 0 or not client.is_connected:
        problems.append(f"{client.plan.name}: the last status says {client.listening.remaining}")
    for prompt_id, story in client.listening.stories.items():
        entry = history.get(prompt_id)
        wanted = "execution_interrupted" if entry is None else _terminal_of(entry)[0]
        if story.is_begun:
            problems.append(f"{client.plan.name}: {prompt_id} was never ended: {story.tale()}")
        elif story.place is Place.OVER and story.terminal not in (None, wanted):
            problems.append(f"{client.plan.name}: {prompt_id} was told as {story.terminal}, and is {wanted}")
    for accepted in client.heard_throughout():
        if accepted.prompt_id not in client.listening.stories:
            problems.append(f"{client.plan.name}: nothing was told of {accepted.prompt_id}")
    return problems


def _strangers(clients: list[Client], history: History) -> list[str]:
    """What is in the history without an answer is a prompt whose answer never came."""
    known = {accepted.prompt_id for client in clients for accepted in client.accepted}
    unanswered = {seed for client in clients for seed in client.unanswered}
    return [
        f"{prompt_id}: in the history, and nobody sent it"
        for prompt_id, entry in history.items()
        if prompt_id not in known and seed_of(entry["prompt"][2]) not in unanswered
    ]


async def _picture_problems(comfy: Comfy, history: History) -> list[str]:
    """Each image can be viewed, has the colour of its job's seed, and a name of its own."""
    problems = []
    seen: dict[str, str] = {}
    for prompt_id, entry in history.items():
        images = comfy.images(entry)
        if len(images) != (entry["status"]["status_str"] == "success"):
            problems.append(f"{prompt_id}: {len(images)} images")
        for image in images:
            other = seen.setdefault(str(sorted(image.items())), prompt_id)
            if other != prompt_id:
                problems.append(f"{prompt_id}: its image has the name of {other}'s: {image}")
            async with comfy.http.get(f"{comfy.url}/view", params=image) as answer:
                data = await answer.read()
            if answer.status != 200:
                problems.append(f"{prompt_id}: /view of {image} answers {answer.status}")
            elif colour(data) != seed_colour(seed_of(entry["prompt"][2])):
                problems.append(f"{prompt_id}: {image} is another job's")
    return problems


async def _list_problems(comfy: Comfy, history: History) -> list[str]:
    """Every list tells the same: nothing is open, and what ended is in the history."""
    problems = []
    queue = await comfy.get("/queue")
    if queue != {"queue_running": [], "queue_pending": []}:
        problems.append(f"/queue: {queue}")
    jobs = (await comfy.get("/api/jobs"))["jobs"]
    if sorted(job["id"] for job in jobs) != sorted(history):
        problems.append("/api/jobs lists other jobs than /history")
    metrics = await _metrics(comfy)
    for name in ("jobs_open", "jobs_waiting"):
        if metrics[f"comfyui_gateway_{name}"] != 0:
            problems.append(f"{name} is {metrics[f'comfyui_gateway_{name}']}")
    return problems


async def _metrics(comfy: Comfy) -> dict[str, float]:
    async with comfy.http.get(f"{comfy.url}/metrics") as answer:
        text = await answer.text()
    return {name: float(value) for name, value in re.findall(r"^([a-z]\S*) (\S+)$", text, re.MULTILINE)}


# -- who ran what ----------------------------------------------------------------------------------------------------


def _executions(world: World) -> dict[int, list[tuple[int, float]]]:
    """By seed: on which backends it ran to its end, and when. The images are there, whatever became of the process."""
    found: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for number in range(BACKENDS):
        for path in world.outputs(number).rglob("*.png"):
            graph = graph_in(path)
            if graph is not None:
                found[seed_of(graph)].append((number, path.stat().st_mtime))
    return found


def graph_in(path: Path) -> dict[str, Any] | None:
    """The prompt that an image carries; None if the image is not whole."""
    try:
        with Image.open(path) as image:
            image.load()
            graph: dict[str, Any] = json_codec.loads(image.info["prompt"].encode())
            return graph
    except (OSError, SyntaxError, KeyError):
        return None


def _run_twice(world: World, clients: list[Client], executions: dict[int, list[tuple[int, float]]]) -> list[str]:
    """Jobs that ran to their end on two backends, or twice on one, that could be reached all the while."""
    excuses = _excuses(world)
    problems = []
    for client in clients:
        for accepted in client.accepted:
            seed = accepted.task.seed
            runs = executions.get(seed, [])
            last = max((ended for _, ended in runs), default=0.0)
            unexcused = [
                number
                for number, _ in runs
                if not any(n == number and began < last and ended > accepted.sent_at for n, began, ended in excuses)
            ]
            # One that had no id, and was sent again when no answer came, is two jobs.
            tries = 1 if accepted.task.prompt_id is not None else 1 + client.unanswered[seed]
            if len(unexcused) > tries:
                problems.append(f"{accepted.prompt_id}: ran {len(runs)} times, on backends {[n for n, _ in runs]}")
    return problems


def _excuses(world: World) -> list[tuple[int, float, float]]:
    """When a backend was gone, or could not be told from one that is.

    That the gateway heard nothing of it for `lost_after` is an excuse too: a busy machine can do that to a process.
    """
    found = [(h.backend, h.began, h.ended + AFTERMATH) for h in world.happened if h.kind in EXCUSES]
    for gateway in world.gateways:
        for line in gateway.log_lines():
            if line.get("event") == "backend_changed" and line.get("state") == "lost":
                number = int(line["backend"].removeprefix("b")) - 1
                for at in world.clock.true_times(line["ts"]):
                    found.append((number, at - AFTERMATH, at + AFTERMATH))
    return found


# -- what is left ----------------------------------------------------------------------------------------------------


async def level(comfy: Comfy, pid: int) -> tuple[int, int, int]:
    """How many files and sockets a gateway has open, how many threads, and how many tasks."""
    tasks = int((await _metrics(comfy))["comfyui_gateway_tasks"])
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), tasks


async def leaks(comfy: Comfy, world: World, before: tuple[int, int, int]) -> list[str]:
    """What the gateway still holds when all clients have left and its connections were broken."""
    gateway = world.gateways[-1]
    world.drop_connections()
    await world.all_up()

    async def is_back() -> bool:
        now = await level(comfy, gateway.pid)
        few = all(each <= then + more for each, then, more in zip(now, before, FEW, strict=True))
        return few and (await _metrics(comfy))["comfyui_gateway_sockets_open"] == 0

    try:
        await until(is_back, 20)
    except AssertionError:
        return [f"files, threads and tasks were {before}, and are {await level(comfy, gateway.pid)}"]
    return []
