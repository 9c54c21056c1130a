"""The sign-in page: a key into a cookie, and nothing else into anything."""

from __future__ import annotations

from tests.acceptance.test_uploads import ANNA, with_keys
from tests.lab import Lab

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
    for wrong in ("", "wrong-key-12345", "x" * 50_000):
        async with lab.http.post(url, data={"key": wrong}, allow_redirects=False) as answer:
            assert answer.status in (401, 413)
            assert "Set-Cookie" not in answer.headers
            assert wrong == "" or wrong not in await answer.text()
    assert ANNA not in gateway.log.read_text()


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
