"""The processes that are measured, each on a core of its own choosing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

SERVER_CORE = "0"
LOAD_CORE = "1"
_URL = re.compile(r"(http://\S+)")
_SETTINGS = {"PROBE__INTERVAL": "3600", "LOG__LEVEL": "warning", "DISPATCH__MAX_QUEUE": "1000000"}


class Running:
    """A process and where it listens."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.url.rsplit(":", 1)[1])


@contextlib.asynccontextmanager
async def python(
    *arguments: str, core: str = SERVER_CORE, checkout: Path | None = None, **environment: str
) -> AsyncIterator[Running]:
    """A Python server that prints its URL when it is ready. With `checkout` it runs the code that lies there."""
    process = await asyncio.create_subprocess_exec(
        "taskset",
        "-c",
        core,
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        # The yardstick complains of each connection that the load generator ends with.
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **environment},
        cwd=checkout,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        match = _URL.search(line)
        if match is None:
            raise RuntimeError(f"{arguments} did not start: {line!r}")
        yield Running(process, match[1])
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(30):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


@contextlib.asynccontextmanager
async def gateway(
    *backends: str,
    core: str = SERVER_CORE,
    config: Path | None = None,
    checkout: Path | None = None,
    watch: Path | None = None,
    lateness_alone: bool = False,
    authority: Path | None = None,
    module: str = "gateway",
    routing_rate: float | None = None,
    **settings: str,
) -> AsyncIterator[Running]:
    """A gateway on a fresh journal, requests not logged and backends hardly probed; without `config` open to all.

    With `watch`, a path, it is a watched one (`benchmarks.watched`) that is asked for its figures there. With
    `lateness_alone` its callbacks are not timed, and it is as fast as an ordinary one. It trusts the certificates of
    `authority`, a file.
    """
    environment = {f"COMFYUI_GATEWAY_{k}": v for k, v in {**_SETTINGS, **settings}.items()}
    if watch is not None:
        environment["WATCH_SOCKET"] = str(watch)
    if authority is not None:
        environment["SSL_CERT_FILE"] = str(authority)
    if lateness_alone:
        environment["WATCH_LATENESS_ALONE"] = "1"
    if routing_rate is not None:
        environment["ROUTING_RATE"] = str(routing_rate)
    if watch is not None:
        module = "benchmarks.watched"
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as data:
        access = ["--no-auth"] if config is None else ["--config", str(config)]
        arguments = ["-m", module, "serve", *access, "--port", "0", "--data-dir", data]
        for backend in backends:
            arguments += ["--backend", backend]
        async with python(*arguments, core=core, checkout=checkout, **environment) as running:
            yield running


@contextlib.asynccontextmanager
async def nginx(*backends: str) -> AsyncIterator[Running]:
    """nginx with one worker, proxying to backends in turns."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    port = _free_port()
    upstream = " ".join(f"server {backend.removeprefix('http://')};" for backend in backends)
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as root:
        config = Path(root) / "nginx.conf"
        config.write_text(
            f"""daemon off; worker_processes 1; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {root}; proxy_temp_path {root}; fastcgi_temp_path {root};
  uwsgi_temp_path {root}; scgi_temp_path {root}; proxy_read_timeout 300s;
  upstream comfyui {{ {upstream} keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://comfyui; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""
        )
        process = await asyncio.create_subprocess_exec("taskset", "-c", SERVER_CORE, program, "-c", str(config))
        try:
            await _listening(port)
            yield Running(process, f"http://127.0.0.1:{port}")
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _listening(port: int) -> None:
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        return
    raise RuntimeError("nginx did not start")


def install(*packages: str) -> None:
    """Debian packages that are measured with or against."""
    missing = [
        name for name in packages if shutil.which(name.removesuffix("-light"), path="/usr/sbin:/usr/bin") is None
    ]
    if missing:
        subprocess.run(["sh", "packaging/install-debian.sh", *missing], check=True)


async def wrk(url: str, seconds: float, connections: int = 32, script: str | None = None) -> dict[str, float]:
    """Load from the other core: requests a second, bytes a second, errors."""
    arguments = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write((script or "") + _REPORT)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            *arguments, "-s", file.name, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
    found: dict[str, Any] = json.loads(output.decode().strip().splitlines()[-1])
    if found["errors"]:
        raise RuntimeError(f"{url}: {found['errors']} of {found['requests']} requests failed")
    return {
        "rate": found["requests"] / found["duration"] * 1e6,
        "bytes": found["bytes"] / found["duration"] * 1e6,
        "p50": found["p50"] / 1000,
        "p99": found["p99"] / 1000,
    }


_REPORT = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"requests":%d,"duration":%d,"bytes":%d,"errors":%d,"p50":%d,"p99":%d}\\n',
    summary.requests, summary.duration, summary.bytes, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""
