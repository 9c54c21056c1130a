"""URLs and secrets of webhooks: with the receiver and in the journal, and nowhere else."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.security_world import KEYS, ask, caller, files_below, start
from tests.support.webhook_receiver import LOCAL, receiver
from tests.support.workflows import failing, slow

PATH = "/gateway/api/v1/me/webhooks"
# In the path and in the query of each URL, and in a prompt's own secret.
IN_PATH, IN_QUERY = "canary-of-the-path-7316-xyz", "canary-of-the-query-8425"
OWN_SECRET = "whsec_" + base64.b64encode(b"canary of a prompt's secret 0123").decode()
JOURNAL = ("gateway.sqlite3", "gateway.sqlite3-wal", "gateway.sqlite3-shm")
# The columns of the journal that may have them.
MEANT = {
    ("jobs", "webhook"),
    ("webhook_endpoints", "url"),
    ("webhook_endpoints", "secrets"),
    ("webhook_deliveries", "target"),
}


def traces(*secrets: str) -> list[bytes]:
    """How they may look: plain, in a URL, in JSON, in base64 without the prefix."""
    found: set[str] = set()
    for each in (IN_PATH, IN_QUERY, *secrets):
        text = each.removeprefix("whsec_")
        found |= {text, quote(text), quote(text, safe=""), json.dumps(text)[1:-1], text.encode().hex()}
        found.add(base64.b64encode(text.encode()).decode().rstrip("="))
    return [each.encode() for each in found]


def assert_nowhere(wanted: list[bytes], texts: list[tuple[str, bytes]]) -> None:
    """None of them in any of these."""
    for where, text in texts:
        for trace in wanted:
            assert trace not in text, f"{where} shows {trace!r}: {text[max(0, text.index(trace) - 300) :][:600]!r}"


def columns_with(directory: Path, wanted: list[bytes]) -> set[tuple[str, str]]:
    """The (table, column) of the journal that hold one of them."""
    found = set()
    connection = sqlite3.connect(f"file:{directory / 'gateway.sqlite3'}?mode=ro", uri=True)
    with contextlib.closing(connection):
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        for table in tables:
            rows = connection.execute(f"SELECT * FROM {table}")
            names = [each[0] for each in rows.description]
            for row in rows:
                for name, value in zip(names, row, strict=True):
                    held = value if isinstance(value, bytes) else str(value).encode()
                    if any(trace in held for trace in wanted):
                        found.add((table, name))
    return found


async def test_they_are_nowhere(lab: Lab) -> None:
    simulator = await lab.simulator("--record", "--steps-per-second", "50")
    async with receiver() as hook:
        gateway = await start(lab, simulator, log__level="debug", **LOCAL)
        anna, boss = caller(lab, gateway, "anna"), caller(lab, gateway, "boss")
        hears = await anna.listen("c")
        texts: list[tuple[str, bytes]] = []

        async def look(*paths: str, method: str = "GET", body: Any = None) -> None:
            for who in (anna, boss):
                for path in paths:
                    seen = await ask(who, method, path, body)
                    texts.append((f"{method} {path}", repr(seen.headers).encode() + seen.body))

        url = f"{hook.url}/{IN_PATH}?token={IN_QUERY}"
        made = await ask(anna, "POST", PATH, {"url": url, "events": ["job.queued", "job.failed"], "description": "d"})
        assert made.status == 201, made
        endpoint = json.loads(made.body)
        secrets = [OWN_SECRET, endpoint.pop("secret")]
        texts.append(("POST endpoint", json.dumps(endpoint).encode()))
        id_ = endpoint["id"]

        ids = await submit(anna, url)

        async def has_begun() -> bool:
            # On a loaded machine it may have ended by now.
            return bool((await anna.get(f"/api/jobs/{ids[0]}"))["status"] != "pending")

        await until(has_begun)
        reads = all_reads(ids, id_)
        await look(*reads)
        assert columns_with(lab.directory / "data", traces(*secrets)) <= MEANT

        # After a crash it is known still, and goes nowhere else.
        lab.expect_trouble = True
        await gateway.kill()
        gateway = await start(lab, simulator, log__level="debug", **LOCAL)
        anna, boss = caller(lab, gateway, "anna"), caller(lab, gateway, "boss")
        for each in ids:
            texts.append(("entry", json.dumps(await anna.entry(each)).encode()))
        for image in anna.images(await anna.entry(ids[0])):
            texts.append(("picture", await anna.view(image)))
        got = await hook.events(4, "job.succeeded", "job.failed")
        assert {each.event["data"]["prompt_id"] for each in got} == set(ids)
        assert all(each.path == url.removeprefix(hook.url) for each in hook.received)
        texts += [("event", each.body) for each in hook.received]
        texts += [("event's headers", repr({**each.headers, "host": ""}).encode()) for each in hook.received]
        await refusals(anna, boss, url, texts)
        await look(*reads)
        rotated = json.loads((await ask(anna, "POST", f"{PATH}/{id_}/rotate")).body)
        secrets.append(rotated.pop("secret"))
        texts.append(("rotated", json.dumps(rotated).encode()))
        await to_nobody(anna, secrets, texts)
        hook.status = 410
        await anna.entry(await anna.prompt(failing()))

        async def is_off() -> bool:
            return json.loads((await ask(anna, "GET", f"{PATH}/{id_}")).body)["reason"] == "gone"

        await until(is_off)
        await look(*reads)
        await look(f"{PATH}/{id_}", method="DELETE")
        texts.append(("events", json.dumps(hears.heard, default=repr).encode()))
        await close(lab, gateway, simulator.url, texts)
        wanted = traces(*secrets)
        assert columns_with(lab.directory / "data", wanted) <= MEANT
        assert_nowhere(wanted, texts)
        # The bytes that were looked for are what is looked into.
        assert any(b"SlowSampler" in text for _, text in texts)
        assert any(trace in data for _, data in files_below(lab.directory / "data") for trace in wanted)


async def submit(anna: Comfy, url: str) -> list[str]:
    """Send prompts with the webhook: one that runs for a while, one that fails, and one that a process apart reads."""
    webhook = {"url": url, "secret": OWN_SECRET}
    small: dict[str, Any] = {"webhook": webhook, "extra_pnginfo": {"workflow": {"id": "w"}}, "metadata": {"a": 1}}
    large = {**small, "extra_pnginfo": {"workflow": {"id": "w", "nodes": [[0] * 10_000] * 4}}}
    ids = []
    for prompt, extra in ((slow(steps=40), small), (failing(), small), (slow(1, steps=1), small), (slow(2), large)):
        status, answer = await anna.post("/prompt", {"prompt": prompt, "client_id": "c", "extra_data": extra})
        assert status == 200, answer
        ids.append(answer["prompt_id"])
    return ids


def all_reads(ids: list[str], endpoint: str) -> list[str]:
    """Whatever may show a prompt or an endpoint."""
    reads = ["/queue", "/prompt", "/history", "/api/jobs", "/metrics", "/system_stats", PATH, f"{PATH}/deliveries"]
    reads += [f"{path}/{each}" for each in ids for path in ("/history", "/api/jobs")]
    reads += [f"{PATH}/{endpoint}", f"{PATH}/{endpoint}/deliveries"]
    return [*reads, f"{PATH}?tenant=anna", f"{PATH}/deliveries?tenant=anna"]


async def to_nobody(anna: Comfy, secrets: list[str], texts: list[tuple[str, bytes]]) -> None:
    """Send a test event to a port at which nobody listens."""
    made = json.loads((await ask(anna, "POST", PATH, {"url": f"http://127.0.0.1:1/{IN_PATH}?{IN_QUERY}"})).body)
    secrets.append(made.pop("secret"))
    await ask(anna, "POST", f"{PATH}/{made['id']}/test")

    async def failed() -> bytes:
        seen = await ask(anna, "GET", f"{PATH}/{made['id']}/deliveries")
        return seen.body if json.loads(seen.body)["deliveries"][0]["attempts"] else b""

    seen = await until(failed)
    assert json.loads(seen)["deliveries"][0]["attempts"][0]["error"] == "unreachable"
    texts.append(("failed delivery", seen))


async def refusals(anna: Comfy, boss: Comfy, url: str, texts: list[tuple[str, bytes]]) -> None:
    """Prompts and endpoints that are refused, each for another reason."""
    for webhook in (url, {"url": url, "events": [IN_PATH]}, {"url": url, "secret": IN_PATH}, {"url": f"ftp:{IN_PATH}"}):
        seen = await ask(anna, "POST", "/prompt", {"prompt": slow(), "extra_data": {"webhook": webhook}})
        assert seen.status == 400
        texts.append(("refused prompt", seen.body))
    refused = {"prompt": {"1": {"class_type": "Nothing", "inputs": {}}}, "extra_data": {"webhook": {"url": url}}}
    for who in (anna, boss):
        for path, body in (
            ("/prompt", refused),
            (PATH, {"url": f"https://x:{IN_PATH}@a.example/"}),
            (PATH, {"url": f"https://10.0.0.1/{IN_PATH}"}),
            (PATH, {"url": url, "events": [IN_PATH]}),
        ):
            seen = await ask(who, "POST", path, body)
            assert seen.status == 400, seen
            texts.append((f"refused {path}", seen.body))


async def close(lab: Lab, gateway: GatewayProcess, backend: str, texts: list[tuple[str, bytes]]) -> None:
    """Stop the gateway, and add all that is left: what its backend was sent, its logs, its files but the journal."""
    async with lab.http.get(f"{backend}/simulator/recorded") as answer:
        recorded = await answer.read()
    assert recorded.count(b"SlowSampler") >= 3
    texts.append(("requests to the backend", recorded))
    await gateway.stop()
    logs = [server.log.read_bytes() for server in lab.servers if isinstance(server, GatewayProcess)]
    texts += [("log", line) for log in logs for line in log.splitlines()]
    assert len(logs) == 2
    assert b'"webhook_attempt_failed"' in logs[1]
    files = files_below(lab.directory / "data")
    texts += [(str(path), data) for path, data in files if path.name not in JOURNAL]
    assert KEYS["anna"].encode() not in logs[0]
