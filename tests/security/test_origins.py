"""Pages of other origins, other names, proxies' headers; and what a browser may do with what it gets."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import aiohttp
import pytest

from gateway.settings import load
from gateway.web.guard.cross_origin import Asked, Origins
from gateway.web.http.allowed_hosts import configured_hosts, hosts_without_keys
from tests.security.recorder import Recorder, passes_on, talk
from tests.support.lab import GatewayProcess, Lab, Server
from tests.support.workflows import slow

USER, BOSS = "key-of-a-user-1234", "key-of-the-boss-12"
APP, EVIL = "https://app.example.com", "https://evil.example.com"


def settings(**server: Any) -> Any:
    """A configuration that lists one origin."""
    return load(None, environment={}, flags={"server": server, "cors": {"origins": [APP]}})


OWN = "http://gate.example:8288"


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        # No page: a program.
        ({"method": "POST"}, True),
        # Its own page.
        ({"method": "POST", "origin": OWN}, True),
        ({"method": "POST", "origin": OWN, "site": "same-origin"}, True),
        ({"method": "POST", "origin": OWN.replace("http", "https")}, True),
        ({"method": "POST", "origin": OWN, "scheme": "https"}, False),
        ({"method": "POST", "origin": OWN.upper().replace("HTTP", "http")}, True),
        ({"method": "POST", "origin": "http://gate.example", "host": "gate.example:80"}, True),
        ({"method": "POST", "origin": "https://gate.example:443", "host": "gate.example"}, True),
        # If either side names no port, the port is ignored, as in ComfyUI, unless the browser calls it another's.
        ({"method": "POST", "origin": "http://gate.example", "host": "gate.example:443"}, True),
        ({"method": "POST", "origin": OWN, "host": "gate.example"}, True),
        ({"method": "POST", "origin": OWN, "host": "GATE.example:"}, True),
        ({"method": "POST", "origin": OWN, "host": "gate.example", "site": "same-origin"}, True),
        ({"method": "POST", "origin": OWN, "host": "gate.example", "site": "same-site"}, False),
        ({"method": "POST", "origin": OWN, "host": "gate.example", "site": "cross-site"}, False),
        ({"method": "POST", "origin": OWN, "host": "gate.example", "scheme": "https"}, False),
        ({"method": "POST", "origin": "https://gate.example:8443", "host": "gate.example", "scheme": "https"}, True),
        ({"method": "POST", "origin": "http://gate.example", "site": "same-site"}, False),
        ({"method": "POST", "origin": "http://gate.example"}, True),
        ({"method": "POST", "origin": "http://[::1]:8288", "host": "[::1]"}, True),
        ({"method": "POST", "origin": "http://[::2]:8288", "host": "[::1]"}, False),
        ({"method": "POST", "origin": "http://evil.example:8288", "host": "gate.example"}, False),
        ({"method": "POST", "origin": "http://evil.example", "host": "gate.example"}, False),
        ({"method": "POST", "origin": "http://gate.example@evil.example", "host": "gate.example"}, False),
        ({"method": "POST", "origin": "http://[", "host": "gate.example"}, False),
        ({"path": "/ws", "origin": OWN, "host": "gate.example"}, True),
        ({"path": "/ws", "origin": OWN, "host": "gate.example", "site": "same-site"}, False),
        # Another's.
        ({"method": "POST", "origin": EVIL}, False),
        ({"method": "POST", "origin": EVIL, "brings_key": True}, False),
        ({"method": "POST", "origin": "null"}, False),
        ({"method": "POST", "origin": ""}, False),
        ({"method": "POST", "origin": "http://gate.example:8289"}, False),
        ({"method": "POST", "origin": "http://gate.example:8289", "site": "same-origin"}, False),
        ({"method": "POST", "origin": "http://evil.gate.example:8288"}, False),
        ({"method": "POST", "origin": "file://"}, False),
        ({"method": "POST", "origin": "chrome-extension://gate.example:8288"}, False),
        ({"method": "POST", "origin": "http://", "host": ""}, False),
        ({"method": "POST", "site": "cross-site"}, False),
        ({"method": "POST", "site": "cross-site", "mode": "navigate"}, False),
        ({"method": "DELETE", "origin": EVIL}, False),
        ({"method": "POST", "origin": APP, "site": "cross-site"}, True),
        # Sockets are writes; reads are for CORS to judge, but what a page merely embeds is not.
        ({"path": "/ws", "origin": EVIL}, False),
        ({"path": "/ws", "origin": OWN}, True),
        ({"origin": EVIL}, True),
        ({"origin": EVIL, "site": "cross-site"}, False),
        ({"site": "cross-site", "mode": "no-cors"}, False),
        ({"site": "cross-site", "mode": "no-cors", "brings_key": True}, True),
        ({"site": "cross-site", "mode": "no-cors", "referer": f"{APP}/page"}, True),
        ({"site": "same-site", "mode": "no-cors"}, True),
        ({"site": "cross-site", "mode": "navigate"}, True),
        ({"site": "none", "mode": "navigate"}, True),
        # What is for admins is not even read for another's page.
        ({"for_admins": True, "is_signed_in": True, "site": "cross-site", "mode": "navigate"}, False),
        ({"for_admins": True, "is_signed_in": True, "site": "same-site", "mode": "navigate"}, False),
        ({"for_admins": True, "is_signed_in": True, "site": "same-origin"}, True),
        ({"for_admins": True, "is_signed_in": True, "site": "none", "mode": "navigate"}, True),
        ({"for_admins": True, "is_signed_in": True}, False),
        ({"for_admins": True, "is_signed_in": True, "referer": f"{OWN}/page"}, True),
        ({"for_admins": True, "is_signed_in": True, "referer": f"{OWN}/page", "host": "gate.example"}, True),
        ({"for_admins": True, "is_signed_in": True, "referer": f"{EVIL}/{OWN}"}, False),
        ({"for_admins": True, "referer": f"{EVIL}/page"}, False),
        ({"for_admins": True}, True),
        ({"for_admins": True, "brings_key": True, "site": "cross-site"}, True),
        ({"for_admins": True, "is_signed_in": True, "referer": "http://[", "site": ""}, False),
        ({"for_admins": True, "is_signed_in": True, "path": "/gateway/backends", "site": "none"}, True),
    ],
)
def test_what_a_page_may_ask_for(said: dict[str, Any], allowed: bool) -> None:
    asked = Asked(**{"method": "GET", "path": "/x", "scheme": "http", "host": "gate.example:8288", **said})
    assert (Origins(settings()).forbids(asked) is None) == allowed


@pytest.mark.parametrize(
    ("host", "listed", "open_on_loopback", "open_elsewhere"),
    [
        ("gate.example", True, True, True),
        ("GATE.example.:8288", True, True, True),
        ("a.inner.example", True, True, True),
        ("inner.example", False, False, False),
        ("evil.example:8288", False, False, False),
        ("gate.example.evil.example", False, False, False),
        ("127.0.0.1:8288", False, True, False),
        ("127.9.9.9", False, True, False),
        ("[::1]:8288", False, True, False),
        ("localhost:8288", False, True, False),
        ("a.localhost", False, True, False),
        ("localhost.evil.example", False, False, False),
        ("127.0.0.1.evil.example", False, False, False),
        ("gateway:8288", False, True, False),
        ("", True, True, True),
    ],
)
def test_by_which_names_it_may_be_asked(host: str, listed: bool, open_on_loopback: bool, open_elsewhere: bool) -> None:
    names = ["Gate.example", "*.inner.example"]
    assert configured_hosts(settings(host="0.0.0.0", allowed_hosts=names)).allows(host) == listed
    assert hosts_without_keys(settings(allowed_hosts=names)).allows(host) == open_on_loopback
    assert hosts_without_keys(settings(host="0.0.0.0", allowed_hosts=names)).allows(host) == open_elsewhere
    assert configured_hosts(settings()).any
    assert configured_hosts(settings()).allows(host)


async def keyed(lab: Lab, backend: str, up: int, **settings: object) -> GatewayProcess:
    """A gateway with a user's key and an admin's."""
    config = lab.directory / "gateway.yaml"
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in (USER, BOSS)]
    config.write_text(
        f"auth: {{keys: [{{name: user, sha256: {digests[0]}}}, {{name: boss, sha256: {digests[1]}, role: admin}}]}}\n"
        "tenants: {default: {nodes: {trust: [gwtest]}}}"
    )
    return await lab.gateway(backend, options=("--config", str(config)), up=up, **settings)


async def signed_in(lab: Lab, gateway: Server, key: str, **headers: str) -> str:
    """The cookie of somebody who signed in."""
    form = {"key": key, "next": "/"}
    async with lab.http.post(
        f"{gateway.url}/gateway/signin", data=form, headers=headers, allow_redirects=False
    ) as answer:
        assert answer.status == 303, await answer.text()
        cookie = answer.headers["Set-Cookie"]
    assert ("Secure" in cookie) == (headers.get("X-Forwarded-Proto") == "https")
    return cookie.split(";")[0]


async def statuses(lab: Lab, gateway: Server, requests: list[tuple[str, str, dict[str, str]]]) -> list[int]:
    """What each is answered with."""
    found = []
    for method, path, headers in requests:
        body = {"json": {"prompt": slow()}} if path == "/prompt" else {"json": {}} if method == "POST" else {}
        async with lab.http.request(
            method, gateway.url + path, headers=headers, allow_redirects=False, **body
        ) as answer:
            found.append(answer.status)
    return found


async def test_pages_and_names_over_real_requests(lab: Lab) -> None:
    """DNS rebinding and foreign pages against an open gateway on loopback."""
    gateway = await lab.gateway(await lab.simulator(), options=(), cors__origins=APP)
    rebound = {"Host": f"evil.example:{gateway.port}", "Origin": f"http://evil.example:{gateway.port}"}
    asked = [
        ("POST", "/prompt", {}),
        ("POST", "/prompt", {"Origin": gateway.url}),
        ("POST", "/prompt", {"Origin": APP}),
        ("POST", "/prompt", {"Origin": EVIL}),
        ("POST", "/prompt", {"Origin": "null"}),
        ("POST", "/prompt", rebound),
        ("GET", "/history", {"Host": rebound["Host"]}),
        ("GET", "/", {"Host": rebound["Host"]}),
        ("GET", "/metrics", {"Host": rebound["Host"]}),
        ("GET", "/healthz", {"Host": rebound["Host"]}),
        ("GET", "/history", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}),
        ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}),
        ("GET", "/manager/reboot", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}),
        ("GET", "/%6danager/reboot", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}),
        ("GET", "/api/manager/reboot", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}),
        # Where nobody needs a key, one that a page makes up is none of its own.
        ("GET", "/manager/reboot?token=x", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}),
        ("GET", "/history?token=x", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}),
    ]
    found = await statuses(lab, gateway, asked)
    assert found[:12] == [200, 200, 200, 403, 403, 403, 403, 403, 403, 200, 403, 200]
    assert found[12:] == [403, 403, 403, 403, 403]
    for origin, works in ((gateway.url, True), (APP, True), (EVIL, False), ("null", False)):
        if works:
            async with lab.http.ws_connect(f"{gateway.url}/ws", headers={"Origin": origin}) as socket:
                assert (await socket.receive(5)).type is aiohttp.WSMsgType.TEXT
        else:
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await lab.http.ws_connect(f"{gateway.url}/ws", headers={"Origin": origin})


async def test_preflights_and_credentials(lab: Lab) -> None:
    """Listed origins are answered by name, with credentials; others get nothing that a browser takes for a yes."""
    gateway = await keyed(lab, (await lab.simulator()).url, 1, cors__origins=APP)
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key,content-type"}
    for path in ("/prompt", "/api/prompt", "/upload/image", "/api/jobs/cancel", "/userdata/x", "/some/custom/node"):
        async with lab.http.options(gateway.url + path, headers={"Origin": APP, **preflight}) as answer:
            assert answer.status == 200, path
            assert answer.headers["Access-Control-Allow-Origin"] == APP
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"
            assert "X-API-KEY" in answer.headers["Access-Control-Allow-Headers"].upper()
        for origin in (EVIL, "null", APP + ".evil.example"):
            async with lab.http.options(gateway.url + path, headers={"Origin": origin, **preflight}) as answer:
                assert answer.status == 403, path
                assert "Access-Control-Allow-Origin" not in answer.headers
    for path, status in (
        ("/queue", 200),
        ("/gateway/backends", 403),
        ("/view?filename=none.png", 404),
        ("/nothing", 404),
    ):
        for origin in (APP, EVIL, "null"):
            async with lab.http.get(gateway.url + path, headers={"Origin": origin, "X-API-Key": USER}) as answer:
                assert answer.status == status
                assert answer.headers.get("Access-Control-Allow-Origin") == (APP if origin == APP else None)
    async with lab.http.get(f"{gateway.url}/queue", headers={"Origin": APP}) as answer:
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (401, APP)


async def test_behind_a_proxy(lab: Lab) -> None:
    """Whom, how and by what name it was asked is believed of a trusted proxy; of others it is not."""
    simulator = await lab.simulator()
    told = {
        "X-Forwarded-For": "198.51.100.9, 203.0.113.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "comfy.example",
    }
    page = {"Origin": "https://comfy.example", **told}
    for trusted, remote, page_status in (("127.0.0.0/8", "203.0.113.7", 200), ("10.0.0.0/8", "127.0.0.1", 403)):
        gateway = await keyed(lab, simulator.url, 1, server__trusted_proxies=trusted)
        cookie = await signed_in(lab, gateway, USER, **(told if page_status == 200 else {}))
        asked = [("POST", "/queue", {"Cookie": cookie, **page}), ("GET", "/queue", {"Cookie": cookie, **told})]
        assert await statuses(lab, gateway, asked) == [page_status, 200]
        remotes = [line["client_address"] for line in gateway.log_lines() if line.get("route") == "/queue"]
        assert remotes == [remote, remote]
        assert await gateway.stop() == 0
    open_to_some = await lab.gateway(
        simulator, options=(), server__trusted_proxies="127.0.0.0/8", tenants__anonymous__networks="203.0.113.0/24"
    )
    asked = [
        ("GET", "/queue", {"X-Forwarded-For": "203.0.113.7"}),
        ("GET", "/queue", {"X-Forwarded-For": "203.0.113.7, 198.51.100.9"}),
        ("GET", "/queue", {"X-Forwarded-For": "203.0.113.7, 127.0.0.1"}),
        ("GET", "/queue", {"Forwarded": "for=203.0.113.7"}),
        ("GET", "/queue", {"X-Real-IP": "203.0.113.7"}),
        ("GET", "/queue", {}),
    ]
    assert await statuses(lab, open_to_some, asked) == [200, 401, 200, 401, 401, 401]


async def test_a_link_does_nothing_in_the_name_of_an_admin(lab: Lab) -> None:
    """ComfyUI-Manager acts on GET, and a browser sends its cookie along with a link that is followed."""
    backend = Recorder()
    await backend.start()
    gateway = await keyed(lab, backend.url, 0, probe__interval=30, auth__metrics="key")
    cookie = {"Cookie": await signed_in(lab, gateway, BOSS)}
    basic = {"Authorization": "Basic " + base64.b64encode(f":{BOSS}".encode()).decode()}
    navigation = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}
    asked = [
        ("GET", "/manager/reboot", {**cookie, **navigation, "Sec-Fetch-Site": "cross-site"}),
        ("GET", "/api/v2/manager/reboot", {**cookie, **navigation, "Sec-Fetch-Site": "cross-site"}),
        ("GET", "/manager/reboot", {**cookie, **navigation, "Sec-Fetch-Site": "same-site"}),
        ("GET", "/manager/reboot", {**cookie, "Referer": f"{EVIL}/page"}),
        ("GET", "/manager/reboot", cookie),
        # A token that does not count: an empty one, or one beside what the browser itself adds.
        ("GET", "/manager/reboot?token=", {**cookie, **navigation, "Sec-Fetch-Site": "cross-site"}),
        ("GET", "/manager/reboot?token=%20", {**cookie, **navigation, "Sec-Fetch-Site": "cross-site"}),
        ("GET", "/manager/reboot?token=x", {**basic, **navigation, "Sec-Fetch-Site": "cross-site"}),
        ("HEAD", "/manager/reboot", {**cookie, "Sec-Fetch-Site": "cross-site"}),
        ("POST", "/manager/queue/install", {**cookie, "Origin": EVIL}),
        ("POST", "/gateway/backends/b1/drain", {**cookie, "Origin": EVIL}),
    ]
    assert await statuses(lab, gateway, asked) == [403] * len(asked)
    assert not any("manager" in seen.path for seen in backend.seen)
    allowed = [
        ("GET", "/manager/reboot", {**cookie, "Sec-Fetch-Site": "same-origin"}),
        ("GET", "/manager/reboot", {**cookie, "Referer": f"{gateway.url}/"}),
        ("GET", "/manager/reboot", {"X-API-Key": BOSS}),
        ("GET", f"/manager/reboot?token={BOSS}", {**navigation, "Sec-Fetch-Site": "cross-site"}),
        ("GET", "/gateway/backends", cookie),
        ("GET", "/queue", {**cookie, **navigation, "Sec-Fetch-Site": "cross-site"}),
    ]
    assert await statuses(lab, gateway, allowed) == [200] * len(allowed)
    assert await gateway.stop() == 0
    await backend.close()


async def test_what_callers_made_does_not_run(lab: Lab) -> None:
    """Whatever an older ComfyUI or a custom node says it is. Nor are pages framed by others."""
    backend = Recorder()
    await backend.start()
    gateway = await lab.gateway(backend.url, up=0, probe__interval=30, cors__origins=APP)
    await passes_on(lab, gateway.url)

    async def shown(path: str, kind: str, named: str = "", **asked: str) -> dict[str, str]:
        disposition = f'Content-Disposition: {named or "inline"}; filename="a"\r\n'
        raw = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{disposition}Content-Length: 2\r\n\r\nok"
        backend.answers[path] = raw.encode()
        async with lab.http.get(
            gateway.url + path, headers={k.replace("_", "-"): v for k, v in asked.items()}
        ) as answer:
            assert answer.status == 200, path
            return {name.lower(): value for name, value in answer.headers.items()}

    for path in (
        "/view?filename=a&type=output",
        "/userdata/a",
        "/api/userdata/a",
        "/api/assets/7/content",
        "/custom/viewer?filename=a",
    ):
        for kind in ("text/html", "image/svg+xml", "text/xml; charset=utf-8", "application/javascript", "TEXT/HTML"):
            headers = await shown(path, kind)
            assert headers["content-type"] == "application/octet-stream", (path, kind)
            assert headers["content-disposition"] == 'attachment; filename="a"'
            assert headers["content-security-policy"] == "sandbox"
            assert headers["x-content-type-options"] == "nosniff"
        headers = await shown(path, "image/png")
        assert headers["content-type"] == "image/png"
        assert headers["content-disposition"] == 'inline; filename="a"'
        assert headers["content-security-policy"] == "sandbox"
        assert (await shown(path, "image/svg+xml", Sec_Fetch_Dest="image"))["content-type"] == "image/svg+xml"
        assert (await shown(path, "text/html", Sec_Fetch_Dest="image"))["content-type"] == "application/octet-stream"
    assert (await shown("/userdata/user.css", "text/css"))["content-type"] == "text/css"
    headers = await shown("/", "text/html; charset=utf-8")
    assert headers["content-type"].startswith("text/html")
    assert headers["content-security-policy"] == f"frame-ancestors 'self' {APP}"
    assert headers["referrer-policy"] == "same-origin"
    headers = await shown("/extensions/a.js", "text/javascript")
    assert headers["content-type"] == "text/javascript"
    assert "content-security-policy" not in headers
    async with lab.http.get(f"{gateway.url}/queue") as answer:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Server"] == "comfyui-gateway"
    heard = await talk(gateway.port, b"nonsense\r\n\r\n")
    assert b"aiohttp" not in heard.raw
    assert b"Python" not in heard.raw
    assert await gateway.stop() == 0
    await backend.close()
