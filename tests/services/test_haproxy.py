"""The gateway behind Debian's HAProxy as people configure it: Host without its port, a path prefix, TLS, buffering."""

from __future__ import annotations

import asyncio
import io
import os
import re
from pathlib import Path

import aiohttp
from PIL import Image

from tests.support.chromium import launched
from tests.support.comfy_client import Comfy
from tests.support.haproxy import haproxy
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.proxied import as_a_browser, certificate
from tests.support.two_users import ANNA, with_keys
from tests.support.uploads import load, upload
from tests.support.workflows import slow

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
# The address of the clients; HAProxy connects from 127.0.0.1.
CLIENT = "127.0.0.2"
WITHOUT_PORT = "http-request set-header Host %[hdr(host),field(1,:)]"
SERVERS = {
    "plain": "option forwardfor",
    "host": f"option forwardfor\n    {WITHOUT_PORT}",
    "named": """option forwardfor
    http-request set-header X-Forwarded-Prefix /studio/gpu
    http-request replace-path /studio/gpu(/.*) \\1""",
    "buffered": "option forwardfor\n    option http-buffer-request\n    http-reuse always",
    "tls": "option forwardfor\n    http-request set-header X-Forwarded-Proto https",
    "tls_host": f"option forwardfor\n    http-request set-header X-Forwarded-Proto https\n    {WITHOUT_PORT}",
}
# A page's script: run a prompt, and tell what the socket said of it, and by which protocol the answers came.
IN_A_PAGE = """async (prompt) => {
  const socket = new WebSocket(`wss://${location.host}/comfy/ws?clientId=page`), heard = [];
  await new Promise((done, failed) => { socket.onmessage = done; socket.onerror = failed; });
  const over = new Promise((done) => {
    socket.onmessage = ({ data }) => {
      const event = typeof data === "string" ? JSON.parse(data).type : "binary";
      heard.push(event);
      if (event === "execution_success") done();
    };
  });
  const body = JSON.stringify({ prompt, client_id: "page" });
  const answer = await fetch("/comfy/prompt", { method: "POST", body });
  if (answer.status !== 200) return [await answer.text()];
  await over;
  const used = performance.getEntriesByType("resource").map((each) => each.nextHopProtocol);
  return [...new Set([...heard, ...used])];
}"""
PREFIXES = {"named": "/studio/gpu"}


def documented(port: int) -> str:
    """The configuration that docs/operations.md shows, for a gateway at `port`."""
    (shown,) = re.findall(r"^```haproxy\n(.*?)^```$", OPERATIONS.read_text(), re.DOTALL | re.MULTILINE)
    kept = re.sub(r"^(frontend|backend) .*\n|.*(bind|default_backend) .*\n", "", shown, flags=re.MULTILINE)
    assert "127.0.0.1:8288" in kept
    return kept.replace("127.0.0.1:8288", f"127.0.0.1:{port}")


async def run(http: aiohttp.ClientSession, origin: str, prefix: str, name: str, direct: Comfy) -> None:
    """Sign in, upload, run and watch; everything is as it is without the proxy.

    Args:
        http: the client of the proxy.
        origin: of the proxy.
        prefix: the path prefix that clients see.
        name: of the proxy, for the files.
        direct: the same user without the proxy.
    """
    headers = await as_a_browser(http, origin, prefix)
    comfy = Comfy(http, origin + prefix, **headers)
    assert "SaveImage" in await comfy.get("/object_info")
    # Several times as large as a buffer of HAProxy's.
    picture = await asyncio.to_thread(noise)
    status, kept = await upload(comfy, picture, f"{name}.png")
    assert status == 200, kept
    told = {"filename": kept["name"], "subfolder": kept["subfolder"], "type": kept["type"]}
    assert await comfy.view(told) == await direct.view(told) == picture

    listeners = [await each.listen(name) for each in (comfy, direct)]
    seen = []
    for prompt in (slow(prefix=name, seed=len(name), steps=5), load(kept["name"], f"{name}-loaded")):
        prompt_id = await comfy.prompt(prompt, name)
        for listener in listeners:
            await listener.end_of(prompt_id)
        heard = [listener.of(prompt_id) for listener in listeners]
        assert heard[0] == heard[1]
        assert {"execution_start", "executed", "execution_success"} <= set(heard[0])
        (image,) = comfy.images(await comfy.entry(prompt_id))
        seen.append(await comfy.view(image))
        assert seen[-1] == await direct.view(image)
        assert seen[-1].startswith(b"\x89PNG")
        async with http.get(f"{origin}{prefix}/view", params=image, headers={**headers, "Range": "bytes=1-3"}) as part:
            assert (part.status, await part.read()) == (206, b"PNG")
    binary = [sum(event["type"].startswith("binary") for event in listener.heard) for listener in listeners]
    assert binary[0] == binary[1] > 0
    for listener in listeners:
        await listener.socket.close()

    async with http.post(f"{origin}{prefix}/gateway/signout", headers=headers, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, f"{prefix}/gateway/signin")


def noise() -> bytes:
    """A picture that can't be compressed."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (192, 192), os.urandom(192 * 192 * 3)).save(buffer, "PNG")
    return buffer.getvalue()


async def test_as_people_configure_it(lab: Lab, tmp_path: Path) -> None:
    gateway = await with_keys(lab, server__trusted_proxies="127.0.0.1/32")
    (cert, key), context = certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    servers = {**SERVERS, "tls_documented": documented(gateway.port)}
    connector = aiohttp.TCPConnector(ssl=context, local_addr=(CLIENT, 0))
    direct = Comfy(lab.http, gateway.url, X_API_Key=ANNA)
    async with (
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http,
        haproxy(tmp_path / "haproxy", gateway.port, servers, both) as proxy,
    ):
        origins = {name: f"http{'s' * name.startswith('tls')}://127.0.0.1:{port}" for name, port in proxy.ports.items()}
        runs = [run(http, origin, PREFIXES.get(name, ""), name, direct) for name, origin in origins.items()]
        await asyncio.gather(*runs)

        # A page on another port of the host, and a caller that makes its address up.
        for name in ("plain", "tls_documented"):
            headers = {"Origin": "https://127.0.0.1:1", "X-API-Key": ANNA, "X-Forwarded-For": "192.0.2.1"}
            async with http.post(f"{origins[name]}/queue", json={}, headers=headers) as answer:
                assert (answer.status, (await answer.json())["error"]["type"]) == (403, "foreign_origin")
        headers = {"X-API-Key": ANNA, "X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/evil"}
        async with http.get(f"{origins['tls_documented']}/gateway/openapi.json", headers=headers) as answer:
            assert "servers" not in await answer.json()
    signed_in = addresses(gateway, "/gateway/signin")
    assert signed_in == {CLIENT}
    assert "192.0.2.1" not in addresses(gateway, "/queue")


def addresses(gateway: GatewayProcess, route: str) -> set[str]:
    """The client addresses of the requests of a route, as the gateway logged them."""
    lines = [line for line in gateway.log_lines() if line.get("event") == "http" and line["route"] == route]
    return {line["client_address"] for line in lines}


async def test_a_browser_over_http_2(lab: Lab, tmp_path: Path) -> None:
    """Under TLS browsers speak HTTP/2 with HAProxy, and open a WebSocket inside of it (RFC 8441)."""
    gateway = await with_keys(lab, server__trusted_proxies="127.0.0.1/32", server__base_path="/comfy")
    (cert, key), _ = certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    async with (
        haproxy(tmp_path / "haproxy", gateway.port, {"tls": SERVERS["tls_host"]}, both) as proxy,
        launched() as browser,
    ):
        page = await (await browser.new_context(ignore_https_errors=True)).new_page()
        url = f"https://127.0.0.1:{proxy.ports['tls']}/comfy"
        await page.goto(f"{url}/gateway/signin?next=/features")
        await page.locator("input[name=key]").fill(ANNA)
        await page.locator("button[type=submit]").click()
        await page.wait_for_url(f"{url}/features")
        heard = await page.evaluate(IN_A_PAGE, slow())
    assert {"execution_start", "binary", "executed", "execution_success", "h2"} <= set(heard), heard


async def test_tls_that_passes_through(lab: Lab, tmp_path: Path) -> None:
    """HAProxy in TCP mode reads no header, so it can't remove one that a caller made up: the gateway trusts nobody."""
    files, context = certificate(tmp_path)
    tls = {"server__tls__certificate": str(files[0]), "server__tls__key": str(files[1])}
    await lab.http.close()
    lab.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), cookie_jar=aiohttp.DummyCookieJar())
    gateway = await with_keys(lab, **tls)
    direct = Comfy(lab.http, gateway.url, X_API_Key=ANNA)
    async with haproxy(tmp_path / "haproxy", gateway.port, {"passed": "mode tcp"}) as proxy:
        await run(lab.http, f"https://127.0.0.1:{proxy.ports['passed']}", "", "passed", direct)


async def test_a_request_after_an_idle_pause(lab: Lab, tmp_path: Path) -> None:
    """Whoever closes the idle connection first, HAProxy or the gateway, the next request is answered."""
    gateway = await lab.gateway(await lab.simulator(), server__keepalive_timeout=0.5)
    servers = {
        "patient": "http-reuse always\n    server gateway 127.0.0.1:PORT pool-purge-delay 1h",
        "hasty": "http-reuse always\n    server gateway 127.0.0.1:PORT pool-purge-delay 50ms",
    }
    servers = {name: lines.replace("PORT", str(gateway.port)) for name, lines in servers.items()}
    async with haproxy(tmp_path / "haproxy", gateway.port, servers) as proxy:

        async def has_none(name: str) -> bool:
            return await proxy.connections(name) == 0

        async def use(name: str) -> None:
            comfy = Comfy(lab.http, f"http://127.0.0.1:{proxy.ports[name]}")
            for seed in range(2):
                await comfy.entry(await comfy.prompt(slow(seed=seed, prefix=name)))
                await until(lambda: has_none(name), what=f"{name}: the idle connections are closed")

        await asyncio.gather(*(use(name) for name in servers))
