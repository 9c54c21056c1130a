"""A gateway whose standard output or other standard streams are not there, or take nothing."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.lab import until

# Lines of requests that are longer than what a pipe takes, 64 KiB.
FILL = 400
SERVE = f"exec {sys.executable} -X utf8 -m gateway serve --backend http://127.0.0.1:1 --no-auth"


def text(log: Path) -> str:
    """What was written there."""
    return log.read_text() if log.exists() else ""


def lines(log: Path) -> dict[str, dict[str, Any]]:
    """What was logged, by event."""
    found = [json.loads(line) for line in text(log).splitlines() if line.startswith("{")]
    return {line["event"]: line for line in found}


async def serve_and_stop(script: str, log: Path, *, is_told: bool) -> None:
    """Run a gateway from its start to its stop; `is_told` if a line says that nobody heard where it listens."""
    process = await asyncio.create_subprocess_exec("sh", "-c", script)
    last = "ready_line_unwritten" if is_told else "gateway_ready"

    async def is_ready() -> bool:
        assert process.returncode is None, text(log)
        return last in lines(log)

    try:
        await until(is_ready, what=f"{script}: {last}")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0, text(log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    told = lines(log)
    assert list(told)[-1] == "gateway_stopped"
    assert ("ready_line_unwritten" in told) is is_told
    assert "Exception ignored" not in text(log)


async def test_it_serves_and_stops_without_its_standard_streams(tmp_path: Path) -> None:
    """Standard output takes nothing (a full disk, a pipe whose reader is gone), or streams are closed."""
    # To open a pipe for writing waits for a reader, and this one is gone by the first line.
    pipe = f"mkfifo {tmp_path}/pipe; true <{tmp_path}/pipe &"
    cases = [("", ">/dev/full", True), (pipe, f">{tmp_path}/pipe", True), ("", "<&- >&-", False)]
    await asyncio.gather(
        *(
            serve_and_stop(
                f"{before} {SERVE} --port 0 --data-dir {tmp_path}/{n} {redirected} 2>{tmp_path}/{n}.log",
                tmp_path / f"{n}.log",
                is_told=is_told,
            )
            for n, (before, redirected, is_told) in enumerate(cases)
        ),
        logs_to_standard_output(tmp_path),
        ends_with_2(f"{SERVE} --port 99999 --data-dir {tmp_path}/none 2>&- >&-"),
    )


async def logs_to_standard_output(folder: Path) -> None:
    """Run a gateway whose log is on a pipe that nobody reads for a while; its line for people is on standard error."""
    serve = f"COMFYUI_GATEWAY_LOG__FILE=stdout {SERVE} --port 0 --data-dir {folder}/stdout"
    piped = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("sh", "-c", serve, stdout=piped, stderr=piped, limit=1024)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            ready = (await process.stderr.readline()).decode()
            url = re.search(r"ready on (\S+)", ready)
            assert url, ready
            async with aiohttp.ClientSession() as http:
                for _ in range(FILL):
                    async with http.get(f"{url[1]}/healthz", headers={"X-Request-Id": "x" * 128}) as answer:
                        assert answer.status == 200
            process.send_signal(signal.SIGTERM)
            told = [json.loads(line) for line in (await process.stdout.read()).splitlines()]
            assert await process.wait() == 0
            assert await process.stderr.read() == b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert sum(line.get("route") == "/healthz" for line in told) == FILL
    assert told[-1]["event"] == "gateway_stopped"


async def ends_with_2(script: str) -> None:
    """Run a command that is wrong, and whose errors nobody hears."""
    process = await asyncio.create_subprocess_exec("sh", "-c", script)
    async with asyncio.timeout(30):
        assert await process.wait() == 2
