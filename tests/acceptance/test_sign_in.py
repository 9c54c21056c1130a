"""The sign-in page: a key into a cookie, and nothing else into anything."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tests.support.comfy_client import Comfy
from tests.support.keys_api import CLOSED, ask, audit, make, wrong
from tests.support.lab import GatewayProcess, Lab
from tests.support.uploads import ANNA, with_keys

HTML = {"Accept": "text/html,application/xhtml+xml"}


async def test_a_browser_is_sent_to_the_page_and_a_program_is_not(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator())
    for path, location in (("/", "/gateway/signin"), ("/a b/ü?x=1", "/gateway/signin?next=/a%20b/%C3%BC")):
        async with lab.http.get(gateway.url + path, headers=HTML, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, location)
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        async with lab.http.get(gateway.url + "/", headers=headers, allow_redirects=False) as answer:
            assert answer.status == 401
    async with lab.http.post(gateway.url + "/prompt", headers=HTML, allow_redirects=False) as answer:
        assert answer.status == 401


async def test_signing_in_and_out(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator())
    url = f"{gateway.url}/gateway/signin"
    async with lab.http.get(url) as answer:
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    async with lab.http.post(url, data={"key": f" {ANNA} ", "next": "/x y"}, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/x%20y")
        cookie = answer.headers["Set-Cookie"]
        assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    async with lab.http.get(f"{gateway.url}/queue", headers={"Cookie": cookie.split(";")[0]}) as answer:
        assert answer.status == 200
    async with lab.http.post(f"{gateway.url}/gateway/signout", allow_redirects=False) as answer:
        assert answer.status == 303
        assert 'comfyui_gateway_key=""' in answer.headers["Set-Cookie"]
    for key in ("", "wrong-key-12345", "x" * 50_000):
        async with lab.http.post(url, data={"key": key}, allow_redirects=False) as answer:
            assert answer.status in (401, 413)
            assert "Set-Cookie" not in answer.headers
            assert key == "" or key not in await answer.text()
    assert ANNA not in gateway.log.read_text()


async def sign_in(lab: Lab, gateway: GatewayProcess, key: str) -> dict[str, str]:
    """Sign in; the headers that a browser sends from then on."""
    async with lab.http.post(f"{gateway.url}/gateway/signin", data={"key": key}, allow_redirects=False) as answer:
        assert answer.status == 303
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
    assert cookie.startswith("comfyui_gateway_key=cgs_")
    return {"Cookie": cookie}


async def status(lab: Lab, gateway: GatewayProcess, headers: dict[str, str], path: str = "/queue") -> int:
    """What a browser gets."""
    async with lab.http.get(gateway.url + path, headers=headers, allow_redirects=False) as answer:
        return answer.status


async def test_the_cookie_holds_no_key_and_is_worth_nothing_after_signing_out(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await with_keys(lab, simulator)
    here, there = await sign_in(lab, gateway, ANNA), await sign_in(lab, gateway, ANNA)
    assert here != there
    await gateway.kill()
    gateway = await with_keys(lab, simulator)
    assert [await status(lab, gateway, browser) for browser in (here, there)] == [200, 200]
    listener = await Comfy(lab.http, gateway.url, **here).listen("c")
    url = f"{gateway.url}/gateway/signout"
    for browser, says in ((here, True), ({}, False)):
        async with lab.http.get(f"{gateway.url}/gateway/signin", headers=browser) as answer:
            text = await answer.text()
        assert ("You are signed in as anna." in text, 'action="/gateway/signout"' in text) == (says, says)
    async with lab.http.post(url, headers=here, allow_redirects=False) as answer:
        assert answer.status == 303
    assert await listener.receive() == CLOSED
    for _ in range(2):
        assert [await status(lab, gateway, browser) for browser in (here, there)] == [401, 200]
        # Whoever is not signed in any more is led to the page.
        assert await status(lab, gateway, {**here, **HTML}, "/") == 303
        lines = audit(gateway, "sign_in") + audit(gateway, "sign_out")
        assert all((line["who"], line["client_address"]) == ("anna", "127.0.0.1") for line in lines)
        await gateway.kill()
        gateway = await with_keys(lab, simulator)
    # What the cookie holds is no key to sign in with: that would make it last for ever.
    secret = there["Cookie"].partition("=")[2]
    async with lab.http.post(f"{gateway.url}/gateway/signin", data={"key": secret}, allow_redirects=False) as answer:
        assert answer.status == 401


async def test_a_sign_in_ends_with_the_secret_that_was_typed_in(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await with_keys(lab, simulator)
    first = await make(lab, gateway, "carol")
    browser = await sign_in(lab, gateway, first)
    second = (await ask(lab, gateway, "POST", "/carol/rotate", {}))[1]["key"]
    fresh = await sign_in(lab, gateway, second)
    await gateway.kill()
    gateway = await with_keys(lab, simulator)
    assert [await status(lab, gateway, each) for each in (browser, fresh)] == [200, 200]
    await ask(lab, gateway, "POST", "/carol/rotate", {"overlap_seconds": 3600})
    assert [await status(lab, gateway, each) for each in (browser, fresh)] == [401, 200]
    listener = await Comfy(lab.http, gateway.url, **fresh).listen("c")
    await ask(lab, gateway, "DELETE", "/carol")
    assert await listener.receive() == CLOSED
    assert await status(lab, gateway, fresh) == 401


async def test_a_sign_in_ends_with_its_time(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator(), auth__sign_in=0.001)
    assert await status(lab, gateway, await sign_in(lab, gateway, ANNA)) == 401


async def test_an_old_cookie_that_guesses_nothing_still_leads_to_the_page(lab: Lab) -> None:
    """A browser sends it with dozens of requests at once; that is one wrong key."""
    gateway = await with_keys(lab, await lab.simulator(), auth__lockout__after=3, auth__lockout__first=30)
    for stale in ("cgs_" + "x" * 32, "a-key-that-was-revoked"):
        headers = {"Cookie": f"comfyui_gateway_key={stale}"}
        for _ in range(10):
            assert await status(lab, gateway, headers) in (401, 429)
        assert await status(lab, gateway, {**headers, **HTML}, "/") == 303
    assert await status(lab, gateway, await sign_in(lab, gateway, ANNA)) == 200


async def test_a_form_is_read_no_further_than_a_key_is_long(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator())

    async def endless() -> AsyncIterator[bytes]:
        yield b"key="
        while True:
            yield b"x" * 4096

    url = f"{gateway.url}/gateway/signin"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    async with lab.http.post(url, data=endless(), headers=form) as answer:
        assert answer.status == 411
    async with lab.http.post(url, data=b"key=" + b"x" * 20_000, headers=form) as answer:
        assert answer.status == 413
    for headers, body in (
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x\r\n"),
        ({"Content-Type": "application/json"}, b'{"key": "x"}'),
        ({**form, "Content-Type": form["Content-Type"] + "; charset=nope"}, b"key=x"),
        (form, b"key=%ff%fe&next=%ff"),
        (form, b"\xff\xfe=\xff"),
        (form, b""),
    ):
        async with lab.http.post(url, data=body, headers=headers) as answer:
            assert answer.status == 401, (headers, body)


async def test_behind_a_proxy_each_caller_waits_for_itself(lab: Lab) -> None:
    gateway = await with_keys(
        lab, await lab.simulator(), server__trusted_proxies="127.0.0.1", auth__lockout__after=3, auth__lockout__first=30
    )
    for n in range(5):
        headers = {"X-Forwarded-For": f"10.9.9.{n}, 10.0.0.1", "X-API-Key": f"guess-{n}"}
        assert await status(lab, gateway, headers) == (401 if n < 3 else 429)
    assert await status(lab, gateway, {"X-Forwarded-For": "10.0.0.1", "X-API-Key": ANNA}) == 429
    assert await status(lab, gateway, {"X-Forwarded-For": "10.0.0.2", "X-API-Key": ANNA}) == 200
    assert {line["client_address"] for line in audit(gateway, "key_refused")} == {"10.0.0.1"}
    assert await wrong(lab, gateway, 1) == [401]


async def test_it_leads_nowhere_else(lab: Lab) -> None:
    """Neither to another host, nor for a page of another origin, nor into the page's own HTML."""
    gateway = await with_keys(lab, await lab.simulator())
    url = f"{gateway.url}/gateway/signin"
    for evil in ("//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", "/\r\nX: y"):
        async with lab.http.post(url, data={"key": ANNA, "next": evil}, allow_redirects=False) as answer:
            assert answer.headers["Location"] == "/"
    async with lab.http.post(url, data={"key": ANNA}, headers={"Origin": "https://evil.example"}) as answer:
        assert answer.status == 403
    async with lab.http.get(url, params={"next": '/"><script>alert(1)</script>'}) as answer:
        assert "<script>" not in await answer.text()


async def test_without_keys_there_is_nothing_to_sign_in_to(lab: Lab) -> None:
    gateway = await lab.gateway(await lab.simulator())
    async with lab.http.get(f"{gateway.url}/gateway/signin?next=/x", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/x")


async def test_the_manifest_needs_no_key(lab: Lab) -> None:
    """A browser fetches it without cookies; nothing else is let through for looking like one."""
    gateway = await with_keys(lab, await lab.simulator())
    for path, needs_key in (
        ("/assets/manifest-abc123.json", False),
        ("/manifest.json", False),
        ("/assets/manifest-abc123.json?filename=x.png", True),
        ("/userdata/manifest.json", True),
        ("/assets/other.json", True),
    ):
        async with lab.http.get(gateway.url + path) as answer:
            assert (answer.status == 401) == needs_key, path
