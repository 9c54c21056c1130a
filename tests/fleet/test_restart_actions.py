"""Restart commands as real processes: they work, hang, fail, fork, print without end, or do not exist."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web

from gateway.fleet import restart_actions
from gateway.fleet.restart_actions import MAX_OUTPUT, Result, redacted, restart
from gateway.fleet.restart_policy import Outcome, Reason
from gateway.settings.healing import RestartSettings
from tests.support.lab import until
from tests.support.listening import cleaned_up


async def shell(script: str, timeout: float = 10.0) -> Result:
    """Run a script as a restart command."""
    how = RestartSettings(command=("sh", "-c", script), timeout=timeout)
    return await restart(how, "b1", Reason.POISONED, ["hunter2"])


def is_alive(pid: int) -> bool:
    """Return True if a process runs."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def has_ended(pid: int) -> bool:
    """Return True if a process does not run any more."""
    return not is_alive(pid)


async def test_its_environment_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_GATEWAY_ADMIN_KEYS", "an-admins-key")
    monkeypatch.setenv("APP_KEY", "a-users-key")
    found = await shell("env | cut -d= -f1 | sort | tr '\\n' ' '; cat; ps -o pgid= -o pid= -p $$")
    assert (found.outcome, found.detail) == (Outcome.STARTED, "ended with 0")
    names, _, group = found.output.rpartition("OLDPWD ") if "OLDPWD" in found.output else (found.output, "", "")
    allowed = {"PATH", "HOME", "LANG", "COMFYUI_GATEWAY_BACKEND", "COMFYUI_GATEWAY_REASON", "PWD", "SHLVL", "_"}
    words = [word for word in names.split() if not word.isdigit()]
    assert set(words) <= allowed
    assert {"COMFYUI_GATEWAY_BACKEND", "COMFYUI_GATEWAY_REASON"} <= set(words)
    numbers = [word for word in (names + group).split() if word.isdigit()]
    assert len(set(numbers)) == 1, "it leads a group of its own"


async def test_it_fails_or_is_not_there(tmp_path: Path) -> None:
    found = await shell("echo password=hunter2 'Authorization: Bearer abc.def' why; exit 3")
    assert (found.outcome, found.detail) == (Outcome.FAILED, "ended with 3")
    assert found.output.endswith("why")
    assert not any(secret in found.output for secret in ("hunter2", "abc.def"))
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for path, reason in ((tmp_path / "none", "No such file"), (plain, "Permission denied")):
        found = await restart(RestartSettings(command=(str(path), "hunter2")), "b1", Reason.DEAD)
        assert found.outcome is Outcome.FAILED
        assert reason in found.detail
        assert str(path) not in found.detail


async def test_it_hangs_and_all_of_its_group_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_actions, "GRACE_SECONDS", 0.2)
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 300 & echo $! >{pids}; echo $$ >>{pids}; echo begun; while :; do sleep 1; done"
    found = await shell(script, timeout=0.3)
    assert (found.outcome, found.output) == (Outcome.TIMEOUT, "begun")
    for pid in map(int, pids.read_text().split()):
        await until(partial(has_ended, pid), what=f"{pid} has ended")


async def test_a_server_that_it_starts_lives_on(tmp_path: Path) -> None:
    """It has left the group and holds the pipe, so the end of the command counts, not the end of its output."""
    pid_file = tmp_path / "pid"
    began = time.monotonic()
    found = await shell(f"setsid sleep 300 & echo $! >{pid_file}; echo started")
    assert (found.outcome, found.output) == (Outcome.STARTED, "started")
    pid = int(pid_file.read_text())
    assert is_alive(pid)
    assert time.monotonic() - began < 10
    os.kill(pid, signal.SIGKILL)


async def test_it_prints_without_end() -> None:
    """Other tasks have their turn meanwhile, and little is kept."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    counting = asyncio.create_task(count())
    found = await shell("yes hunter2", timeout=0.4)
    counting.cancel()
    assert found.outcome is Outcome.TIMEOUT
    assert 0 < len(found.output) <= MAX_OUTPUT + 1
    assert "hunter2" not in found.output
    assert turns > 5


async def test_no_part_of_a_secret_is_told() -> None:
    """Control characters are left out, so that the end which is kept is shorter than what may be logged."""
    found = await shell("printf 'password=a-long-secret'; printf '\\033[0m%.0s' $(seq 1997); printf '\\nwhy\\n'")
    assert found.output == "why"


async def test_a_stopping_gateway_ends_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    running = asyncio.create_task(shell(f"echo $$ >{pid_file}; sleep 300"))

    async def begun() -> str:
        return pid_file.read_text() if pid_file.exists() else ""

    pid = int(await until(begun))
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert not is_alive(pid)


async def test_an_http_call() -> None:
    seen: list[tuple[str, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.method, request.headers.get("X-Token")))
        status = int(request.match_info["status"])
        if status == 0:
            await asyncio.Event().wait()
        return web.Response(status=status, headers={"Location": "/200"} if status == 302 else {})

    app = web.Application()
    app.router.add_route("*", "/{status}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def call(path: str) -> tuple[Outcome, str]:
        how = RestartSettings(url=f"{url}/{path}", method="PUT", headers={"X-Token": "hunter2"}, timeout=0.3)
        found = await restart(how, "b1", Reason.DEAD)
        assert "hunter2" not in found.detail
        return found.outcome, found.detail

    assert await call("204") == (Outcome.STARTED, "answered 204")
    assert await call("302") == (Outcome.FAILED, "answered 302")
    assert await call("500") == (Outcome.FAILED, "answered 500")
    assert (await call("0"))[0] is Outcome.TIMEOUT
    assert seen == [("PUT", "hunter2")] * 4
    await cleaned_up(runner)
    assert (await call("204"))[0] is Outcome.FAILED


def test_control_characters_are_left_out() -> None:
    assert redacted("a\x1b[31mb\x1b[0m\tc\x07\nd\x9b", []) == "abc\nd"
