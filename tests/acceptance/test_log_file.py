"""The log in a file, rotated while requests come; and on standard output."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import stat
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.commands import command
from tests.support.disk import full
from tests.support.lab import Lab, until
from tests.support.workflows import text_to_image

ROTATIONS, CALLERS = 3, 2
GUIDE = ["ts", "prompt_id", "status", "duration_ms", "model", "error"]
MODEL = "sd_xl_base_1.0.safetensors"
STATUSES = ["queued", "running", "done"]


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; each of them parses."""
    return [json.loads(line) for line in path.read_text().splitlines()]


async def has(paths: list[Path], text: str) -> bool:
    """Whether one of the files holds a text."""
    return any(path.exists() and text in path.read_text() for path in paths)


async def test_no_line_is_lost_or_doubled_when_the_file_is_rotated(lab: Lab, tmp_path: Path) -> None:
    """As logrotate does it with `postrotate kill -HUP`, and once without a signal."""
    log = tmp_path / "gateway.log"
    gateway = await lab.gateway(await lab.simulator("--steps-per-second", "1000"), log__file=log)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    asked: list[str] = []
    ends = asyncio.Event()

    async def call(number: int) -> None:
        while not ends.is_set():
            asked.append(f"{number}-{len(asked)}")
            async with lab.http.get(f"{gateway.url}/queue", headers={"X-Request-Id": asked[-1]}) as answer:
                await answer.read()

    callers = [asyncio.create_task(call(number)) for number in range(CALLERS)]
    async with lab.http.post(f"{gateway.url}/prompt", json={"prompt": text_to_image(model=MODEL)}) as answer:
        prompt_id = (await answer.json())["prompt_id"]
    for turn in range(ROTATIONS):
        log.rename(tmp_path / f"gateway.log.{turn}")
        if turn:
            gateway.signal(signal.SIGHUP)
        await until(partial(has, [log], "ts"), what="lines in a new file")
    files = [tmp_path / f"gateway.log.{turn}" for turn in range(ROTATIONS)] + [log]
    await until(partial(has, files, f'"{prompt_id}","status":"done"'), what="the job's end")
    ends.set()
    await asyncio.gather(*callers)
    assert await gateway.stop() == 0
    written = [line for file in files for line in lines(file)]
    assert sorted(line["request_id"] for line in written if line.get("route") == "/queue") == sorted(asked)
    phases = [line for line in written if line["event"] == "job"]
    assert [(line["prompt_id"], line["status"]) for line in phases] == [(prompt_id, status) for status in STATUSES]
    assert all(list(line)[:6] == GUIDE and line["model"] == MODEL and line["attempt"] == 1 for line in phases)
    assert [line["wait_ms"] is None for line in phases] == [True, False, False]
    reread = [line["rereads"] for line in written if line["event"] == "reload_requested"]
    assert reread == ["log.file"] * (ROTATIONS - 1)
    assert all(next(iter(line)) == "ts" and isinstance(line["ts"], float) for line in written)
    assert not gateway.log.read_text()


async def test_a_full_disk_loses_lines_and_the_log_tells_how_many(lab: Lab, tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    gateway = await lab.gateway("http://127.0.0.1:1", up=0, log__file=log)

    async def ask(id_: str) -> None:
        async with lab.http.get(f"{gateway.url}/queue", headers={"X-Request-Id": id_}) as answer:
            assert answer.status == 200

    with full(gateway.pid, log.stat().st_size):
        for number in range(5):
            await ask(f"lost-{number}")
    await until(partial(has, [log], '"log_lines_lost"'), what="the line that tells it")
    (told,) = [line for line in lines(log) if line["event"] == "log_lines_lost"]
    assert told["lines"] >= 5
    assert "lost-" not in log.read_text()
    await ask("kept")
    assert any(line.get("request_id") == "kept" for line in lines(log))


async def test_a_file_that_can_not_be_opened_is_said(tmp_path: Path) -> None:
    """The first words alone: the reason is the system's."""
    for path, code, said in (("/proc/gateway.log", 1, "can't be opened: "), (str(tmp_path / "no" / "log"), 2, "")):
        environment = {"COMFYUI_GATEWAY_LOG__FILE": path}
        found = await command("serve", "--backend", "http://127.0.0.1:1", cwd=tmp_path, environment=environment)
        assert found[0] == code
        assert found[2].startswith(f"comfyui-gateway: log.file{f': {path} {said}' if said else ' (from '}"), found[2]


async def test_the_flag_for_people_wins(tmp_path: Path) -> None:
    """Seen on the warning of a gateway that can't listen on an address of nobody's."""
    path = tmp_path / "gateway.yaml"
    path.write_text("log: {format: json, audit: false}\nbackends: [{url: 'http://127.0.0.1:1'}]")
    flags = ["--config", path.name, "--no-auth", "--host", "192.0.2.1"]
    for more, form in (
        (["--log-format", "console"], r"\S+ \S+ warning configuration_dangerous +message="),
        ([], r'\{"ts"'),
    ):
        code, _, error = await command("serve", *flags, *more, cwd=tmp_path)
        assert code == 1
        assert re.match(form, error), error
