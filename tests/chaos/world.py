"""Four simulated backends, a proxy before each, and a gateway: all that goes wrong, goes wrong here."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.plan import BACKENDS, LOST_AFTER, Fault
from tests.chaos.proxy import Proxy, reserved
from tests.support import disk
from tests.support.clock import Clock
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.webhook_receiver import LOCAL

SETTINGS = {
    "probe__interval": 0.3,
    "probe__timeout": 1.0,
    "probe__lost_after": LOST_AFTER,
    "dispatch__max_queue": 6,
    "dispatch__send_timeout": 1.0,
    # What is shown is that no job is lost, not that one is given up in time.
    "dispatch__attempts": 100,
    "log__requests": False,
    **LOCAL,
}
# Bytes that a file may have on a full disk: enough for SQLite to open a journal, and too few to write more to it.
ROOM = 65536
# Seconds after a fault's end in which what follows from it may still happen.
AFTERMATH = 1.5


@dataclass(frozen=True)
class Setup:
    """How many backends there are, and with which options and settings the gateway is started.

    Without clocks that can be set, and a log that is written on a full disk, all of it starts much faster.
    """

    backends: int = BACKENDS
    options: tuple[str, ...] = ("--no-auth",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    has_clocks: bool = True


@dataclass(frozen=True)
class Happened:
    """A fault that was carried out, in seconds since 1970."""

    backend: int
    kind: str
    began: float
    ended: float


class World:
    """`start`, then `suffer`, then `heal`. Its processes are ended by the lab."""

    def __init__(self, lab: Lab, directory: Path, seed: int, setup: Setup | None = None) -> None:
        self.setup = setup or Setup()
        # Called with the number of a backend that is gone, before its files are.
        self.before_destruction: Callable[[int], None] = _nothing
        self.happened: list[Happened] = []
        self.gateways: list[GatewayProcess] = []
        self.simulators: list[Simulator] = []
        self._lab = lab
        self._directory = directory
        self._holder, self._port = reserved()
        self._proxies = [Proxy(random.Random(f"{seed}/{number}")) for number in range(self.setup.backends)]
        self.clock = Clock(directory / "gateway.clock")
        self._clocks = [Clock(directory / f"b{number}.clock") for number in range(self.setup.backends)]
        self._is_full = False
        self._changing = asyncio.Lock()

    @property
    def url(self) -> str:
        """Where the gateway listens, whichever it is."""
        return f"http://127.0.0.1:{self._port}"

    def outputs(self, number: int) -> Path:
        """Where a backend's images are: its disk outlives its process."""
        return self._directory / f"b{number}" / "output"

    async def start(self) -> None:
        """Start everything, and wait until all backends take work."""
        numbers = range(self.setup.backends)
        self.simulators = list(await asyncio.gather(*(self._simulator(number) for number in numbers)))
        for number in numbers:
            await self._open_way(number)
        await self._gateway()
        await self.all_up()

    async def all_up(self) -> None:
        """Wait until all backends take work."""
        await self._lab.backends_up(self.gateways[-1], self.setup.backends, 60)

    async def _simulator(self, number: int) -> Simulator:
        base = str(self._directory / f"b{number}")
        environment = self._clocks[number].environment if self.setup.has_clocks else {}
        simulator = await self._lab.simulator("--base-dir", base, environment=environment)
        Clock.tidy(simulator.pid)
        return simulator

    async def _open_way(self, number: int) -> None:
        self._proxies[number].target = self.simulators[number].port
        await self._proxies[number].heal()

    async def _gateway(self) -> None:
        options = (*self.setup.options, "--port", str(self._port))
        urls = [proxy.url for proxy in self._proxies]
        gateway = GatewayProcess(self._directory / "data", urls, options, {**SETTINGS, **self.setup.settings})
        if self.setup.has_clocks:
            gateway.environment |= self.clock.environment
            # On a full disk no log could be written either, and what is in it is needed.
            gateway.pipes_log = True
        if self._is_full:
            gateway.wrapper = ["prlimit", f"--fsize={ROOM}:unlimited"]
        self._lab.servers.append(gateway)
        await gateway.start()
        Clock.tidy(gateway.pid)
        self.gateways.append(gateway)

    async def suffer(self, lane: int, faults: tuple[Fault, ...]) -> None:
        """Let a backend's faults happen, one after the other."""
        for fault in faults:
            await asyncio.sleep(fault.wait)
            began = time.time()
            await self._happen(lane, fault)
            self.happened.append(Happened(lane, fault.kind, began, time.time()))

    async def die_now_and_then(self, kills: tuple[Fault, ...]) -> None:
        """Kill the gateway, and start it again on the same data."""
        for kill in kills:
            await asyncio.sleep(kill.wait)
            await self.die(kill.seconds)

    async def die(self, seconds: float) -> None:
        """Kill the gateway, and start it again after so many seconds."""
        async with self._changing:
            await self.gateways[-1].kill()
            await asyncio.sleep(seconds)
            await self._gateway()

    async def be_disturbed(self, faults: tuple[Fault, ...]) -> None:
        """Let happen to the gateway's machine what is to happen, one after the other."""
        for fault in faults:
            await asyncio.sleep(fault.wait)
            match fault.kind.split(":")[1:]:
                case ["clock", by]:
                    await _astray(self.clock, by, fault.seconds)
                case ["full-disk"]:
                    await self._fill()
                    await asyncio.sleep(fault.seconds)
                    await self._free()
                case ["killed-on-full-disk"]:
                    await self._fill()
                    await asyncio.sleep(fault.seconds / 2)
                    await self.die(0.0)
                    await asyncio.sleep(fault.seconds / 2)
                    await self._free()

    async def _fill(self) -> None:
        async with self._changing:
            self._is_full = True
            disk.fill(self.gateways[-1].pid, ROOM)

    async def _free(self) -> None:
        async with self._changing:
            self._is_full = False
            disk.free(self.gateways[-1].pid)

    async def _happen(self, number: int, fault: Fault) -> None:
        simulator, proxy = self.simulators[number], self._proxies[number]
        match fault.kind:
            case "kill":
                await simulator.kill()
                await proxy.refuse()
                await asyncio.sleep(fault.seconds)
                self.simulators[number] = await self._simulator(number)
            case "destroy":
                await self._destroy(number)
                await asyncio.sleep(fault.seconds)
                self.simulators[number] = await self._simulator(number)
            case "freeze" | "pause":
                simulator.signal(signal.SIGSTOP)
                await asyncio.sleep(fault.seconds)
                simulator.signal(signal.SIGCONT)
            case "refuse" | "silence" | "drop" | "delay" | "cut-answer" | "cut-question":
                await self._disturb(proxy, fault.kind)
                await asyncio.sleep(fault.seconds)
            case jump if jump.startswith("clock:"):
                await _astray(self._clocks[number], jump.removeprefix("clock:"), fault.seconds)
            case of_the_simulator:
                await simulator.fault(self._lab.http, of_the_simulator)
                await asyncio.sleep(fault.seconds)
                await simulator.no_faults(self._lab.http)
                if of_the_simulator == "hang":
                    # What it swallowed it never answers; a process that hangs is ended, and its connections with it.
                    proxy.drop()
        await self._open_way(number)

    async def _destroy(self, number: int) -> None:
        """End a backend, and delete all that it has."""
        await self.simulators[number].kill()
        await self._proxies[number].refuse()
        self.before_destruction(number)
        shutil.rmtree(self._directory / f"b{number}")

    async def destroy_all(self) -> None:
        """End all backends, and delete all that they have."""
        for number in range(self.setup.backends):
            await self._destroy(number)
        await self._lab.backends_up(self.gateways[-1], 0, 60)

    async def _disturb(self, proxy: Proxy, kind: str) -> None:
        match kind:
            case "refuse":
                await proxy.refuse()
            case "silence":
                proxy.fall_silent()
            case "drop":
                proxy.drop()
            case "delay":
                proxy.delay(0.1)
            case _:
                proxy.cut(kind.removeprefix("cut-"))

    def drop_connections(self) -> None:
        """Break all connections to the backends, so that none is open but those that are in use."""
        for proxy in self._proxies:
            proxy.drop()

    async def backends_idle(self) -> None:
        """Wait until no backend has anything left."""
        for simulator in self.simulators:

            async def look(url: str = simulator.url) -> bool:
                async with self._lab.http.get(f"{url}/prompt") as answer:
                    return bool((await answer.json())["exec_info"]["queue_remaining"] == 0)

            await until(look, 60, "the backend is idle")

    async def close(self) -> None:
        """Close the proxies; the processes are the lab's."""
        for proxy in self._proxies:
            await proxy.close()
        self._holder.close()


async def _astray(clock: Clock, by: str, seconds: float) -> None:
    clock.step(by)
    await asyncio.sleep(seconds)
    clock.step("+0s")


def _nothing(_: int) -> None:
    pass
