"""A backend that answers oddly, again and again, beside a good one: nothing of the good one's is touched.

`make odd` runs more of it: ODD_ANSWERS is how many odd answers each route gives, and how many odd events of each type.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web

from tests.fuzz import seeds
from tests.support.answer_readers import CHECKS, entry, event
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.odd_answers import Odd
from tests.support.raw_http import Between, between
from tests.support.workflows import slow

COUNT = int(os.environ.get("ODD_ANSWERS", "12"))
ROUTES = ("GET /queue", "GET /system_stats", "GET /history", "GET /object_info", "POST /prompt", "GET /view")
# So many odd answers in a row, then a proper one: a backend that never answers properly is only a backend that is down.
IN_A_ROW = 2


@dataclass
class OddBackend:
    """A hook that answers oddly in a ComfyUI's place."""

    backend: Between
    odd: Odd
    is_on: bool = True
    given: Counter[str] = field(default_factory=Counter)
    in_a_row: Counter[str] = field(default_factory=Counter)

    async def hook(self, request: web.Request, body: bytes) -> web.Response | None:
        """Answer a request, or leave it to the ComfyUI."""
        name = f"{request.method if request.method != 'HEAD' else 'GET'} /{request.path.split('/')[1]}"
        if not self.is_on or name not in ROUTES:
            return None
        self.in_a_row[request.path] = (self.in_a_row[request.path] + 1) % (IN_A_ROW + 1)
        if not self.in_a_row[request.path]:
            return None
        self.given[name] += 1
        http, url = self.backend.lab.http, self.backend.simulator.url + request.raw_path
        async with http.request(request.method, url, data=body) as proper:
            status, headers, odd = self.odd.response(await proper.read(), proper.status)
        return web.Response(status=status, headers=headers, body=odd)


async def tell_odd_events(backend: Between, odd: Odd, count: int) -> None:
    """Say odd messages of each type in a ComfyUI's place."""

    async def is_open() -> bool:
        return backend.socket is not None and not backend.socket.closed

    async def say(said: str | bytes) -> None:
        await until(is_open, what="a socket")
        assert backend.socket is not None
        await (backend.socket.send_str(said) if isinstance(said, str) else backend.socket.send_bytes(said))

    for message in seeds.messages():
        for _ in range(count):
            await say(odd.body(json.dumps(message).encode()).decode("latin-1"))
    for length in range(0, 40, 4):
        await say(bytes([0, 0, 0, length % 6])[: length + 1] + b"\xff" * length)


async def test_the_good_ones_jobs_end(lab: Lab) -> None:
    """Both go on to be probed and listened to, and no task of the gateway fails."""
    good, other = await lab.simulators(2)
    async with between(lab, other) as backend:
        gateway = await lab.gateway(good, backend.url, probe__interval=0.02, dispatch__work_stealing=False)
        odd = OddBackend(backend, Odd(1))
        backend.hook = odd.hook
        comfy = Comfy(lab.http, gateway.url)
        jobs: list[str] = []

        async def send() -> None:
            status, answer = await comfy.post("/prompt", {"prompt": slow(len(jobs), steps=1, step_seconds=0.001)})
            # Its odd refusals are refusals, as long as they have a status that is one.
            assert status == 200 or 400 <= status < 600, (status, answer)
            if status == 200:
                jobs.append(answer["prompt_id"])

        async def is_enough() -> bool:
            if len(jobs) < 6 * COUNT:
                await send()
            backend_requests = [odd.given[route] for route in ROUTES[:2]]
            return min(backend_requests) >= COUNT and len(jobs) >= COUNT

        await until(is_enough, 60.0 + COUNT, "enough odd answers")
        await tell_odd_events(backend, Odd(2), COUNT)
        odd.is_on = False
        for prompt_id in jobs:
            await comfy.entry(prompt_id, 60.0)
        await lab.backends_up(gateway, 2)
        async with lab.http.get(f"{gateway.url}/healthz") as answer:
            assert answer.status == 200
        before = {simulator.url: (await simulator.requests(lab.http))["GET /queue"] for simulator in (good, other)}

        async def are_probed() -> bool:
            counts = {s.url: (await s.requests(lab.http))["GET /queue"] for s in (good, other)}
            return all(counts[url] > before[url] + 2 for url in counts)

        await until(are_probed, what="both are probed")
        # Each is heard, too: of two jobs at a time one runs on each.
        ends = await asyncio.gather(*(comfy.prompt(slow(n, steps=2)) for n in range(4)))
        for prompt_id in ends:
            assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
        async with lab.http.get(f"{gateway.url}/metrics") as answer:
            assert "comfyui_gateway_task_failures_total{" not in await answer.text()


def test_what_is_read_has_its_types() -> None:
    """Or it is refused, as each caller expects."""
    odd = Odd(3)
    for _ in range(4 * COUNT):
        for check, good in CHECKS:
            check(odd.body(json.dumps(good).encode()))
        for example in seeds.entries():
            entry(odd.body(json.dumps({"id": example}).encode()))
        for message in seeds.messages():
            event(odd.body(json.dumps(message).encode()))
