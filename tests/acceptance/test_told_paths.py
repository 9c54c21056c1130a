"""Paths of the gateway's own that a client is told, in bodies and in headers: all lie under the prefix that it sees."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.support.lab import GatewayProcess, Lab
from tests.support.two_users import ANNA, BOSS, with_keys

OPENAPI = "/gateway/openapi.json"
# Method, path, form, key, status, and the paths that the answer names, by their order.
TOLD: list[tuple[str, str, dict[str, str] | None, str, int, list[str]]] = [
    ("GET", "/gateway/nothing", None, BOSS, 404, [OPENAPI]),
    ("GET", "/models/nothing", None, ANNA, 404, ["/models/nothing"]),
    ("PATCH", "/gateway/signin", None, BOSS, 405, ["/gateway/signin"]),
    ("POST", f"/userdata/{'a' * 300}", {}, ANNA, 400, [f"/userdata/{'a' * 190}", OPENAPI]),
    ("DELETE", "/gateway/keys/nobody", None, BOSS, 404, ["/gateway/keys"]),
    ("GET", "/api/jobs?tenant=nobody", None, BOSS, 404, ["/gateway/keys"]),
    ("GET", "/queue", None, "cookie", 401, ["/gateway/signin"]),
    ("GET", "/x", None, "", 303, ["/gateway/signin"]),
    ("GET", "/gateway/signin", None, "", 200, ["/gateway/signin"]),
    ("POST", "/gateway/signin", {"key": ANNA, "next": "/queue"}, "", 303, ["/queue", "/"]),
    ("POST", "/gateway/signout", {}, "cookie", 303, ["/gateway/signin", "/"]),
    ("GET", OPENAPI, None, ANNA, 200, [""]),
]
# By a header's name or the kind of a body: what stands before and after a path.
FOUND = {
    "Location": r"^([^?]*)",
    "Set-Cookie": r"; Path=([^;]*)",
    "json": r"(?:^|GET |POST |at )(/[^\s:;,]*)",
    "html": r'action="([^"]*)"',
}


async def told(lab: Lab, gateway: GatewayProcess, headers: dict[str, str], row: tuple[Any, ...]) -> list[str]:
    """The paths in an answer, those of headers first."""
    method, path, form, key, status, _ = row
    own = {"cookie": {"Cookie": "comfyui_gateway_key=cgs_" + "x" * 32}, "": {}}.get(key, {"X-API-Key": key})
    if status in (200, 303) and method == "GET" and not key:
        own = {"Accept": "text/html"}
    url, sent = gateway.url + path, {**headers, **own, "Origin": gateway.url}
    async with lab.http.request(method, url, data=form, headers=sent, allow_redirects=False) as answer:
        text = await answer.text()
        assert answer.status == status, (row, answer.status, text)
        found = [each for name in ("Location", "Set-Cookie") for line in answer.headers.getall(name, [])
                 for each in re.findall(FOUND[name], line)]  # fmt: skip
        if answer.content_type == "text/html":
            return found + re.findall(FOUND["html"], text)
        body = json.loads(text) if answer.content_type == "application/json" else {}
        servers = [server["url"] for server in body.get("servers", [])] if "openapi" in body else []
        return found + servers + re.findall(FOUND["json"], (body.get("error") or {}).get("details", ""))


async def test_every_path_has_the_prefix(lab: Lab) -> None:
    """The prefix of server.base_path, or the one that a trusted proxy names in its place, which may be none."""
    gateway = await with_keys(lab, server__trusted_proxies="127.0.0.0/8", server__base_path="/comfy")
    for header, prefix in (("", "/comfy"), ("/studio/gpu", "/studio/gpu"), ("/", "")):
        headers = {"X-Forwarded-Prefix": header} if header else {}
        for row in TOLD:
            expected = [prefix + path if path != "/" else prefix or "/" for path in row[-1]]
            # The description names a server if there is a prefix.
            expected = [path for path in expected if path]
            assert await told(lab, gateway, headers, row) == expected, (prefix, row)
