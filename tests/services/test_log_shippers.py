"""The examples of config/logs with the programs that they are for: logrotate, syslog-ng and jq. Loki is a stand-in."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.lab import GatewayProcess, Lab, until
from tests.support.listening import cleaned_up
from tests.support.workflows import slow

ROOT = Path(__file__).parents[2]
LOGS = ROOT / "config" / "logs"
GATEWAY_LOG = "/var/log/comfyui-gateway/gateway.log"


@pytest.fixture
async def gateway(lab: Lab) -> GatewayProcess:
    """A gateway with a log file, and its time between two lines of the fleet is short."""
    simulator = await lab.simulator()
    return await lab.gateway(simulator, log__file=lab.directory / "gateway.log", log__fleet_status=0.2)


@pytest.fixture
async def pushed() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Loki's address, and the streams that it was sent."""
    streams: list[dict[str, Any]] = []

    async def push(request: web.Request) -> web.Response:
        assert request.content_type == "application/json"
        streams.extend((await request.json())["streams"])
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/loki/api/v1/push", push)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", streams
    await cleaned_up(runner)


async def run(*command: str) -> str:
    """Run a program to its end, and return what it prints."""
    piped = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=piped, stderr=asyncio.subprocess.STDOUT)
    async with asyncio.timeout(30):
        told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    return told.decode()


async def send(lab: Lab, gateway: GatewayProcess) -> str:
    """Send a prompt, and wait for its end."""
    async with lab.http.post(f"{gateway.url}/prompt", json={"prompt": slow()}) as answer:
        prompt_id: str = (await answer.json())["prompt_id"]

    async def ended() -> bool:
        async with lab.http.get(f"{gateway.url}/history/{prompt_id}") as answer:
            return bool(await answer.json())

    await until(ended, what="the job's end")
    return prompt_id


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_logrotate_loses_no_line(lab: Lab, gateway: GatewayProcess) -> None:
    log, conf = lab.directory / "gateway.log", lab.directory / "logrotate.conf"
    text = (LOGS / "logrotate.conf").read_text().replace(GATEWAY_LOG, str(log))
    text, found = re.subn(r"systemctl kill .* comfyui-gateway", f"kill -HUP {gateway.pid}", text)
    assert found == 1
    conf.write_text(text)
    before = await send(lab, gateway)
    await run("/usr/sbin/logrotate", "--force", "--state", str(lab.directory / "state"), str(conf))
    after = await send(lab, gateway)
    rotated = lab.directory / "gateway.log.1"

    async def reopened() -> bool:
        return log.exists() and any(line["event"] == "reload_requested" for line in lines(log))

    await until(reopened, what="a new file")
    jobs = [line for line in lines(rotated) + lines(log) if line["event"] == "job"]
    expected = [(id_, status) for id_ in (before, after) for status in ("queued", "running", "done")]
    assert [(line["prompt_id"], line["status"]) for line in jobs] == expected


@pytest.mark.skipif(not Path("/usr/sbin/syslog-ng").exists(), reason="this machine has rsyslog, and Debian allows one")
async def test_syslog_ng_brings_each_line_to_loki_also_of_a_rotated_file(
    lab: Lab, gateway: GatewayProcess, pushed: tuple[str, list[dict[str, Any]]]
) -> None:
    (url, streams), log = pushed, lab.directory / "gateway.log"
    conf, rotated = lab.directory / "syslog-ng.conf", lab.directory / "gateway.log.1"
    text = (LOGS / "syslog-ng.conf").read_text().replace(GATEWAY_LOG, str(log))
    conf.write_text(text.replace("http://loki.example.com:3100", url))
    own = [f"--{name}={lab.directory / name}" for name in ("persist-file", "pidfile", "control")]
    process = await asyncio.create_subprocess_exec(
        "/usr/sbin/syslog-ng", "--foreground", "--no-caps", "--stderr", f"--cfgfile={conf}", *own
    )
    try:
        before = await send(lab, gateway)
        log.rename(rotated)
        gateway.signal(signal.SIGHUP)
        after = await send(lab, gateway)
        await gateway.stop()
        written = rotated.read_text().splitlines() + log.read_text().splitlines()

        async def all_came() -> bool:
            return len(streams) >= len(written)

        await until(all_came, what="all lines at Loki")
    finally:
        process.terminate()
        await process.wait()
    entries = [(stream["stream"], *stream["values"][0]) for stream in streams]
    assert [line for _, _, line in entries] == written
    assert before in rotated.read_text()
    assert after in log.read_text()
    for labels, time, line in entries:
        told = json.loads(line)
        assert (labels["job"], labels["level"]) == ("comfyui-gateway", told["level"])
        assert abs(int(time) / 1e9 - told["ts"]) < 1e-5
        assert set(labels) == {"job", "host", "level"}


async def test_the_documents_filters_of_jq_find_lines(lab: Lab, gateway: GatewayProcess) -> None:
    """Those that read the journal read the file here."""
    prompt_id = await send(lab, gateway)

    async def has_status() -> bool:
        return "fleet_status" in (lab.directory / "gateway.log").read_text()

    await until(has_status, what="a line of the fleet")
    filters = re.findall(
        r"journalctl -u comfyui-gateway -o cat[^|]*\| (jq .*)", (ROOT / "docs" / "logs.md").read_text()
    )
    assert len(filters) == 3
    told = [await run("sh", "-c", f"{command} < {lab.directory / 'gateway.log'}") for command in filters]
    assert prompt_id in told[0]
    assert told[1].strip()
    assert told[2].strip()
