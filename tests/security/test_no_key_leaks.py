"""A whole run in which every key is recognisable: none of them is in anything that leaves the gateway or stays in it.

Looked at are every line of the log, the metrics, every request that reached a backend, every answer to a client save
the one that makes a key, and every file of the data directory; for the keys as they are and in the forms that URLs,
headers and JSON give them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import aiohttp
import pytest
from yarl import URL

from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.pictures import png
from tests.support.workflows import slow

# Characters that URLs, forms, base64 and JSON write otherwise; `%` and `+` also where they are read once too often.
ANNA = 'canary-of-anna/+=%41&"7316'
BOSS = "canary-of-the-boss/+~8425"
METRICS = "canary-for-metrics-1234"
OVER = "canary-that-is-over-5678"
WRONG = "canary-that-is-wrong-9999"
PARTNERS = ("canary-partner-key-1111", "canary-partner-token-2222")
HTML = {"Accept": "text/html"}

CONFIG = f"""
auth:
  metrics: key
  lockout: {{after: 3, first: 30}}
  keys:
    - {{name: anna, sha256: {hashlib.sha256(ANNA.encode()).hexdigest()}}}
    - {{name: boss, key: "${{BOSS_KEY}}", role: admin}}
    - {{name: prometheus, key: {METRICS}, role: metrics}}
    - {{name: over, key: {OVER}, expires: 2020-01-01}}
tenants: {{default: {{nodes: {{trust: [gwtest]}}}}}}
"""


def forms(secret: str) -> Iterator[str]:
    """How a secret may look."""
    yield secret
    yield quote(secret)
    yield quote(secret, safe="")
    yield quote_plus(secret)
    yield json.dumps(secret)[1:-1]
    yield repr(secret)[1:-1]
    for credentials in (secret, f"user:{secret}", f"{secret}:", f":{secret}"):
        yield base64.b64encode(credentials.encode()).decode().rstrip("=")
        yield base64.urlsafe_b64encode(credentials.encode()).decode().rstrip("=")
    yield secret.encode().hex()


class Run:
    """One gateway, what is asked of it, and what was seen."""

    def __init__(self, lab: Lab, gateway: GatewayProcess, simulators: list[Simulator]) -> None:
        self.lab = lab
        self.gateway = gateway
        self.simulators = simulators
        self.secrets = [ANNA, BOSS, METRICS, OVER, WRONG]
        self.seen: list[tuple[str, str]] = []
        self.statuses: set[int] = set()

    async def ask(
        self, method: str, path: str, *, tells: bool = False, query: str = "", **more: Any
    ) -> tuple[int, str, str]:
        """Send a request; (status, text, cookie). What it `tells` is a secret that is made there."""
        url = URL(f"{self.gateway.url}{path}{query}", encoded=True)
        async with self.lab.http.request(method, url, allow_redirects=False, **more) as answer:
            text = (await answer.read()).decode("latin-1")
            cookie = answer.headers.get("Set-Cookie", "").partition(";")[0]
            shown = {name: value for name, value in answer.headers.items() if name != "Set-Cookie"}
            if not tells:
                self.seen.append((f"answer to {method} {path}", f"{shown} {text}"))
            self.statuses.add(answer.status)
            return answer.status, text, cookie

    async def carried(self, key: str) -> Iterator[dict[str, Any]]:
        """A request's parts with a key in each credentials, and in all."""
        basic = base64.b64encode(f"user:{key}".encode()).decode()
        token = urlencode({"token": key})
        cookie = f"comfyui_gateway_key={key}"
        return iter(
            [
                {"headers": {"X-API-Key": key}},
                {"headers": {"Authorization": f"Bearer {key}"}},
                {"headers": {"Authorization": f"Basic {basic}"}},
                {"query": f"?{token}&a=%41+b"},
                {"query": f"?a=1&%74oken={quote(key, safe='')}"},
                {"headers": {"Cookie": f"{cookie}; other=1"}},
                {
                    "headers": {
                        "X-API-Key": key,
                        "Authorization": f"Bearer {key}",
                        "Proxy-Authorization": f"Basic {basic}",
                        "Cookie": cookie,
                        "Referer": f"{self.gateway.url}/?{token}",
                        "X-Forwarded-Uri": f"/queue?{token}",
                        "X-Original-URL": f"/queue?{token}",
                        "X-Rewrite-URL": f"/queue?{token}",
                        "Forwarded": f"for=1.2.3.4;by={key!r}",
                    },
                    "query": f"?{token}",
                },
            ]
        )

    async def raw(self, request: bytes) -> None:
        """Send bytes that need not be HTTP."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        writer.write(request)
        try:
            async with asyncio.timeout(10):
                # An answer to one who sent it himself may quote it.
                await reader.read()
        except (TimeoutError, ConnectionError):
            pass
        writer.close()

    def look(self, where: str, text: str) -> None:
        """Assert that no secret is in a text."""
        for secret in self.secrets:
            for form in forms(secret):
                assert form not in text, f"{where} shows {secret} as {form}: …{_around(text, form)}…"


def _around(text: str, form: str) -> str:
    place = text.index(form)
    return text[max(place - 200, 0) : place + 200]


async def start(lab: Lab, **settings: Any) -> Run:
    """A gateway that knows the keys, over two simulators that keep what they are sent."""
    config = lab.directory / "gateway.yaml"
    config.write_text(CONFIG)
    simulators = await lab.simulators(2, "--record")
    options = ("--config", str(config))
    urls = [simulator.url for simulator in simulators]
    # What was refused is not waited for any longer, for another request to follow.
    settings |= {"probe__interval": 0.25, "server__keepalive_timeout": 0.5}
    gateway = GatewayProcess(lab.directory / "data", urls, options, settings)
    gateway.environment |= {"BOSS_KEY": BOSS, "PYTHONASYNCIODEBUG": "1"}
    lab.servers.append(gateway)
    await gateway.start()
    await lab.backends_up(gateway, 2)
    return Run(lab, gateway, simulators)


async def everything(run: Run) -> None:
    """What clients, browsers, admins and those who try do."""
    partners = dict(zip(("api_key_comfy_org", "auth_token_comfy_org"), PARTNERS, strict=True))
    for key in (ANNA, BOSS):
        for credentials in await run.carried(key):
            await work(run, credentials, partners, key)
    await browse(run)
    await keep_keys(run)
    for credentials in await run.carried(OVER):
        status, _, _ = await run.ask("GET", "/queue", **credentials)
        assert status == 401
    await fail(run)
    for key in (WRONG, f"{WRONG}-2", f"{WRONG}-3", f"{WRONG}-4"):
        for credentials in await run.carried(key):
            await run.ask("GET", "/queue", **credentials)
        await run.ask("POST", "/gateway/signin", data={"key": key})
    await run.ask("GET", "/", headers={**HTML, "X-API-Key": WRONG}, query=f"?token={WRONG}")


async def work(run: Run, credentials: dict[str, Any], partners: dict[str, str], key: str) -> None:
    """One client: a prompt with partner keys, its socket, an upload, its picture; and what it may not."""
    headers, query = credentials.get("headers", {}), credentials.get("query", "")
    socket_url = URL(f"{run.gateway.url}/ws{query or '?'}&clientId=c", encoded=True)
    async with run.lab.http.ws_connect(socket_url, headers=headers) as socket:
        body = {"prompt": slow(steps=1), "client_id": "c", "extra_data": partners}
        status, text, _ = await run.ask("POST", "/prompt", json=body, **credentials)
        assert status == 200, text
        prompt_id = json.loads(text)["prompt_id"]
        # Some clients send their one key as a partner key too.
        twice = {"prompt": slow(steps=1), "extra_data": {**partners, "api_key_comfy_org": key}}
        status, text, _ = await run.ask("POST", "/prompt", json=twice, **credentials)
        assert status == 200, text
        await run.ask("GET", "/queue", **credentials)

        async def ended() -> bool:
            return prompt_id in (await run.ask("GET", f"/history/{prompt_id}", **credentials))[1]

        await until(ended)
        while True:
            message = await socket.receive(20)
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
            run.seen.append(("a socket", str(message.data)))
            told = json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else {"type": ""}
            if told["type"] == "executing" and told["data"]["node"] is None:
                break
    await work_in_v2(run, credentials, partners)
    form = aiohttp.FormData()
    form.add_field("image", png((1, 2, 3)), filename="up.png")
    await run.ask("POST", "/upload/image", data=form, **credentials)
    for path in ("/api/jobs", "/object_info/KSampler", "/extensions", "/api/userdata?dir=x", "/nowhere", "/free"):
        joined = query.replace("?", "&") if "?" in path else query
        await run.ask("GET", path, headers=headers, query=joined)
    for path, sent in (("/prompt", b"{"), ("/prompt", b'{"prompt": {}}'), ("/queue", b"[]"), ("/nowhere", b"x")):
        await run.ask("POST", path, data=sent, **credentials)
    image = f"filename=up.png&type=input&{query[1:]}"
    await run.ask("GET", "/view", headers=headers, query=f"?{image}")
    await run.ask("GET", "/view", headers=headers, query=f"?{image.replace('up.png', 'no.png')}")


async def work_in_v2(run: Run, credentials: dict[str, Any], partners: dict[str, str]) -> None:
    """The Comfy API v2: a job with a partner key, its events, and an asset."""
    extra = {"api_key_comfy_org": partners["api_key_comfy_org"]}
    status, text, _ = await run.ask(
        "POST", "/api/v2/jobs", json={"workflow": slow(steps=1), "extra_data": extra}, **credentials
    )
    assert status == 201, text
    job = json.loads(text)["id"]
    _, told, _ = await run.ask("GET", f"/api/v2/jobs/{job}/events", **credentials)
    assert "succeeded" in told
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("file_path", "v2.png")
    form.add_field("file", png((4, 5, 6)), filename="v2.png", content_type="image/png")
    status, text, _ = await run.ask("POST", "/api/v2/assets", data=form, **credentials)
    assert status in (200, 201), text
    asset = json.loads(text)["id"]
    for path in (f"jobs/{job}", f"jobs/{job}/workflow", "jobs", f"assets/{asset}", f"assets/{asset}/content", "x"):
        await run.ask("GET", f"/api/v2/{path}", **credentials)
    await run.ask("POST", "/api/v2/jobs", data=b"{", **credentials)


async def browse(run: Run) -> None:
    """A browser signs in, looks, and signs out."""
    await run.ask("GET", "/some/page", headers=HTML, query=f"?token={quote(WRONG)}")
    await run.ask("GET", "/gateway/signin", query=f"?next=/&token={quote(ANNA, safe='')}")
    status, _, cookie = await run.ask("POST", "/gateway/signin", data={"key": ANNA, "next": "/x"})
    assert status == 303
    run.secrets.append(cookie.partition("=")[2])
    assert ANNA not in cookie
    for path in ("/", "/queue", "/extensions", "/nowhere"):
        await run.ask("GET", path, headers={"Cookie": cookie})
    await run.ask("POST", "/gateway/signout", headers={"Cookie": cookie})
    assert (await run.ask("GET", "/queue", headers={"Cookie": cookie}))[0] == 401


async def keep_keys(run: Run) -> None:
    """An admin makes, rotates, lists and revokes keys."""
    boss = {"X-API-Key": BOSS}
    for method, path, body in (
        ("POST", "/gateway/keys", {"name": "carol"}),
        ("POST", "/gateway/keys/carol/rotate", {}),
    ):
        status, text, _ = await run.ask(method, path, json=body, headers=boss, tells=True)
        assert status in (200, 201)
        run.secrets.append(json.loads(text)["key"])
        await run.ask("GET", "/queue", headers={"X-API-Key": run.secrets[-1]})
    await run.ask("GET", "/gateway/keys", headers=boss)
    await run.ask("POST", "/gateway/keys", json={"name": WRONG + "/", "key": WRONG}, headers=boss)
    await run.ask("POST", "/gateway/keys/anna/rotate", headers=boss)
    await run.ask("DELETE", "/gateway/keys/carol", headers=boss)
    await run.ask("GET", "/queue", headers={"X-API-Key": run.secrets[-1]})
    await run.ask("POST", "/free", json={}, headers=boss)
    await run.ask("GET", "/metrics", headers={"X-API-Key": METRICS})
    await run.ask("GET", "/queue", headers={"X-API-Key": METRICS})
    await run.ask("GET", "/queue", headers=[("X-API-Key", ANNA), ("X-API-Key", BOSS)])


async def fail(run: Run) -> None:
    """Backends that fail, requests that are none."""
    for fault in ("500", "slow:0.2"):
        for simulator in run.simulators:
            await simulator.fault(run.lab.http, fault)
        for credentials in await run.carried(ANNA):
            for path in ("/extensions", "/some/custom/route"):
                await run.ask("GET", path, **credentials)
        for simulator in run.simulators:
            await simulator.no_faults(run.lab.http)
    head = f"X-API-Key: {ANNA}\r\nCookie: comfyui_gateway_key={ANNA}\r\n"
    for line in (
        f"GET /queue?token={ANNA} HTTP/1.1\r\nHost: x\r\nX-API-Key: {ANNA}\x00\r\n\r\n",
        f"GET /queue?token={quote(ANNA)} HTTP/9.9\r\n{head}\r\n",
        f"GET /queue?token={quote(ANNA)} NONSENSE\r\n{head}\r\n",
        f"{ANNA}\r\n\r\n",
        f"POST /prompt?token={quote(ANNA)} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: x\r\n\r\n",
        f"POST /prompt HTTP/1.1\r\nHost: x\r\n{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nx",
        f"POST /prompt HTTP/1.1\r\nHost: x\r\n{head}Transfer-Encoding: chunked\r\n\r\n{ANNA}\r\n",
        f"GET /queue HTTP/1.1\r\nHost: x\r\n{head}X-{ANNA}: y\r\n\r\n",
        f"GET /queue HTTP/1.1\r\nHost: x\r\nX-API-Key: {ANNA} {'x' * 70_000}\r\n\r\n",
        f"GET /ws?token={quote(ANNA)} HTTP/1.1\r\nHost: x\r\n{head}Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ):
        await run.raw(line.encode())


@pytest.mark.parametrize("style", ["json", "console"])
async def test_a_whole_run_shows_no_key(lab: Lab, style: str) -> None:
    run = await start(lab, log__format=style, log__level="debug")
    await everything(run)
    assert {200, 201, 303, 400, 401, 403, 404, 429, 500} <= run.statuses
    upstream = [request for simulator in run.simulators for request in await simulator.recorded(lab.http)]
    assert {"POST", "GET"} <= {request["method"] for request in upstream}
    assert any("/some/custom/route" in request["path"] for request in upstream)
    # Partner keys go to the backend that needs them, in the prompt; and nowhere else.
    sent = [request["body"] for request in upstream if request["path"].endswith("/prompt")]
    assert all(partner in sent[0] for partner in PARTNERS)
    await run.ask("GET", "/metrics", headers={"X-API-Key": METRICS})
    for number, request in enumerate(upstream):
        run.look(f"request {number} to a backend, {request['method']} {request['path'][:40]}", str(request))
    await run.gateway.stop()
    run.secrets += PARTNERS
    for where, text in run.seen:
        run.look(where, text)
    log = run.gateway.log.read_text()
    assert len(log.splitlines()) > 200
    for line in log.splitlines():
        run.look("the log", line)
    run.look("the log", log)
    files = [path for path in (lab.directory / "data").rglob("*") if path.is_file()]
    assert any(path.name == "gateway.sqlite3" for path in files)
    for path in files:
        run.look(str(path), path.read_bytes().decode("latin-1"))
    lab.expect_trouble = True
    # Of a request that can't be parsed aiohttp tells with a traceback, and that quotes lines; not here.
    assert not re.search(r"Traceback|was never awaited|never retrieved|Unclosed", log)


def test_the_looking_sees(tmp_path: Path) -> None:
    """Each form in which a key might show is found."""
    run = Run.__new__(Run)
    run.secrets = [ANNA]
    run.look("nothing", "canary-of-anna, in part, and " + hashlib.sha256(ANNA.encode()).hexdigest())
    for text in (
        f"GET /?token={ANNA}",
        f"GET /?token={quote(ANNA)}",
        f"GET /?{urlencode({'token': ANNA})}",
        json.dumps({"headers": ANNA}),
        str({"headers": [ANNA]}),
        f"Basic {base64.b64encode(f'user:{ANNA}'.encode()).decode()}",
        f"Basic {base64.b64encode(f':{ANNA}'.encode()).decode()}",
    ):
        with pytest.raises(AssertionError, match="shows canary-of-anna"):
            run.look("here", text)
