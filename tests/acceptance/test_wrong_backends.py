"""Backends that are none: `check` and the log of `serve` name the cause and the URL that was asked."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
import trustme
from aiohttp import web
from aiohttp.client_reqrep import ConnectionKey

from gateway.comfy.backend_errors import translated
from tests.support.commands import command
from tests.support.lab import Lab, until
from tests.support.listening import cleaned_up


@pytest.fixture
async def strangers() -> AsyncIterator[str]:
    """A server that is no ComfyUI: 404, a page under /page, 401 under /locked, a redirect under /moved."""

    async def answer(request: web.Request) -> web.Response:
        if request.path.startswith("/moved"):
            raise web.HTTPMovedPermanently("https://elsewhere.example/")
        status = 401 if request.path.startswith("/locked") else 200 if request.path.startswith("/page") else 404
        return web.Response(status=status, text="<html>")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield site.name
    await cleaned_up(runner)


async def test_the_cause_is_named(lab: Lab, strangers: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    authority = trustme.CA()
    pair = authority.issue_cert("127.0.0.1")
    for name, content in (("c", pair.cert_chain_pems[0]), ("k", pair.private_key_pem)):
        content.write_to_path(str(lab.directory / name))
    plain, encrypted = await lab.simulator(), await lab.simulator("--tls", *(str(lab.directory / n) for n in "ck"))
    (lab.directory / "other").mkdir(mode=0o700)
    other = await lab.gateway(plain, options=("--api-key", "a-key-of-some-length"))
    wrong = {
        nobody: "connection refused: no program listens there",
        plain.url.replace("http:", "https:"): f"it speaks http, not https: try {plain.url}",
        encrypted.url.replace("https:", "http:"): f"it speaks https, not http: try {encrypted.url}",
        f"{plain.url}/comfy": f"GET /queue answered 404: there is a ComfyUI without the path /comfy; try {plain.url}",
        other.url: "this is a comfyui-gateway, not a ComfyUI; give the addresses of the ComfyUIs behind it",
        strangers: "GET /queue answered 404: no ComfyUI answers there",
        f"{strangers}/locked": "GET /queue answered 401: it asks for a password or a key; give it as backends[].auth",
        f"{strangers}/moved": "GET /queue answered 301: it redirects; give the URL that it leads to",
        f"{strangers}/none": "GET /queue answered 404: no ComfyUI answers there under the path /none",
    }
    path = lab.directory / "gateway.yaml"
    path.write_text(f"backends: [{', '.join(f'{{url: {url!r}}}' for url in wrong)}]\ndata_dir: second\n")
    code, out, error = await command("check", "--config", path.name, cwd=lab.directory)
    rows = {row[1]: row[2] for row in (re.split(r" {2,}", line) for line in out.splitlines()[1:])}
    assert rows == {url: f"no: {reason} (GET {url}/queue)" for url, reason in wrong.items()}
    assert (code, error) == (1, "")

    gateway = await lab.gateway(options=("--config", str(path), "--data-dir", str(lab.directory / "second")), up=0)

    async def told() -> dict[str, str]:
        lines = [
            line for line in gateway.log_lines() if line["event"] == "backend_changed" and line["level"] == "warning"
        ]
        found = {line["url"]: line["reason"] for line in lines}
        return found if len(found) == len(wrong) else {}

    assert await until(told) == {f"{url}/queue": reason for url, reason in wrong.items()}
    # Each is told once, however often it is probed.
    assert len([line for line in gateway.log_lines() if line["event"] == "backend_changed"]) == len(wrong)


async def test_a_gateway_without_keys_is_no_comfyui(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    code, out, _ = await command("check", "--backend", gateway.url.removeprefix("http://"), cwd=lab.directory)
    assert code == 1
    assert "no: this is a comfyui-gateway, not a ComfyUI" in out
    options = ("--no-auth", "--data-dir", str(lab.directory / "second"))
    second = await lab.gateway(gateway.url, options=options)

    async def told() -> list[str]:
        lines = [
            line for line in second.log_lines() if line["event"] == "backend_changed" and line["level"] == "warning"
        ]
        return [line["reason"] for line in lines]

    assert (await until(told))[0].startswith("this is a comfyui-gateway")


async def test_a_backend_that_goes_leaves_a_warning(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    await simulator.kill()

    async def told() -> list[tuple[str, str, str]]:
        lines = [line for line in gateway.log_lines() if line["event"] == "backend_changed" and line["state"] == "gone"]
        return [(line["level"], line["reason"], line["url"]) for line in lines]

    reason = "connection refused: no program listens there"
    assert await until(told) == [("warning", reason, f"{simulator.url}/queue")]


def test_a_name_that_is_not_known() -> None:
    key = ConnectionKey("nope.invalid", 80, False, True, None, None, None)
    error = aiohttp.ClientConnectorDNSError(key, socket.gaierror(-2, "Name or service not known"))
    assert str(translated(error)) == "its host name can't be looked up: Name or service not known"
