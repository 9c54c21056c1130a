"""A job whose result is too large ends as it ended; one whose result is unreadable fails alone."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from gateway.comfy.backend_errors import BackendError, BadAnswer, TimedOut, Unreachable, UnreadableEntry
from gateway.jobs.lifecycle.completion import MAX_REFUSED, MAX_TIMED_OUT, MAX_UNREADABLE, Tries
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.raw_http import Between, between
from tests.support.workflows import slow

# Bytes of a result that the gateways here take.
MAX = 1_000_000


class Large:
    """Answers for one prompt's entry with a result that does not end."""

    def __init__(self, backend: Between) -> None:
        self.backend = backend
        self.asked = 0
        self.upstream_id = ""

    async def hook(self, request: web.Request, _: bytes) -> Any:
        """Answer a request, or leave it to the ComfyUI."""
        if not self.upstream_id or request.path != f"/history/{self.upstream_id}":
            return None
        self.asked += 1
        return web.Response(body=self.entry(), content_type="application/json")

    async def entry(self) -> AsyncIterator[bytes]:
        """An entry of 400 MB."""
        yield b'{"%b": {"prompt": [1, "x", {}, {}, []], "outputs": {"2": {"text": ["' % self.upstream_id.encode()
        for _ in range(400):
            yield b"x" * 1_000_000


async def state_of(comfy: Comfy) -> Any:
    """What the gateway tells of its first backend."""
    return (await comfy.get("/gateway/backends"))["backends"][0]


async def test_its_backend_and_the_others_go_on(lab: Lab) -> None:
    simulator = await lab.simulator()
    async with between(lab, simulator) as backend:
        large = Large(backend)
        backend.hook = large.hook
        gateway = await lab.gateway(backend.url, history__max_result=MAX)
        comfy = Comfy(lab.http, gateway.url)
        listener = await comfy.listen("c")
        bad = await comfy.prompt(slow(1, steps=6), "c")
        await comfy.running(bad)
        large.upstream_id = backend.ids[0]
        assert (await state_of(comfy))["state"] == "up"
        good = [await comfy.prompt(slow(n, steps=1)) for n in range(3)]
        entries = [await comfy.entry(prompt_id) for prompt_id in (*good, bad)]
        assert [entry["status"]["status_str"] for entry in entries] == ["success"] * 4
        assert entries[-1]["prompt"][2] == slow(1, steps=6)
        assert entries[-1]["outputs"] == {}
        assert f"{MAX} (history.max_result)" in entries[-1]["gateway_left_out"]
        await listener.next("execution_success", prompt_id=bad)
        await listener.end_of(bad)
        assert large.asked == 1
        assert len(backend.ids) == len(set(backend.ids)) == 4
        assert (await simulator.requests(lab.http))["GET /ws"] == 1


async def test_a_start_does_not_wait_for_it(lab: Lab) -> None:
    """Nor does it go to another backend: a job that was running when the gateway was killed."""
    simulator = await lab.simulator()
    async with between(lab, simulator) as backend:
        large = Large(backend)
        backend.hook = large.hook
        gateway = await lab.gateway(backend.url, history__max_result=MAX)
        comfy = Comfy(lab.http, gateway.url)
        bad = await comfy.prompt(slow(1, steps=4))
        await comfy.running(bad)
        await gateway.kill()
        large.upstream_id = backend.ids[0]

        async def is_over() -> bool:
            async with lab.http.get(f"{simulator.url}/history/{large.upstream_id}") as answer:
                return bool(await answer.json())

        await until(is_over, what="the job's end")
        again = await lab.gateway(backend.url, await lab.simulator(), history__max_result=MAX)
        comfy = Comfy(lab.http, again.url)
        entry = await comfy.entry(bad)
        assert "history.max_result" in str(entry["status"]["messages"])
        assert len(backend.ids) == 1
        for prompt_id in [await comfy.prompt(slow(n)) for n in range(2)]:
            assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"


async def test_a_job_that_says_too_much_at_once_ends(lab: Lab) -> None:
    """Its socket is closed each time; the third time the job fails. One that did so once is told nothing."""
    simulator = await lab.simulator()
    async with between(lab, simulator) as backend:
        gateway = await lab.gateway(backend.url)
        comfy = Comfy(lab.http, gateway.url)
        bad = await comfy.prompt(slow(1, steps=1000))
        await comfy.running(bad)
        for _ in range(3):
            await lab.backends_up(gateway, 1)
            socket = backend.socket
            assert socket is not None

            async def is_closed(socket: web.WebSocketResponse = socket) -> bool:
                return socket.closed

            # The head of a message of 100 MB: the rest is never sent.
            assert socket._req is not None
            assert socket._req.transport is not None
            socket._req.transport.write(b"\x81\x7f" + (100 * 2**20).to_bytes(8, "big"))
            await until(is_closed, what="the socket is closed")
        entry = await comfy.entry(bad)
        assert "more than 67108864 bytes" in str(entry["status"]["messages"])
        after = await comfy.prompt(slow(2))
        assert (await comfy.entry(after))["status"]["status_str"] == "success"


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (UnreadableEntry("x", is_final=True), 1),
        (UnreadableEntry("x", is_final=False), MAX_UNREADABLE),
        (BadAnswer("x", 500), MAX_REFUSED),
        (TimedOut("x"), MAX_TIMED_OUT),
        (BadAnswer("x", 503), None),
        (Unreachable("x"), None),
    ],
)
def test_tries_are_bounded(error: BackendError, times: int | None) -> None:
    """Unless the backend is not there, or restarts."""
    tries = Tries()
    enough = [tries.are_enough(error) for _ in range(50)]
    assert (enough.index(True) + 1 if any(enough) else None) == times


async def test_a_packed_queue_is_not_unpacked(lab: Lab) -> None:
    """Nobody asked for it: a megabyte may unpack to a gigabyte. The backend fails its probes, and the other goes on."""
    bomb = gzip.compress(b'{"queue_running": [' + b" " * 10_000_000)
    good, other = await lab.simulators(2)
    async with between(lab, other) as backend:
        asked: list[str] = []

        async def hook(request: web.Request, _: bytes) -> web.Response | None:
            if request.path != "/queue":
                return None
            asked.append(request.headers["Accept-Encoding"])
            return web.Response(body=bomb, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})

        backend.hook = hook
        gateway = await lab.gateway(good, backend.url, up=1)
        comfy = Comfy(lab.http, gateway.url)
        assert (await comfy.entry(await comfy.prompt(slow(1))))["status"]["status_str"] == "success"
        assert set(asked) == {"identity"}
        metrics = (await (await lab.http.get(f"{gateway.url}/metrics")).text()).splitlines()
        assert 'comfyui_gateway_backend_up{backend="b2"} 0.0' in metrics
