"""The store of a chaos run, behind a proxy: an S3 server of our own, or SeaweedFS."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from gateway.settings.storage import StorageSettings
from tests.chaos.plan import Fault
from tests.chaos.proxy import Proxy
from tests.support import seaweedfs
from tests.support.lab import Lab
from tests.support.s3_server import S3Process

# Seconds for which the gateway waits for the store.
TIMEOUT = 2.0


class Server(Protocol):
    """An S3 server as a process, with objects that outlive it."""

    @property
    def port(self) -> int:
        """Return where it listens."""

    async def start(self) -> None:
        """Start it, on the objects that an earlier one left."""

    async def kill(self) -> None:
        """End it as a power cut does."""

    async def fill(self) -> None:
        """Let it refuse whatever it is given."""

    async def free(self) -> None:
        """Let it take objects again."""


class OwnServer:
    """The S3 server of tests/support."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._process = S3Process(lab.directory / "s3")

    @property
    def port(self) -> int:
        """Return where it listens."""
        return self._process.port

    async def start(self) -> None:
        """Start it, on the objects that an earlier one left."""
        self._process = S3Process(self._process.root)
        self._lab.servers.append(self._process)
        await self._process.start()

    async def kill(self) -> None:
        """End it as a power cut does."""
        await self._process.kill()

    async def fill(self) -> None:
        """Let it refuse whatever it is given."""
        self._process.fill()

    async def free(self) -> None:
        """Let it take objects again."""
        self._process.free()


class SeaweedServer:
    """SeaweedFS. It is filled up as by its own quotas, which make a bucket read-only."""

    def __init__(self, root: Path, stack: AsyncExitStack) -> None:
        self._root = root
        self._stack = stack
        self._running: seaweedfs.Seaweed | None = None

    @property
    def port(self) -> int:
        """Return where it listens."""
        assert self._running is not None
        return self._running.port

    async def start(self) -> None:
        """Start it, on the objects that an earlier one left."""
        self._running = await self._stack.enter_async_context(seaweedfs.seaweed(self._root))

    async def kill(self) -> None:
        """End it as a power cut does."""
        assert self._running is not None
        await self._running.kill()

    async def fill(self) -> None:
        """Let it refuse whatever it is given."""
        await seaweedfs.set_read_only(self._root, is_read_only=True)

    async def free(self) -> None:
        """Let it take objects again."""
        await seaweedfs.set_read_only(self._root, is_read_only=False)


class ChaosStore:
    """A server and the way to it. `start`, then `suffer`, at the end `close`."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._proxy = Proxy(random.Random(f"store {seed}"))

    def settings(self) -> StorageSettings:
        """Return the settings of a client."""
        writer, secret = seaweedfs.WRITER
        return StorageSettings(
            url=f"s3://{seaweedfs.BUCKET}/chaos",
            endpoint=self._proxy.url,
            allow_http=True,
            access_key_id=writer,
            secret_access_key=secret,
            timeout=TIMEOUT,
        )

    def variables(self, **more: Any) -> dict[str, Any]:
        """Return the settings of a gateway, for its environment, and changes to them."""
        changed = self.settings().model_dump(exclude_unset=True) | more
        return {f"storage__{name}": value for name, value in changed.items()}

    async def start(self, *, is_full: bool = False) -> None:
        """Start the server; if it is to be full, before anybody reaches it."""
        await self._server.start()
        if is_full:
            await self.fill()
        await self._heal()

    async def kill(self) -> None:
        """Kill the server."""
        await self._server.kill()
        await self._proxy.refuse()

    async def fill(self) -> None:
        """Let the server refuse whatever it is given."""
        await self._server.fill()

    async def free(self) -> None:
        """Let the server take objects again."""
        await self._server.free()

    async def _heal(self) -> None:
        self._proxy.target = self._server.port
        await self._proxy.heal()

    async def suffer(self, faults: tuple[Fault, ...]) -> None:
        """Let faults happen, one after the other."""
        for fault in faults:
            await asyncio.sleep(fault.wait)
            await self._happen(fault)

    async def _happen(self, fault: Fault) -> None:
        match fault.kind:
            case "kill":
                await self.kill()
                await asyncio.sleep(fault.seconds)
                await self._server.start()
            case "full":
                await self.fill()
                await asyncio.sleep(fault.seconds)
                await self.free()
            case "silence":
                self._proxy.fall_silent()
                await asyncio.sleep(fault.seconds)
            case "delay":
                self._proxy.delay(0.1)
                await asyncio.sleep(fault.seconds)
            case "refuse":
                await self._proxy.refuse()
                await asyncio.sleep(fault.seconds)
            case cut:
                self._proxy.cut(cut.removeprefix("cut-"))
                await asyncio.sleep(fault.seconds)
        await self._heal()

    async def close(self) -> None:
        """Close the way to it."""
        await self._proxy.close()


MakeStore = Callable[[Lab, int], AbstractAsyncContextManager[ChaosStore]]


@asynccontextmanager
async def own_store(lab: Lab, seed: int) -> AsyncIterator[ChaosStore]:
    """Make a store of the server in tests/support, which the lab ends."""
    store = ChaosStore(OwnServer(lab), seed)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def seaweed_store(lab: Lab, seed: int) -> AsyncIterator[ChaosStore]:
    """Make a store of SeaweedFS."""
    async with AsyncExitStack() as stack:
        store = ChaosStore(SeaweedServer(lab.directory / "seaweed", stack), seed)
        try:
            yield store
        finally:
            await store.close()
