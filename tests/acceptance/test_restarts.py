"""Restarts of backends: with a command of the configuration file, or by an HTTP call, also over the gateway's end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from tests.support.backend_state import described
from tests.support.comfy_client import Comfy
from tests.support.keys_api import audit
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.listening import cleaned_up
from tests.support.metrics import metric
from tests.support.workflows import slow

# Ends the ComfyUI that listens on a port, and starts a new one, as a daemon.
RESTART = """
import os, signal, subprocess, sys
pid, port, pid_file = sys.argv[1:4]
os.kill(int(pid), signal.SIGKILL)
command = [sys.executable, "-m", "gateway.simulator", "--port", port]
started = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
open(pid_file, "w").write(str(started.pid))
print("started, token=hunter2")
"""


async def serve(lab: Lab, simulators: list[Simulator], restart: dict[str, Any], up: int) -> GatewayProcess:
    """Start a gateway whose first backend can be restarted."""
    config = lab.directory / "gateway.yaml"
    backends: list[dict[str, Any]] = [{"url": simulator.url} for simulator in simulators]
    backends[0]["restart"] = restart
    config.write_text(yaml.safe_dump({"backends": backends, "auth": {"disabled": True}}))
    gateway = GatewayProcess(lab.directory / "data", [], ("--config", str(config)), {"probe__interval": 0.2})
    lab.servers.append(gateway)
    await gateway.start()
    await lab.backends_up(gateway, up)
    return gateway


@asynccontextmanager
async def hook(calls: asyncio.Queue[asyncio.Future[int]]) -> AsyncIterator[str]:
    """Serve a URL; the test answers each call."""

    async def called(_: web.Request) -> web.Response:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        calls.put_nowait(answer)
        return web.Response(status=await answer)

    app = web.Application()
    app.router.add_post("/restart", called)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/restart"
    await cleaned_up(runner)


async def test_a_command_restarts_a_poisoned_backend(lab: Lab) -> None:
    with ExitStack() as stack:
        simulators = await lab.simulators(2)
        script, pid_file = lab.directory / "restart.py", lab.directory / "pid"
        script.write_text(RESTART)
        first = simulators[0]
        arguments = [str(first.pid), str(first.port), str(pid_file)]
        root = str(Path(__file__).parents[2])
        command = ["env", f"PYTHONPATH={root}", sys.executable, str(script), *arguments]
        gateway = await serve(lab, simulators, {"command": command}, 2)
        comfy = Comfy(lab.http, gateway.url)
        assert (await described(comfy, "b2"))["restart"] is None
        stack.callback(lambda: os.kill(int(pid_file.read_text()), signal.SIGKILL))
        await first.fault(lab.http, "poisoned")
        assert (await comfy.entry(await comfy.prompt(slow())))["status"]["status_str"] == "success"

        async def well() -> bool:
            found = await described(comfy, "b1")
            return found["restart"]["outcome"] == "started" and not found["poisoned"] and found["state"] == "up"

        await until(well, what="restarted")
        restart = (await described(comfy, "b1"))["restart"]
        assert (restart["reason"], restart["last_hour"], restart["max_per_hour"]) == ("poisoned", 1, 4)
        assert restart["next_allowed"] > restart["last"]
        [line] = audit(gateway, "backend_restarted")
        assert (line["what"], line["outcome"], line["reason"], line["who"]) == ("b1", "started", "poisoned", None)
        [ended] = [each for each in gateway.log_lines() if each["event"] == "backend_restart_ended"]
        assert ended["output"] == "started, token=…"
        assert await metric(lab, gateway, 'backend_restarts_total{backend="b1",outcome="started"}') == 1
        # Nothing shows the command.
        everything = json.dumps(await comfy.get("/gateway/backends")) + gateway.log.read_text()
        assert str(script) not in everything
        await lab.backends_up(gateway, 2)


async def test_a_dead_backend_is_tried_once_more_after_a_crash_and_so_often_an_hour(lab: Lab) -> None:
    simulators = await lab.simulators(3)
    calls: asyncio.Queue[asyncio.Future[int]] = asyncio.Queue()
    async with hook(calls) as url:
        how = {"url": url, "after": 0.3, "timeout": 10, "backoff": 0.1, "max_per_hour": 3}
        gateway = await serve(lab, simulators, how, 3)
        comfy = Comfy(lab.http, gateway.url)
        # While an admin drains it, it is in the admin's hands.
        await comfy.post("/gateway/backends/b1/drain")
        await simulators[0].kill()

        async def gone() -> bool:
            return bool((await described(comfy, "b1"))["state"] == "gone")

        await until(gone, what="gone")
        await comfy.post("/gateway/backends/b1/resume")
        await asyncio.wait_for(calls.get(), 10)
        assert (await described(comfy, "b1"))["restart"]["outcome"] == "running"
        with closing(sqlite3.connect(gateway.data_dir / "gateway.sqlite3")) as journal:
            assert journal.execute("SELECT backend, reason, outcome FROM restarts").fetchall() == [("b1", "dead", "")]
        await gateway.kill()
        again = await serve(lab, simulators, how, 2)
        comfy = Comfy(lab.http, again.url)
        (await asyncio.wait_for(calls.get(), 10)).set_result(500)
        (await asyncio.wait_for(calls.get(), 10)).set_result(200)

        async def limited() -> bool:
            return any(line["event"] == "backend_restart_limited" for line in again.log_lines())

        await until(limited, what="limited")
        assert calls.empty()
        restart = (await described(comfy, "b1"))["restart"]
        assert (restart["last_hour"], restart["outcome"]) == (3, "started")
        assert [line["outcome"] for line in audit(again, "backend_restarted")] == ["failed", "started"]
        assert await metric(lab, again, 'backend_restarts_total{backend="b1",outcome="limited"}') == 1
