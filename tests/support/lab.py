"""Real parts for tests: simulators and gateways as processes of their own, started and ended by a `Lab`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import aiohttp

from tests.support.zygote import Forked, Zygote

T = TypeVar("T")
START_LIMIT = 30.0
_READY = re.compile(r"(https?://\S+)")
_TROUBLE = re.compile(r"Traceback|task_failed|was never awaited|never retrieved|Unclosed")


async def until(look: Callable[[], Awaitable[T]], limit: float = 20.0, what: str = "") -> T:
    """Look again and again until there is something; the test fails if there is nothing within `limit` seconds."""
    end = time.monotonic() + limit
    # If it comes soon, a short pause saves most of the wait; if not, short pauses would only keep the machine busy.
    pause = 0.0025
    while True:
        found = await look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit} s: {what or look}")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.02)


class Server:
    """A process that prints a line with its URL when it is ready. `arguments` begin with the module that it runs.

    `wrapper` is a command that starts it. With `pipes_log` what it logs is written by this process, not by itself.
    While there is a `zygote`, it is forked from that, where nothing needs an interpreter of its own.
    """

    zygote: Zygote | None = None

    def __init__(self, arguments: list[str], environment: dict[str, str] | None = None) -> None:
        self.arguments = arguments
        self.environment = environment or {}
        self.wrapper: list[str] = []
        self.pipes_log = False
        self.log = Path(tempfile.mkstemp(prefix="lab-", suffix=".log")[1])
        self.url = ""
        self._process: asyncio.subprocess.Process | Forked | None = None
        self._logging: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self.environment}
        needs_its_own = self.wrapper or self.pipes_log or "LD_PRELOAD" in environment or os.environ.get("LAB_DEV")
        with self.log.open("ab") as log:
            if self.zygote is not None and not needs_its_own:
                module, *arguments = self.arguments
                self._process = await self.zygote.fork(module, arguments, environment, log.fileno())
            else:
                self._process = await self._spawn(environment, log)
        assert self._process.stdout is not None
        if self._process.stderr is not None:
            self._logging = asyncio.create_task(self._write_log(self._process.stderr))
        async with asyncio.timeout(START_LIMIT):
            line = (await self._process.stdout.readline()).decode()
        match = _READY.search(line)
        assert match, f"{self.arguments}: {line!r}\n{self.log.read_text()}"
        self.url = match[1]

    async def _spawn(self, environment: dict[str, str], log: BinaryIO) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self.wrapper,
            sys.executable,
            "-X",
            "dev" if os.environ.get("LAB_DEV") else "utf8",
            "-m",
            *self.arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE if self.pipes_log else log,
            env=environment,
        )

    async def _write_log(self, lines: asyncio.StreamReader) -> None:
        while data := await lines.read(65536):
            with self.log.open("ab") as log:
                log.write(data)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rsplit(":", 1)[1])

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end."""
        assert self._process is not None
        async with asyncio.timeout(30):
            code = await self._process.wait()
            if self._logging is not None:
                await self._logging
        return code

    async def kill(self) -> None:
        """End it as a crash does."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def stop(self) -> int:
        """End it politely."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        return await self.wait()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.returncode is None


class Simulator(Server):
    """A simulated ComfyUI. Without a cache option it runs each node of each prompt, so that equal prompts take time."""

    def __init__(self, *options: str, port: int = 0, environment: dict[str, str] | None = None) -> None:
        has_cache = any(option.startswith(("--cache-", "--high-ram")) for option in options)
        cache = () if has_cache else ("--cache-none",)
        super().__init__(["gateway.simulator", "--port", str(port), *options, *cache], environment)

    async def fault(self, http: aiohttp.ClientSession, specification: str) -> None:
        """Switch a fault on."""
        async with http.post(f"{self.url}/simulator/faults", json={"fault": specification}) as answer:
            assert answer.status == 200, await answer.text()

    async def no_faults(self, http: aiohttp.ClientSession, name: str = "") -> None:
        """Switch one fault off, or all."""
        async with http.delete(f"{self.url}/simulator/faults", params={"fault": name} if name else {}) as answer:
            assert answer.status == 200

    async def requests(self, http: aiohttp.ClientSession) -> dict[str, int]:
        """How often each route was asked."""
        async with http.get(f"{self.url}/simulator/requests") as answer:
            found: dict[str, int] = await answer.json()
            return found

    async def set_models(self, http: aiohttp.ClientSession, folder: str, *names: str) -> None:
        """Have these models in a folder from now on."""
        async with http.post(f"{self.url}/simulator/models/{folder}", json=names) as answer:
            assert answer.status == 200

    async def recorded(self, http: aiohttp.ClientSession) -> list[dict[str, Any]]:
        """What it was sent; started with ``--record``."""
        async with http.get(f"{self.url}/simulator/recorded") as answer:
            kept: list[dict[str, Any]] = await answer.json()
            return kept


class GatewayProcess(Server):
    """A gateway."""

    def __init__(self, data_dir: Path, backends: list[str], options: tuple[str, ...], settings: dict[str, Any]) -> None:
        arguments = ["gateway", "serve", "--port", "0", "--data-dir", str(data_dir), *options]
        for url in backends:
            arguments += ["--backend", url]
        environment = {f"COMFYUI_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
        super().__init__(arguments, environment)
        self.data_dir = data_dir

    def upstream_ids(self) -> dict[str, str]:
        """The id that each job has on its backend, by its prompt_id, as the journal tells."""
        connection = sqlite3.connect(f"file:{self.data_dir / 'gateway.sqlite3'}?mode=ro", uri=True)
        with contextlib.closing(connection):
            queries = [f"SELECT prompt_id, upstream_id FROM {table}" for table in ("history", "jobs")]
            return {row[0]: row[1] for query in queries for row in connection.execute(query)}

    def log_lines(self) -> list[dict[str, Any]]:
        """What it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


class Lab:
    """Everything that a test starts; all of it is ended with the test, and what it logged is looked at."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        self.servers: list[Server] = []
        self.expect_trouble = False

    async def simulator(self, *options: str, port: int = 0, environment: dict[str, str] | None = None) -> Simulator:
        """Start a simulated ComfyUI."""
        simulator = Simulator(*options, port=port, environment=environment)
        self.servers.append(simulator)
        await simulator.start()
        return simulator

    async def simulators(self, count: int, *options: str) -> list[Simulator]:
        """Start several."""
        return list(await asyncio.gather(*(self.simulator(*options) for _ in range(count))))

    async def gateway(
        self,
        *backends: Simulator | str,
        options: tuple[str, ...] = ("--no-auth",),
        up: int | None = None,
        **settings: Any,
    ) -> GatewayProcess:
        """Start a gateway and wait until `up` backends (all, if not given) take work."""
        urls = [backend if isinstance(backend, str) else backend.url for backend in backends]
        settings.setdefault("probe__interval", 0.25)
        gateway = GatewayProcess(self.directory / "data", urls, options, settings)
        self.servers.append(gateway)
        await gateway.start()
        await self.backends_up(gateway, len(urls) if up is None else up)
        return gateway

    async def backends_up(self, gateway: GatewayProcess, count: int, limit: float = 20.0) -> None:
        """Wait until so many backends take work."""

        async def look() -> bool:
            async with self.http.get(f"{gateway.url}/readyz") as answer:
                return bool((await answer.json())["backends_up"] == count)

        await until(look, limit, f"{count} backends up")

    @contextlib.asynccontextmanager
    async def held(self, *simulators: Simulator, after: int = 0) -> AsyncIterator[None]:
        """Let no job of these backends go past a step meanwhile, so that none ends before a test has looked."""
        for simulator in simulators:
            await simulator.fault(self.http, f"silent:{after}")
        try:
            yield
        finally:
            for simulator in simulators:
                if simulator.running:
                    await simulator.no_faults(self.http, "silent")

    async def close(self) -> None:
        """End everything."""
        await self.http.close()
        running = [server for server in self.servers if server.running]
        codes = await asyncio.gather(*(server.stop() for server in running))
        for server, code in zip(running, codes, strict=True):
            assert code == 0, f"{server.arguments} ended with {code}:\n{server.log.read_text()}"
        for server in self.servers:
            text = server.log.read_text()
            server.log.unlink()
            if not self.expect_trouble:
                trouble = _TROUBLE.search(text)
                assert not trouble, text[max(0, trouble.start() - 1000) : trouble.start() + 5000]
