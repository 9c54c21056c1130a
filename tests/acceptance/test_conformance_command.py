"""``check --conformance``: against a ComfyUI, a gateway, and servers that answer wrongly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.conformance import suite
from gateway.conformance.asking import Examination
from gateway.conformance.suite import Outcome
from tests.conformance.replay import recording
from tests.support.commands import command
from tests.support.lab import Lab, until
from tests.support.listening import cleaned_up

KEY = "key-for-conformance-1"
Handler = Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]


async def check(url: str, *options: str, cwd: Path, **environment: str) -> tuple[int | None, list[str], str]:
    """Run it; (exit code, lines, standard error)."""
    arguments = ("check", "--conformance", url, *options)
    code, out, error = await command(*arguments, cwd=cwd, environment=environment)
    assert "Traceback" not in error
    assert KEY not in out + error
    return code, out.splitlines(), error


class Played:
    """Answers as recorded, over real sockets; a test puts wrong answers in their place."""

    def __init__(self) -> None:
        self.wrong: dict[str, Handler] = {}
        self.seen: list[tuple[str, str, str | None]] = []
        self.url = ""
        self._recorded = {
            exchange["request"]["path"]: exchange
            for name in ("misc_gets", "queue_lifecycle", "upload_and_view")
            for exchange in recording(f"{name}.json")
            if exchange["request"]["method"] == "GET"
        }

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        path = request.path_qs
        self.seen.append((request.method, path, request.headers.get("X-API-Key")))
        if path.partition("?")[0] in self.wrong:
            return await self.wrong[path.partition("?")[0]](request)
        if request.path == "/ws":
            return await self.socket(request)
        if request.path == "/object_info":
            return web.json_response(recording("object_info_subset.json"))
        recorded = self._recorded[path]
        body = recorded["body"]
        if body == "(elided)":
            body = [] if path == "/extensions" else {}
        if "Content-Type" in recorded["headers"] and "_bytes" not in body:
            return web.json_response(body, status=recorded["status"])
        return web.Response(status=recorded["status"])

    async def socket(self, request: web.Request) -> web.StreamResponse:
        """A socket that greets as ComfyUI does."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        status = {"status": {"exec_info": {"queue_remaining": 0}}, "sid": request.query["clientId"]}
        await socket.send_json({"type": "status", "data": status})
        async for message in socket:
            assert json.loads(message.data)["type"] == "feature_flags"
            await socket.send_bytes(b"\0\0\0\1preview")
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        return socket


@pytest.fixture
async def played() -> AsyncIterator[Played]:
    """A server that answers as recorded."""
    server = Played()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await cleaned_up(runner)


def gives(value: Any = None, **how: Any) -> Handler:
    """A handler with one answer."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(**how) if how else web.json_response(value)

    return handler


async def never(_: web.Request) -> web.StreamResponse:
    """No answer."""
    await asyncio.sleep(3600)
    raise AssertionError


async def endless(request: web.Request) -> web.StreamResponse:
    """An answer without an end."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def broken(request: web.Request) -> web.StreamResponse:
    """An answer that breaks off."""
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"{")
    assert request.transport is not None
    request.transport.abort()
    return response


async def mute(request: web.Request) -> web.StreamResponse:
    """A socket that tells nothing."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for _ in socket:
        pass
    return socket


async def test_a_comfyui_fits_and_nothing_is_written(lab: Lab) -> None:
    simulator = await lab.simulator()
    code, lines, error = await check(simulator.url, cwd=lab.directory)
    assert (code, error) == (0, ""), lines
    assert all(line.startswith("ok  ") for line in lines[:-1])
    count = len(suite.load().exchanges) + 1
    last = f"ComfyUI 0.33.0, compared with recordings of 0.33.0: {count} ok, 0 differ, 0 missing"
    assert lines[-1] == last
    requests = await simulator.requests(lab.http)
    assert sum(requests.values()) == count
    assert {route.split()[0] for route in requests} == {"GET"}


async def test_one_with_jobs_fits_as_well(lab: Lab) -> None:
    """Queue and history hold entries: their shape is compared."""
    simulator = await lab.simulator("--steps-per-second", "1")
    quick = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}}
    quick["2"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}  # type: ignore[dict-item]
    slow = {"1": {"class_type": "SlowSampler", "inputs": {"steps": 20, "step_seconds": 1.0, "seed": 1}}}
    slow["1"]["inputs"] |= {"width": 64, "height": 64}  # type: ignore[operator]
    slow["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    for prompt in (quick, slow, slow):
        async with lab.http.post(f"{simulator.url}/prompt", json={"prompt": prompt}) as answer:
            assert answer.status == 200, await answer.text()
    gateway = await lab.gateway(simulator)
    for url in (simulator.url, gateway.url):
        code, lines, _ = await check(url, cwd=lab.directory)
        assert code == 0, lines


async def test_a_gateway_fits_with_its_key_and_cannot_be_asked_without(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, options=("--api-key", KEY))
    code, lines, _ = await check(gateway.url, "--api-key", KEY, cwd=lab.directory)
    assert code == 0, lines
    code, lines, _ = await check(gateway.url, cwd=lab.directory, COMFYUI_KEY=KEY)
    assert code == 0, lines
    code, lines, error = await check(gateway.url, cwd=lab.directory)
    assert (code, lines) == (2, [])
    assert "it needs a key; add --api-key" in error
    code, _, error = await check(gateway.url, "--api-key", "wrong-key-1234", cwd=lab.directory)
    assert code == 2
    assert "the key that was given is not accepted" in error
    assert "wrong-key" not in error
    assert KEY not in gateway.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--conformance", "http://127.0.0.1:1"), "connection refused"),
        (("--conformance", "ftp://x"), "must be http://HOST:PORT"),
        (("--conformance", f"http://user:{KEY}@x"), "must be http://HOST:PORT"),
        (("--conformance", "http://127.0.0.1:99999"), "must be http://HOST:PORT"),
        (("--conformance", "http://x", "--api-key", "a\nb"), "can't be sent in a header"),
        (("--conformance", "http://x", "--backend", "http://y"), "without --config and --backend"),
        (("--api-key", KEY), "--api-key goes with --conformance"),
    ],
)
async def test_what_cannot_be_asked(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    code, out, error = await command("check", *arguments, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert sentence in " ".join(error.split())
    assert KEY not in error


async def test_what_was_recorded_fits_and_the_key_goes_in_its_header(played: Played, tmp_path: Path) -> None:
    code, lines, _ = await check(played.url, "--api-key", KEY, cwd=tmp_path)
    assert code == 0, lines
    assert {(method, key) for method, _, key in played.seen} == {("GET", KEY)}
    assert not any(KEY in path for _, path, _ in played.seen)
    assert any(path.startswith("/ws?") for _, path, _ in played.seen)


async def test_wrong_answers_are_told_with_their_place(played: Played, tmp_path: Path) -> None:
    stats = recording("misc_gets.json")[0]["body"]
    stats = {**stats, "devices": [{**stats["devices"][0], "vram_free": "much"}]}
    stats["system"].pop("os")
    entry = {"id": {"prompt": [1, "id", {}, {}], "outputs": {}, "status": {}, "meta": {}}}
    info = recording("object_info_subset.json")
    del info["KSampler"]["input"]["required"]["denoise"], info["SaveAudio"]
    played.wrong = {
        "/system_stats": gives(stats),
        "/features": gives({"supports_preview_metadata": "yes"}),
        "/history": gives(entry),
        "/object_info": gives(info),
        "/queue": gives(text="<html>sign in</html>", content_type="text/html"),
        "/prompt": gives(text="{", content_type="application/json"),
        "/api/jobs": gives(text="404: Not Found", status=404),
        "/view": gives(text="404: Not Found", status=404),
        "/embeddings": gives({"a": "b"}),
        "/i18n": broken,
        "/ws": gives(status=404),
    }
    code, lines, _ = await check(played.url, cwd=tmp_path)
    assert code == 1
    expected = """
        differs GET /system_stats $.system.os: expected string, found no such key; \
$.devices[0].vram_free: expected number, found string
        differs GET /features $.supports_preview_metadata: expected boolean, found string
        differs GET /history?max_items=2 $.id.prompt: expected 5 items, found 4
        differs GET /object_info $.KSampler.input.required.denoise: expected FLOAT, found no such key
        missing node class SaveAudio (a matter of the installation)
        differs GET /queue content type: expected application/json, found text/html
        differs GET /prompt $: expected JSON, found what is not JSON
        missing GET /api/jobs?limit=2 there is no such route
        missing GET /view there is no such route
        differs GET /embeddings $: expected array, found object
        differs GET /i18n expected an answer: the connection broke
        missing /ws answered 404
    """
    told = [" ".join(line.split()) for line in lines]
    for line in expected.strip().splitlines():
        assert any(found.startswith(line.strip()) for found in told), (line, told)
    assert told[-1].endswith("differ, 8 missing; node classes not there: 1")


async def test_a_redirect_is_not_followed(played: Played, tmp_path: Path) -> None:
    """The key would go along."""
    away = gives(status=302, headers={"Location": "/elsewhere"})
    played.wrong = {"/users": away, "/ws": away}
    code, lines, _ = await check(played.url, "--api-key", KEY, cwd=tmp_path)
    assert code == 1
    assert "differs  GET /users  status: expected 200, found 302" in lines
    assert "differs  /ws  expected a socket: the connection broke: it redirects" in lines
    assert not any(path == "/elsewhere" for _, path, _ in played.seen)


async def test_what_hangs_or_does_not_end(played: Played, tmp_path: Path) -> None:
    played.wrong = {"/models": never, "/ws": mute}
    code, lines, _ = await check(played.url, "--timeout", "0.7", cwd=tmp_path)
    assert code == 1
    assert [line for line in lines[:-1] if not line.startswith("ok")] == [
        "differs  GET /models  expected an answer: no whole answer within the time limit",
        "differs  /ws  first message: expected status, found none",
    ]
    played.wrong = {"/system_stats": never}
    code, lines, error = await check(played.url, "--timeout", "0.3", cwd=tmp_path)
    assert (code, lines) == (2, [])
    assert "no whole answer within the time limit" in error


async def test_an_answer_without_end_is_read_up_to_a_bound(played: Played) -> None:
    played.wrong = {"/object_info": endless}
    examination = Examination(suite.load(), played.url, None, timeout=20.0, maximum=1_000_000)
    async with asyncio.timeout(15):
        found = [verdict async for verdict in examination.verdicts()]
    assert [str(verdict) for verdict in found if verdict.outcome is not Outcome.OK] == [
        "differs  GET /object_info  expected an answer: the answer has more than 1000000 bytes"
    ]
    played.wrong = {"/object_info": endless}
    examination = Examination(suite.load(), played.url, None, timeout=0.2)
    found = [verdict async for verdict in examination.verdicts()]
    assert [verdict.what for verdict in found if verdict.outcome is not Outcome.OK] == ["GET /object_info"]


async def test_it_leaves_no_socket_open(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    assert (await check(gateway.url, cwd=lab.directory))[0] == 0

    async def look() -> bool:
        async with lab.http.get(f"{gateway.url}/metrics") as answer:
            return "comfyui_gateway_sockets_open 0.0" in await answer.text()

    await until(look)
