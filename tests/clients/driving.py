"""Runs the drivers: small programs that do with one third-party client what its users do, in a process of their own."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image, ImageStat

from gateway.simulator.nodes import Colour, seed_colour
from tests.support.comfy_client import Comfy
from tests.support.lab import Simulator, until
from tests.support.workflows import slow

DRIVERS = Path(__file__).parent / "drivers"
LIMIT = 60.0
# A test of `target` that was looked at once against one ComfyUI alone, which takes as long each time.
gateway_only = pytest.mark.parametrize("target", ["gateway"], indirect=True)


def mean_colour(data: str | bytes) -> Colour:
    """The mean colour of an image, which a driver gives in base64."""
    with Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data)) as image:
        red, green, blue = (round(part) for part in ImageStat.Stat(image.convert("RGB")).mean)
    return red, green, blue


def colours(results: list[dict[str, Any]]) -> list[list[Colour]]:
    """The colours of the images of each of a driver's results."""
    return [[mean_colour(image) for image in result["images"]] for result in results]


def is_near(one: Colour, other: Colour, maximum: int = 6) -> bool:
    """Whether two colours are the same but for what JPEG does to them."""
    return all(abs(a - b) <= maximum for a, b in zip(one, other, strict=True))


def picture(path: Path, colour: Colour) -> Path:
    """Write an image of one colour."""
    Image.new("RGB", (32, 32), colour).save(path)
    return path


def loading(prefix: str = "loaded") -> dict[str, Any]:
    """A prompt that loads the image whose name the driver puts in, and saves it."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": ""}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def titled(prompt: dict[str, Any]) -> dict[str, Any]:
    """The prompt with titles, by which some clients find nodes: each node's class."""
    for node in prompt.values():
        node["_meta"] = {"title": node["class_type"]}
    return prompt


class Run:
    """A driver that runs; `result` waits for its end."""

    def __init__(self, process: asyncio.subprocess.Process, given: bytes) -> None:
        self._process = process
        self._talk = asyncio.ensure_future(process.communicate(given))

    async def result(self, limit: float = LIMIT) -> dict[str, Any]:
        """What it printed last; whatever it started is ended with it."""
        try:
            async with asyncio.timeout(limit):
                out, err = await asyncio.shield(self._talk)
        except TimeoutError:
            os.killpg(self._process.pid, signal.SIGKILL)
            out, err = await self._talk
            raise AssertionError(f"the driver did not end in {limit} s:\n{out.decode()}\n{err.decode()}") from None
        assert self._process.returncode == 0, f"{out.decode()}\n{err.decode()}"
        found: dict[str, Any] = json.loads(out.decode().splitlines()[-1])
        return found

    async def close(self) -> None:
        """End it, if it still runs."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._talk


@dataclass(frozen=True)
class Driver:
    """How to start a driver: an interpreter in which its client is installed, and the program."""

    interpreter: Path
    program: str
    directory: Path
    runs: list[Run]

    async def start(self, url: str, scenario: str, **given: Any) -> Run:
        """Start a scenario against a ComfyUI."""
        process = await asyncio.create_subprocess_exec(
            self.interpreter,
            DRIVERS / self.program,
            url,
            scenario,
            cwd=self.directory,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=2**24,
        )
        run = Run(process, json.dumps(given).encode())
        self.runs.append(run)
        return run

    async def __call__(self, url: str, scenario: str, **given: Any) -> dict[str, Any]:
        """Run a scenario to its end."""
        return await (await self.start(url, scenario, **given)).result()


async def max_at_once(http: aiohttp.ClientSession, simulators: Iterable[Simulator]) -> int:
    """Count how many prompts ran at the same instant, at most, by the times in the simulators' own histories."""
    changes: list[tuple[int, int]] = []
    for simulator in simulators:
        async with http.get(f"{simulator.url}/history") as answer:
            for entry in (await answer.json()).values():
                times = [data["timestamp"] for _, data in entry["status"]["messages"]]
                changes += [(min(times), 1), (max(times), -1)]
    # Of two changes in one millisecond the end counts first, because the next prompt of a simulator begins there.
    return max(accumulate(change for _, change in sorted(changes)), default=0)


async def run_together(
    http: aiohttp.ClientSession, driver: Driver, url: str, simulators: Iterable[Simulator], seeds: list[int]
) -> int:
    """Run a prompt for each seed at the same time, see each one's own picture, and return how many ran at once."""
    prompts = [slow(seed, steps=3, step_seconds=0.08) for seed in seeds]
    results = (await driver(url, "run_together", prompts=prompts))["results"]
    assert colours(results) == [[seed_colour(seed)] for seed in seeds]
    return await max_at_once(http, simulators)


async def busy(comfy: Comfy, simulators: list[Simulator], running: int) -> Simulator:
    """Wait until so many prompts run at once; a simulator that runs one."""

    async def look() -> Simulator | None:
        at_work = []
        for simulator in simulators:
            async with comfy.http.get(f"{simulator.url}/queue") as answer:
                if (await answer.json())["queue_running"]:
                    at_work.append(simulator)
        return at_work[-1] if len(at_work) >= running else None

    found = await until(look, what=f"{running} prompts run at once")
    assert found is not None
    return found
