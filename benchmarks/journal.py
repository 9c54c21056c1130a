"""What durability costs and brings: FULL against NORMAL, a start with a long history, a backend's death."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import prompts, servers
from benchmarks.table import Row, in_turns, ratio
from gateway.jobs.state.submission import encode_for_journal, read
from gateway.store.protocol import Change, HistoryRecord, JobRecord
from gateway.store.sqlite import FILE_NAME, SqliteStore
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, Simulator, until
from tests.support.workflows import slow, text_to_image

ENDED, OPEN = 100_000, 1_000
KILLS = 50


async def run(rounds: int, seconds: float) -> list[Row]:
    """The rows about the journal."""
    is_quick = rounds == 1
    return [
        await _synchronous(rounds, seconds),
        await _start(rounds, ENDED // 100 if is_quick else ENDED),
        await _kills(3 if is_quick else KILLS),
    ]


async def _synchronous(rounds: int, seconds: float) -> Row:
    async with servers.python("-m", "benchmarks.bare", "backend", core=servers.LOAD_CORE) as backend:

        async def rate(synchronous: str) -> float:
            return await prompts.accepted(backend.url, seconds, STORE__SYNCHRONOUS=synchronous)

        full, normal, ratios = await in_turns(rounds, lambda: rate("FULL"), lambda: rate("NORMAL"))
    return Row(
        "jobs accepted, journal FULL", f"{full:,.0f}/s", f"journal NORMAL {normal:,.0f}/s", ratio(ratios), "shown"
    )


async def _start(rounds: int, ended: int) -> Row:
    """From the start of the process until it is ready. Its one backend is down, so that the journal alone counts."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as large,
        tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as empty,
    ):
        size = await _fill(Path(large), ended) / 2**20

        async def seconds(directory: str) -> float:
            began = time.perf_counter()
            arguments = ["-m", "gateway", "serve", "--no-auth", "--port", "0", "--data-dir", directory]
            async with servers.python(*arguments, "--backend", "http://127.0.0.1:1"):
                return time.perf_counter() - began

        mine, other, ratios = await in_turns(rounds, lambda: seconds(large), lambda: seconds(empty))
    what = f"start with {ended:,} ended and {OPEN:,} open jobs, {size:,.0f} MiB"
    return Row(what, f"{mine:.2f} s", f"an empty journal {other:.2f} s", ratio(ratios), "shown")


async def _fill(directory: Path, ended: int) -> int:
    """Write a journal; how many bytes it has."""
    store = SqliteStore(directory, "NORMAL")
    await store.open()
    changes = list(_changes(ended))
    for first in range(0, len(changes), 5000):
        await store.write(changes[first : first + 5000])
    await store.close()
    return (await asyncio.to_thread((directory / FILE_NAME).stat)).st_size


def _changes(ended: int) -> Iterator[Change]:
    body = json.dumps({"prompt": text_to_image(), "client_id": "bench"}).encode()
    submission, digest = encode_for_journal(read(body)), bytes(32)
    for n in range(ended):
        prompt_id, image = f"ended-{n:027}", {"filename": f"output_{n:05}_.png", "subfolder": "", "type": "output"}
        prompt = [n, prompt_id, text_to_image(n), {"client_id": "bench", "create_time": n}, ["7"]]
        entry = {
            "prompt": prompt,
            "outputs": {"7": {"images": [image]}},
            "status": {"status_str": "success"},
            "meta": {},
        }
        summary = {"id": prompt_id, "status": "completed", "priority": n, "create_time": n, "preview_output": image}
        yield HistoryRecord(
            "default",
            prompt_id,
            "b1",
            prompt_id,
            n,
            "success",
            digest,
            b"{}",
            json.dumps(summary).encode(),
            json.dumps(entry).encode(),
        )
    for n in range(OPEN):
        prompt_id = f"open-{n:028}"
        yield JobRecord(
            "default", prompt_id, "g", ended + n, n, "waiting", None, prompt_id, n, None, 0, digest, b"{}", submission
        )


async def _kills(count: int) -> Row:
    """From kill -9 of a backend, with one job that runs, to that job's next node on another; heard on a socket."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        lab = Lab(Path(directory))
        lab.expect_trouble = True
        try:
            simulators = {f"b{n}": simulator for n, simulator in enumerate(await lab.simulators(3), 1)}
            # As it is configured by default: it does not have to wait for a probe.
            gateway = await lab.gateway(*simulators.values(), probe__interval=2)
            comfy = Comfy(lab.http, gateway.url)
            times = [await _kill(lab, comfy, simulators) for _ in range(count)]
        finally:
            await lab.close()
    times.sort()
    p50, p99 = statistics.median(times) * 1000, times[min(count - 1, round(count * 0.99))] * 1000
    figure = f"{p50:,.0f} / {p99:,.0f} ms"
    return Row(f"kill -9 of a backend to its job running on another, {count} times: p50 / p99", figure, "", "", "shown")


async def _kill(lab: Lab, comfy: Comfy, simulators: dict[str, Simulator]) -> float:
    listener = await comfy.listen("bench", "&events=interleave")
    prompt_id = await comfy.prompt(slow(time.time_ns(), steps=1000), "bench")
    await listener.next("progress", prompt_id=prompt_id)
    victim = next(b["name"] for b in (await comfy.get("/gateway/backends"))["backends"] if b["jobs_running"])
    simulators[victim].signal(9)
    killed = time.perf_counter()
    # The sampler was executing when it died, so the next node that is said to is one of another backend.
    await listener.next("executing", prompt_id=prompt_id)
    elapsed = time.perf_counter() - killed
    await comfy.post("/interrupt", {"prompt_id": prompt_id})
    await listener.end_of(prompt_id)
    await listener.socket.close()
    await simulators[victim].wait()
    simulators[victim] = await lab.simulator(port=simulators[victim].port)

    async def all_up() -> bool:
        described: list[dict[str, Any]] = (await comfy.get("/gateway/backends"))["backends"]
        return all(backend["connected"] for backend in described)

    await until(all_up, 60, "all backends are back")
    return elapsed
