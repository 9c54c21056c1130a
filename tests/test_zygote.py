"""What is forked is what is started: the same command, files and end."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from tests.support.lab import Lab, Simulator
from tests.support.zygote import Zygote


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    """One of its own."""
    zygote = Zygote()
    yield zygote
    zygote.close()


async def test_a_command(zygote: Zygote, tmp_path: Path) -> None:
    environment = {**os.environ, "COMFYUI_GATEWAY_SERVER__PORT": "wrong"}
    with (tmp_path / "log").open("wb") as log:
        version = await zygote.fork("gateway", ["--version"], environment, log.fileno())
        wrong = await zygote.fork("gateway", ["serve", "--no-auth"], environment, log.fileno())
    assert b", version 0." in await version.stdout.read()
    assert [await version.wait(), await wrong.wait()] == [0, 2]
    assert "server.port" in (tmp_path / "log").read_text()


async def test_a_process(lab: Lab, zygote: Zygote) -> None:
    spawned, *forked = [Simulator() for _ in range(3)]
    lab.servers += [spawned, *forked]
    for server in (spawned, *forked):
        server.zygote = None if server is spawned else zygote
        await server.start()
    files = [psutil.Process(server.pid).num_fds() for server in lab.servers]
    assert files == [files[0]] * 3
    assert await spawned.stop() == await forked[0].stop() == 0
    await forked[1].kill()
    assert not forked[1].running
    assert await forked[1].wait() == -signal.SIGKILL
