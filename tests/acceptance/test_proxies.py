"""The gateway behind Debian's nginx as people configure it: Host without its port, path prefixes, TLS, buffering."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from tests.security.recorder import Recorder, passes_on, talk
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.nginx import nginx
from tests.support.proxied import HTML, as_a_browser, certificate
from tests.support.two_users import ANNA, BOSS, with_keys
from tests.support.workflows import slow

SERVERS = {
    "host": "location / { proxy_pass http://gateway; proxy_set_header Host $host; USUAL }",
    "http_host": "location / { proxy_pass http://gateway; proxy_set_header Host $http_host; proxy_buffering off; "
    "proxy_request_buffering off; USUAL }",
    "tls": "location / { proxy_pass http://gateway; proxy_set_header Host $host; proxy_buffering off; USUAL }",
    "tls_http_host": "location / { proxy_pass http://gateway; proxy_set_header Host $http_host; USUAL }",
    "kept": "location /comfy/ { proxy_pass http://gateway; proxy_set_header Host $host; USUAL }",
    "stripped": "location /comfy/ { proxy_pass http://gateway/; proxy_set_header Host $http_host; USUAL }",
    "named": "location /studio/gpu/ { proxy_pass http://gateway/; proxy_set_header Host $host; "
    "proxy_set_header X-Forwarded-Prefix /studio/gpu; USUAL }",
}
# The prefix that a browser sees, by server. With server.base_path the gateway answers under it everywhere.
PREFIXES = {name: "/studio/gpu" if name == "named" else "/comfy" for name in SERVERS}


async def run(http: aiohttp.ClientSession, origin: str, prefix: str) -> None:
    """Sign in, run a prompt over the socket, look at its picture, and be refused as a page of another port."""
    headers = await as_a_browser(http, origin, prefix)
    comfy = Comfy(http, origin + prefix, **headers)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(prefix="proxied"), "c")
    await listener.next("execution_success", prompt_id=prompt_id)
    (image,) = comfy.images(await comfy.entry(prompt_id))
    assert (await comfy.view(image)).startswith(b"\x89PNG")
    await listener.socket.close()
    # Sign out, and be led to the page under the same prefix.
    async with http.post(f"{origin}{prefix}/gateway/signout", headers=headers, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, f"{prefix}/gateway/signin")
        assert f"Path={prefix or '/'};" in f"{answer.headers['Set-Cookie']};"
    async with http.get(f"{origin}{prefix}/queue", headers=headers) as answer:
        details = (await answer.json())["error"]["details"]
        assert (answer.status, details) == (401, f"sign in again at {prefix}/gateway/signin")


async def test_behind_nginx_as_people_configure_it(lab: Lab, tmp_path: Path) -> None:
    settings = {"server__trusted_proxies": "127.0.0.0/8", "server__base_path": "/comfy/"}
    gateway = await with_keys(lab, **settings)
    tls, context = certificate(tmp_path)
    connector = aiohttp.TCPConnector(ssl=context)
    async with (
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http,
        nginx(tmp_path / "nginx", gateway.port, SERVERS, tls) as ports,
    ):
        origins = {name: f"http{'s' * name.startswith('tls')}://127.0.0.1:{port}" for name, port in ports.items()}
        await asyncio.gather(*(run(http, origins[name], PREFIXES[name]) for name in SERVERS))

        # A page on another port of the host. Its browser says so, except where the connection is plain HTTP.
        refused = {}
        for name, site in (("http_host", ""), ("http_host", "same-site"), ("host", "same-site"), ("tls", "same-site")):
            headers = {"Origin": "https://127.0.0.1:1", "X-API-Key": ANNA, **({"Sec-Fetch-Site": site} if site else {})}
            async with http.post(f"{origins[name]}/queue", json={}, headers=headers) as answer:
                refused[name, site] = answer.status, (await answer.json())["error"]["type"]
        assert set(refused.values()) == {(403, "foreign_origin")}

        async with http.get(f"{origins['kept']}/comfy", allow_redirects=False) as answer:
            assert answer.status == 301
            assert answer.headers["Location"].endswith("/comfy/")
        for name in ("kept", "named"):
            url = f"{origins[name]}{PREFIXES[name]}/gateway/openapi.json"
            async with http.get(url, headers={"X-API-Key": ANNA}) as answer:
                assert (await answer.json())["servers"] == [{"url": PREFIXES[name]}]


async def ask(lab: Lab, url: str, **headers: str) -> tuple[int, str | None, str | None]:
    """Status, location and cookie of a GET."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with lab.http.get(url, headers={**HTML, **named}, allow_redirects=False) as answer:
        return answer.status, answer.headers.get("Location"), answer.headers.get("Set-Cookie")


async def test_prefixes_of_requests_and_of_links(lab: Lab) -> None:
    """A prefix is removed once, if it is there; only a trusted proxy's plain X-Forwarded-Prefix goes before links."""
    gateway = await with_keys(lab, server__trusted_proxies="127.0.0.0/8", server__base_path="/comfy")
    page = "/gateway/signin"
    assert await ask(lab, f"{gateway.url}/comfy?a=1") == (308, "/comfy/?a=1", None)
    for path, location in (
        ("/", f"/comfy{page}"),
        ("/comfy/", f"/comfy{page}"),
        ("/comfy/a%20b?x=1", f"/comfy{page}?next=/a%20b"),
        ("/comfy/comfy/x", f"/comfy{page}?next=/comfy/x"),
        ("/comfyui/x", f"/comfy{page}?next=/comfyui/x"),
    ):
        assert await ask(lab, gateway.url + path) == (303, location, None), path
    long = "/" + "a" * 127
    for said, prefix in (
        ("/studio", "/studio"),
        ("/studio/gpu/", "/studio/gpu"),
        ("/", ""),
        ("/evil, /studio", "/studio"),
        (long, long),
        (long + "a", "/comfy"),
        *(
            (odd, "/comfy")
            for odd in ("//evil.example", "/\\evil.example", "/..", "/a/../b", "studio", "/a%2f", "/a b")
        ),
        *((odd, "/comfy") for odd in ("https://evil.example", '/"><script>', "/a;b", "/a?b", "/a//b", "/ü", "*")),
    ):
        found = await ask(lab, f"{gateway.url}/x", X_Forwarded_Prefix=said)
        assert found == (303, f"{prefix}{page}?next=/x", None), said
    user = {"X_API_Key": ANNA}
    # The gateway's own cookie is the one for the longer path, which browsers send first.
    async with lab.http.post(
        f"{gateway.url}/comfy{page}", data={"key": ANNA}, headers={"X-Forwarded-Prefix": "/a"}, allow_redirects=False
    ) as answer:
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
    others = "comfyui_gateway_key=cgs_" + "x" * 32
    assert (await ask(lab, f"{gateway.url}/comfy/queue", Cookie=f"{cookie}; {others}"))[0] == 200
    assert (await ask(lab, f"{gateway.url}/comfy/queue", Cookie=f"{others}; {cookie}"))[0] == 303
    # A session from before there was a prefix ends with the one under it.
    async with lab.http.post(
        f"{gateway.url}{page}", data={"key": ANNA}, headers={"X-Forwarded-Prefix": "/"}, allow_redirects=False
    ) as answer:
        assert "Path=/;" in f"{answer.headers['Set-Cookie']};"
        root = answer.headers["Set-Cookie"].partition(";")[0]
    both = {"Cookie": f"{cookie}; {root}"}
    async with lab.http.post(f"{gateway.url}/comfy/gateway/signout", headers=both, allow_redirects=False) as answer:
        assert answer.status == 303
    assert (await ask(lab, f"{gateway.url}/comfy/queue", Cookie=root))[0] == 303
    # Roles hold under a prefix as they do without.
    for path, status in (("/comfy/gateway/backends", 403), ("/comfy/internal/logs", 403), ("/comfy/queue", 200)):
        assert (await ask(lab, gateway.url + path, **user))[0] == status, path
    assert (await ask(lab, f"{gateway.url}/comfy/gateway/backends", X_API_Key=BOSS))[0] == 200
    assert (await ask(lab, f"{gateway.url}/comfy/healthz"))[0] == 200
    assert await gateway.stop() == 0
    stranger = await with_keys(lab, server__trusted_proxies="10.0.0.0/8")
    assert await ask(lab, f"{stranger.url}/x", X_Forwarded_Prefix="/studio") == (303, f"{page}?next=/x", None)
    assert (await ask(lab, f"{stranger.url}/comfy", X_API_Key=ANNA))[0] == 404


async def test_a_redirect_of_a_backend_stays_under_the_prefix(lab: Lab) -> None:
    backend = Recorder()
    await backend.start()
    head = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: "
    backend.answers["/custom/old?a=1"] = head + b"/custom/new\r\n\r\n"
    backend.answers["/custom/out"] = head + b"https://docs.example/x\r\n\r\n"
    gateway = await lab.gateway(backend.url, options=(), up=0, probe__interval=30, server__base_path="/comfy")
    await passes_on(lab, gateway.url)
    assert (await ask(lab, f"{gateway.url}/comfy/custom/old?a=1"))[:2] == (302, "/comfy/custom/new")
    assert (await ask(lab, f"{gateway.url}/comfy/custom/out"))[:2] == (302, "https://docs.example/x")
    # A backend never sees the prefix.
    assert {"/custom/old?a=1", "/custom/out"} <= {seen.path for seen in backend.seen}
    assert not [seen.path for seen in backend.seen if "comfy" in seen.path]
    assert await gateway.stop() == 0
    await backend.close()


async def test_a_refused_origin_is_logged_once_with_its_setting(lab: Lab) -> None:
    """One line a minute for each origin; a flood of origins makes no flood of lines."""
    gateway = await lab.gateway(await lab.simulator(), options=(), cors__origins="https://app.example.com")

    async def post(origin: str, **headers: str) -> str:
        named = {"Origin": origin, **{name.replace("_", "-"): value for name, value in headers.items()}}
        async with lab.http.post(f"{gateway.url}/queue", json={}, headers=named) as answer:
            assert answer.status == 403, origin
            return str((await answer.json())["error"]["details"])

    host = f"127.0.0.1:{gateway.port}"
    advice: dict[str, str] = {}
    for origin in ("https://evil.example", "http://127.0.0.1:1", "null", "https://evil.example", "http://["):
        advice[origin] = await post(origin)
    assert "cors.origins" in advice["https://evil.example"]
    assert "$http_host" in advice["http://127.0.0.1:1"]
    assert "no other can be listed" in advice["null"]
    # What a page embeds has no Origin. Where nobody needs a key, none helps.
    embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Referer": "https://page.example/a"}
    async with lab.http.get(f"{gateway.url}/view?filename=a.png", headers=embedded) as answer:
        assert (answer.status, "token" in await answer.text()) == (403, False)
    preflight = {"Origin": "https://asks.example", "Access-Control-Request-Method": "POST"}
    async with lab.http.options(f"{gateway.url}/prompt", headers=preflight) as answer:
        assert answer.status == 403
    rebound = {"Host": f"evil.example:{gateway.port}"}
    for _ in range(2):
        async with lab.http.get(f"{gateway.url}/queue", headers=rebound) as answer:
            assert answer.status == 403

    def lines(event: str) -> list[dict[str, Any]]:
        return [line for line in gateway.log_lines() if line.get("event") == event]

    told = {line["origin"]: (line["host"], line["hint"]) for line in lines("origin_refused")}
    assert len(lines("origin_refused")) == len(told) == 6
    assert all(told[origin] == (host, hint) for origin, hint in advice.items())
    assert "cors.origins" in told["https://page.example"][1]
    assert "cors.origins" in told["https://asks.example"][1]
    (refused,) = lines("host_refused")
    assert (refused["host"], "server.allowed_hosts" in refused["hint"]) == (rebound["Host"], True)
    await asyncio.gather(*(post(f"https://{n}.evil.example") for n in range(100)))
    assert len(lines("origin_refused")) == 64


async def test_a_page_under_a_foreign_name_can_not_borrow_a_local_one(lab: Lab) -> None:
    """DNS rebinding through a proxy: such a page chooses its X-Forwarded-Host, which nginx passes on, not its Host."""
    gateway = await lab.gateway(await lab.simulator(), options=(), server__trusted_proxies="127.0.0.0/8")
    for host, forwarded, status in (
        ("evil.example", "localhost", 403),
        ("localhost", "evil.example", 403),
        ("evil.example", "evil.example", 403),
        ("127.0.0.1:8288", "localhost:8080", 200),
    ):
        headers = {"Host": host, "X-Forwarded-Host": forwarded}
        async with lab.http.get(f"{gateway.url}/queue", headers=headers) as answer:
            assert answer.status == status, (host, forwarded)


async def test_requests_that_are_no_http_are_refused_behind_a_proxy_too(lab: Lab) -> None:
    """No client address can be read from such a request, so its line in the log names the peer."""
    gateway = await with_keys(lab, server__trusted_proxies="127.0.0.0/8")
    for raw in (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\nA\0: b\r\n\r\n"):
        heard = await talk(gateway.port, raw, silence=5)
        assert (heard.statuses, heard.closed) == ([400], True), raw
    lines = [line for line in gateway.log_lines() if line.get("event") == "http" and line["status"] == 400]
    assert [line["client_address"] for line in lines] == 3 * ["127.0.0.1"]
    assert not [line for line in gateway.log_lines() if line.get("event") == "request_failed"]
