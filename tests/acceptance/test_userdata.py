"""What the web UI saves: an isolated tenant's own, in the gateway; answered as a ComfyUI answers."""

from __future__ import annotations

import io
import json
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.uploads import ANNA, BEN, BOSS, with_keys

TIMES = ("modified", "created")
Step = tuple[str, str, Any]


def named(name: str, query: str = "") -> str:
    """The path of a file."""
    return f"/userdata/{quote(name, safe='')}{query}"


STEPS: list[Step] = [
    ("GET", "/settings", None),
    ("GET", "/settings/Comfy.ColorPalette", None),
    ("POST", "/settings/Comfy.ColorPalette", b'"dark"'),
    ("POST", "/settings", b'{"a": 1, "b": {"c": [null, 1.5]}}'),
    ("GET", "/settings", None),
    ("GET", "/settings/b", None),
    ("GET", "/settings/none", None),
    ("GET", "/userdata", None),
    ("GET", "/userdata?dir=workflows", None),
    ("GET", "/v2/userdata?path=workflows", None),
    ("POST", named("workflows/a b.json"), b'{"nodes": []}'),
    ("POST", named("workflows/sub/\xfc.json", "?full_info=true"), b"{}"),
    ("POST", named("workflows/a b.json", "?overwrite=false"), b"other"),
    ("POST", named("workflows/a b.json", "?overwrite=true&full_info=TRUE"), b"new"),
    ("GET", named("workflows/a b.json"), None),
    ("GET", named("workflows/../workflows/a b.json"), None),
    ("GET", named("workflows/none.json"), None),
    ("GET", named("../x"), None),
    ("GET", named("/etc/passwd"), None),
    ("GET", named(quote("../x", safe="")), None),
    ("POST", named("../x"), b"x"),
    ("DELETE", named("../x"), None),
    ("GET", "/userdata?dir=workflows", None),
    ("GET", "/userdata?dir=workflows&recurse=true", None),
    ("GET", "/userdata?dir=workflows&recurse=true&split=true", None),
    ("GET", "/userdata?dir=workflows&recurse=true&full_info=true&split=true", None),
    ("GET", "/userdata?dir=workflows%2fsub", None),
    ("GET", "/userdata?dir=..", None),
    ("GET", "/userdata?dir=/etc", None),
    ("GET", "/userdata?dir=none", None),
    ("GET", "/v2/userdata", None),
    ("GET", "/v2/userdata?path=workflows", None),
    ("GET", "/v2/userdata?path=workflows/sub", None),
    ("GET", "/v2/userdata?path=..", None),
    ("GET", "/v2/userdata?path=none", None),
    ("GET", "/v2/userdata?path=comfy.settings.json", None),
    ("POST", f"{named('workflows/a b.json')}/move/{quote('workflows/c.json', safe='')}?full_info=true", b""),
    ("POST", f"{named('workflows/none.json')}/move/{quote('workflows/d.json', safe='')}", b""),
    ("POST", f"{named('workflows/c.json')}/move/{quote('workflows/sub/ü.json', safe='')}?overwrite=false", b""),
    ("POST", f"{named('workflows/c.json')}/move/{quote('../x', safe='')}", b""),
    ("POST", f"{named('workflows/c.json')}/move/{quote('workflows/sub/ü.json', safe='')}", b""),
    ("GET", named("workflows/sub/ü.json"), None),
    ("DELETE", named("workflows/sub/ü.json"), None),
    ("DELETE", named("workflows/sub/ü.json"), None),
    ("GET", "/userdata?dir=workflows&recurse=true", None),
]


async def ask(http: aiohttp.ClientSession, base: str, step: Step, headers: dict[str, str]) -> tuple[int, Any]:
    """A step's answer, without what differs by the clock."""
    method, path, body = step
    async with http.request(method, URL(base + path, encoded=True), data=body, headers=headers) as answer:
        data = await answer.read()
        try:
            return answer.status, _timeless(json.loads(data))
        except ValueError:
            return answer.status, data


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if isinstance(value, dict):
        return {key: 0 if key in TIMES else _timeless(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_as_a_comfyui_answers(lab: Lab, prefix: str) -> None:
    """The same steps with a ComfyUI and as an isolated tenant; nothing of it reaches a backend."""
    simulator, behind = await lab.simulators(2)
    gateway = await with_keys(lab, behind)
    for method, path, body in STEPS:
        step = (method, prefix + path, body)
        expected = await ask(lab.http, simulator.url, step, {})
        found = await ask(lab.http, gateway.url, step, {"X-API-Key": ANNA})
        if expected[0] >= 400 and not expected[1]:
            # A ComfyUI leaves it at the status.
            assert (found[0], bool(found[1]["error"]["message"])) == (expected[0], True), step
        else:
            assert found == expected, step
    asked = await behind.requests(lab.http)
    assert not [route for route in asked if "userdata" in route or "settings" in route or "users" in route]


async def test_each_tenant_has_its_own(lab: Lab) -> None:
    """Ben neither reads nor changes what Anna saved; an admin has the primary backend's, as ever."""
    simulator = await lab.simulator()
    gateway = await with_keys(lab, simulator)
    anna, ben, boss = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN, BOSS))
    alone = Comfy(lab.http, simulator.url)
    name = named("workflows/secret.json")
    assert await anna.get("/users") == {"storage": "server", "migrated": False}
    for comfy, text in ((anna, "anna"), (ben, "ben"), (boss, "boss")):
        assert (await comfy.post(name, text))[0] == 200
        assert (await comfy.post("/settings/of", text))[0] == 200
    for comfy, text in ((anna, "anna"), (ben, "ben"), (boss, "boss"), (alone, "boss")):
        async with lab.http.get(comfy.url + name, headers=comfy.headers) as answer:
            assert await answer.text() == f'"{text}"'
        assert await comfy.get("/settings") == {"of": text}
        assert await comfy.get("/userdata", dir="workflows") == ["secret.json"]
    assert await anna.get("/users") == {"storage": "server", "migrated": True}
    assert (await anna.post("/users", {"username": "anna"}))[0] == 403
    # It outlives the gateway, and does not need a backend.
    await gateway.stop()
    await simulator.kill()
    gateway = await with_keys(lab, simulator.url, up=0)
    async with lab.http.get(gateway.url + name, headers=anna.headers) as answer:
        assert await answer.text() == '"anna"'


async def test_nothing_saved_runs_in_a_browser(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator())
    anna = Comfy(lab.http, gateway.url, X_API_Key=ANNA)
    for file, content_type, disposition in (
        ("x.html", "application/octet-stream", "attachment"),
        ("x.svg", "application/octet-stream", "attachment"),
        ("x.json", "application/json", "attachment"),
        ("user.css", "text/css", "inline"),
        ("sub/user.css", "application/octet-stream", "attachment"),
    ):
        assert (await anna.post(named(file), "<script>alert(1)</script>"))[0] == 200
        async with lab.http.get(anna.url + named(file), headers=anna.headers) as answer:
            headers = answer.headers
            assert headers["Content-Type"].partition(";")[0] == content_type, file
            assert headers["Content-Disposition"] == disposition, file
            assert headers["X-Content-Type-Options"] == "nosniff"


async def test_a_tenant_can_not_fill_the_disk(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator(), userdata__quota=1000, userdata__max_files=6)
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
    data = lab.directory / "data" / "userdata"

    async def save(comfy: Comfy, name: str, size: int) -> int:
        async with lab.http.post(comfy.url + named(name), data=b"x" * size, headers=comfy.headers) as answer:
            return answer.status

    assert await save(anna, "a", 600) == 200
    assert await save(anna, "b", 600) == 507
    assert await save(anna, "b", 1001) == 413
    assert await save(anna, "a", 1000) == 200
    assert await save(ben, "a", 600) == 200
    assert await save(anna, "a", 1) == 200
    for n in range(5):
        assert await save(anna, f"f{n}", 1) == 200
    assert await save(anna, "f9", 1) == 507
    assert await save(anna, "f4", 2) == 200
    assert (await anna.post("/settings", {"x": "y"}))[0] == 507
    assert (await anna.post("/settings", {"x": "y" * 1_000_000}))[0] == 507
    async with lab.http.post(
        anna.url + "/settings", data=io.BytesIO(b" " * 2**20 + b"{}"), headers=anna.headers
    ) as answer:
        assert answer.status == 413
    assert await save(anna, "d/e/f", 0) == 507
    assert (await anna.post(f"{named('f4')}/move/{quote('g/h', safe='')}"))[0] == 507
    assert (await anna.post(f"{named('f4')}/move/f3"))[0] == 200
    for wrong, status in (("a/x", 400), ("x" * 300, 400), ("x\\y", 400), ("x\x00y", 400), ("x\ny", 400), ("x/..", 400)):
        assert await save(anna, wrong, 1) == status, wrong
    assert (await anna.post("/settings", [1]))[0] == 400
    async with lab.http.post(anna.url + "/settings", data=b"{", headers=anna.headers) as answer:
        assert answer.status == 400
    assert not list((data / ".arriving" / "unfinished").iterdir())
    assert len(list(data.iterdir())) == 3
