"""The programs of examples/, run as their README says, against a gateway with keys before two backends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.simulator.nodes import seed_colour
from gateway.webhooks.signing import new_secret, signed_headers
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.pictures import colour
from tests.support.runs import Runner
from tests.support.security_world import KEYS, start
from tests.support.webhook_api import Api
from tests.support.webhook_receiver import LOCAL
from tests.support.workflows import slow

EXAMPLES = Path(__file__).parents[2] / "examples"
README = (EXAMPLES / "README.md").read_text()
# The last column of the table, by the file of the first.
COMMANDS: dict[str, str] = dict(re.findall(r"^\| \[([\w.]+)\]\(\1\) \|.*\| `([^`|]+)` \|$", README, re.MULTILINE))
# Files that are no program, or are started as a section of its own says.
OTHERS = {"webhook_receiver.py", "workflow_api.json", "text_to_image_api.json", "requirements.txt", "README.md"}
DEMO, INSTALL, RECEIVE, SEND = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
FAILING = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 255}},
    "2": {"class_type": "FailNode", "inputs": {"image": ["1", 0], "message": "boom"}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "never"}},
}
MAX_WAITING = 2
# The seed of one workflow, and the colour of the other.
COLOUR = seed_colour(4227264)


@dataclass(frozen=True)
class World:
    """A gateway, and the environment of a shell in which the README's packages are installed."""

    lab: Lab
    gateway: GatewayProcess
    environment: dict[str, str]

    async def start(self, command: str, folder: Path, name: str = "anna", **more: str) -> asyncio.subprocess.Process:
        """Start a command of the README in a folder that has the examples."""
        if not (folder / "examples").exists():
            (folder / "examples").symlink_to(EXAMPLES)
        environment = {**self.environment, "URL": self.gateway.url, "KEY": KEYS.get(name, name), **more}
        return await asyncio.create_subprocess_exec(
            "bash", "-ec", command, cwd=folder, env=environment, stdout=-1, stderr=-1
        )

    async def run(self, command: str, folder: Path, name: str = "anna", **more: str) -> tuple[int | None, str, str]:
        """Run one; (exit code, standard output, standard error)."""
        process = await self.start(command, folder, name, **more)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, out.decode(), err.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, python_with_clients: Path) -> AsyncIterator[World]:
    """One gateway for all tests."""
    lab = Lab(tmp_path_factory.mktemp("examples"))
    options = ("--steps-per-second", "200")
    try:
        gateway = await start(lab, *await lab.simulators(2, *options), run__max_waiting=MAX_WAITING, **LOCAL)
        path = f"{python_with_clients.parent}:{os.environ['PATH']}"
        yield World(lab, gateway, {"PATH": path, "HOME": str(lab.directory), "PYTHONUNBUFFERED": "1"})
    finally:
        await lab.close()


async def _has_open(runner: Runner, count: int) -> bool:
    return len(await runner.open_jobs()) == count


async def _was_refused(world: World) -> bool:
    return any(line.get("status") == 429 for line in world.gateway.log_lines())


def pictures(folder: Path) -> dict[str, bytes]:
    """Return the pictures that an example saved, by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / "pictures").iterdir())}


@pytest.mark.usefixtures("node_with_clients")
@pytest.mark.asyncio(loop_scope="module")
async def test_each_example_saves_its_picture(world: World, tmp_path: Path) -> None:
    """All at once, each in a folder of its own."""

    async def try_it(name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        code, out, err = await world.run(COMMANDS[name], folder)
        assert (code, err) == (0, ""), name
        ((saved, data),) = pictures(folder).items()
        assert f"saved pictures/{saved}\n" in out, name
        assert data.startswith(b"\x89PNG"), name
        if name == "named_workflow.py":  # It runs with another seed each time.
            assert "stored lighthouse with the parameters prompt, negative, seed" in out
        else:
            assert colour(data) == COLOUR, name

    await asyncio.gather(*(try_it(name) for name in COMMANDS if name != "many_prompts.py"))


@pytest.mark.asyncio(loop_scope="module")
async def test_many_prompts_wait_when_they_are_told_to(world: World, tmp_path: Path) -> None:
    """While other runs of the tenant take all room, then there is some."""
    ben = Runner(world.lab, world.gateway, KEYS["ben"])
    long = {"prompt": slow(steps=400, step_seconds=0.05), "cancel_on_disconnect": True}
    others = [asyncio.create_task(ben.run(long)) for _ in range(MAX_WAITING)]
    await until(lambda: _has_open(ben, MAX_WAITING), what="runs that take all room")
    command = f"{COMMANDS['many_prompts.py']} 12"
    running = asyncio.create_task(world.run(command, tmp_path, "ben", PARALLEL="4"))
    await until(lambda: _was_refused(world), what="a prompt that finds no room")
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    code, out, err = await running
    assert (code, err) == (0, "")
    told = re.fullmatch(r"saved 12 of 12 pictures in [\d.]+ s; was told to wait (\d+) times\n", out)
    assert told, out
    assert int(told[1]) > 0
    wanted = {f"many_{n:04}.png": seed_colour(n * 7919) for n in range(12)}
    assert {name: colour(data) for name, data in pictures(tmp_path).items()} == wanted


@pytest.mark.usefixtures("node_with_clients")
@pytest.mark.asyncio(loop_scope="module")
async def test_an_example_that_fails_says_why(world: World, tmp_path: Path) -> None:
    """With a graph that fails, or, where a program has its own graph, with a wrong key."""
    (tmp_path / "failing.json").write_text(json.dumps(FAILING))
    has_graph = {"many_prompts.py", "named_workflow.py"}
    tries = [(COMMANDS[name], "nobodys-key") for name in sorted(has_graph)]
    tries += [(f"{COMMANDS[name]} failing.json", "mate") for name in sorted(set(COMMANDS) - has_graph)]
    ends = await asyncio.gather(*(world.run(command, tmp_path, key) for command, key in tries))
    for (command, _), (code, out, err) in zip(tries, ends, strict=True):
        assert code == 1, (command, out, err)
        assert "Traceback" not in err, err
        assert re.search("boom" if "failing" in command else "401|A valid API key is needed", err), (command, err)
    assert not (tmp_path / "pictures").exists() or not pictures(tmp_path)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_receiver_does_the_work_of_each_event_once(world: World, tmp_path: Path) -> None:
    """One that was left by an earlier run, one that the gateway delivers twice, and none with a wrong signature."""
    secret = new_secret()
    left = {"type": "job.failed", "data": {"prompt_id": "of-yesterday"}}
    with sqlite3.connect(tmp_path / "webhooks.sqlite3") as inbox:
        inbox.execute("CREATE TABLE events (id TEXT PRIMARY KEY, body BLOB, done INTEGER DEFAULT 0)")
        inbox.execute("INSERT INTO events (id, body) VALUES ('evt_left', ?)", (json.dumps(left),))
    inbox.close()
    export, start_it = RECEIVE.splitlines()
    assert export.startswith("export WEBHOOK_SECRET=")
    process = await world.start(f"exec {start_it.removesuffix(' &')}", tmp_path, WEBHOOK_SECRET=secret, PORT="0")
    assert process.stdout is not None

    async def line() -> str:
        return (await asyncio.wait_for(process.stdout.readline(), 20)).decode() if process.stdout else ""

    try:
        url = (await line()).split()[-1]
        assert await line() == "evt_left job.failed of-yesterday\n"
        assert "http://127.0.0.1:8300/" in SEND
        code, out, _ = await world.run(SEND.replace("http://127.0.0.1:8300/", url), tmp_path, WEBHOOK_SECRET=secret)
        assert code == 0
        event, *told = (await line()).split()
        assert told == ["job.succeeded", json.loads(out)["prompt_id"], told[-1]]
        assert told[-1].endswith(".png")
        await _replayed(world, event)
        assert await _answer(world, url, "evt_forged", new_secret()) == 401
        assert await _answer(world, url, "evt_last", secret) == 204
        assert (await line()).split() == ["evt_last", "job.failed", "of-yesterday"]
    finally:
        process.kill()
        await process.communicate()


async def _replayed(world: World, event: str) -> None:
    """Have the gateway deliver an event again, and wait until it has."""
    api = Api(world.lab, world.gateway, KEYS["anna"])

    async def delivered(attempts: int) -> bool:
        found = [each for each in await api.deliveries(state="delivered") if each["event_id"] == event]
        return bool(found) and len(found[0]["attempts"]) >= attempts

    await until(lambda: delivered(1))
    status, said = await api("POST", f"/events/{event}/replay")
    assert status == 202, said
    await until(lambda: delivered(2))


async def _answer(world: World, url: str, event: str, secret: str) -> int:
    """Send an event of our own. Return the status of the answer."""
    body = json.dumps({"type": "job.failed", "data": {"prompt_id": "of-yesterday"}}).encode()
    headers = signed_headers([secret], event, int(time.time()), body)
    async with world.lab.http.post(url, data=body, headers=headers) as answer:
        return answer.status


def test_the_table_has_each_file() -> None:
    there = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert set(COMMANDS) | OTHERS == there
    assert set(re.findall(r"^\| \[([\w.]+)\]\(\1\)", README, re.MULTILINE)) == there - {"README.md"}
    assert DEMO == "make demo\n"
    assert INSTALL.splitlines()[-1] == "pip install -r examples/requirements.txt"


def test_the_tests_have_the_packages_that_readers_install() -> None:
    """The versions that the tests pin are permitted by examples/requirements.txt."""
    pinned: dict[str, Any] = dict(
        re.findall(r"^([\w.-]+)==([\d.]+)", (Path(__file__).parent / "requirements.txt").read_text(), re.MULTILINE)
    )
    wanted = re.findall(r"^([\w-]+)>=([\d.]+)$", (EXAMPLES / "requirements.txt").read_text(), re.MULTILINE)
    assert len(wanted) == 3
    for name, least in wanted:
        assert [int(part) for part in pinned[name].split(".")] >= [int(part) for part in least.split(".")], name
