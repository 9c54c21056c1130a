"""Run hundreds of prompts, a bounded number at a time, and save a picture of each: POST /gateway/run with asyncio.

    python many_prompts.py [COUNT [FOLDER]]

From the environment: URL, KEY, PARALLEL (prompts at a time) and LIMIT (seconds for one prompt). Needs aiohttp.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

URL = os.environ.get("URL", "http://127.0.0.1:8288").rstrip("/")
KEY = os.environ.get("KEY", "")
PARALLEL = int(os.environ.get("PARALLEL", "32"))
LIMIT = float(os.environ.get("LIMIT", "600"))
WORKFLOW: dict[str, Any] = json.loads((Path(__file__).parent / "workflow_api.json").read_text())


def graph(number: int) -> dict[str, Any]:
    """Return the workflow with values for one of the pictures: here, its colour."""
    return {**WORKFLOW, "1": {**WORKFLOW["1"], "inputs": {**WORKFLOW["1"]["inputs"], "color": number * 7919 % 2**24}}}


class Batch:
    """A batch of prompts, and its progress."""

    def __init__(self, http: aiohttp.ClientSession, count: int, folder: Path) -> None:
        self.http = http
        self.folder = folder
        self.numbers: Iterator[int] = iter(range(count))
        self.saved = self.waited = self.failed = 0

    async def worker(self) -> None:
        """Run prompts one after the other until none is left. All workers share the numbers."""
        for number in self.numbers:
            try:
                picture = await self.run(number)
            except (RuntimeError, TimeoutError, aiohttp.ClientError) as error:
                self.failed += 1
                print(f"picture {number}: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                (self.folder / f"many_{number:04}.png").write_bytes(picture)
                self.saved += 1

    async def run(self, number: int) -> bytes:
        """Return the picture of one prompt.

        The prompt_id is ours, so it stays one job however often we have to send it.
        """
        body = {"prompt": graph(number), "prompt_id": str(uuid.uuid4())}
        method, path = "POST", "/gateway/run"
        end = time.monotonic() + LIMIT
        while True:
            pause = 1.0
            try:
                async with self.http.request(method, URL + path, json=body if method == "POST" else None) as answer:
                    if answer.status == 200:
                        return await answer.read()
                    if answer.status == 202:  # It still runs: wait for the same job again.
                        method, path = "GET", f"/gateway/run/{body['prompt_id']}"
                    elif answer.status in (429, 503):  # No room at present.
                        self.waited += 1
                    else:
                        raise RuntimeError(f"{answer.status} {await answer.text()}")
                    pause = float(answer.headers.get("Retry-After", pause))
            except aiohttp.ClientConnectionError:
                if time.monotonic() > end:
                    raise
            if time.monotonic() > end:
                raise TimeoutError(f"not done after {LIMIT:g} s")
            await asyncio.sleep(pause)


async def main() -> int:
    """Run the batch of the command line. Return the exit code."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=120)
    headers = {"Accept": "image/*", **({"X-API-Key": KEY} if KEY else {})}
    connector = aiohttp.TCPConnector(limit=PARALLEL)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as http:
        # One request first, so that a wrong URL or KEY ends the program here.
        try:
            async with http.get(f"{URL}/queue") as answer:
                if answer.status in (401, 403, 404):
                    sys.exit(f"{URL}: {answer.status} {await answer.text()}")
        except aiohttp.ClientError as error:
            sys.exit(f"{URL}: {error}")
        batch = Batch(http, count, folder)
        await asyncio.gather(*(batch.worker() for _ in range(PARALLEL)))
    seconds = time.monotonic() - began
    print(f"saved {batch.saved} of {count} pictures in {seconds:.1f} s; was told to wait {batch.waited} times")
    return 1 if batch.failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
