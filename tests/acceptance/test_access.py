"""Keys, tenants, what goes upstream, what is logged and measured."""

from __future__ import annotations

import asyncio
import base64
import sys

import aiohttp
import pytest

from tests.support.comfy_client import Comfy
from tests.support.folders import files_below
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.raw_servers import start_raw_server
from tests.support.two_users import ANNA, BEN, BOSS, with_keys
from tests.support.workflows import slow


async def test_credentials(lab: Lab) -> None:
    gateway = await with_keys(lab)
    basic = base64.b64encode(f"user:{ANNA}".encode()).decode()
    credentials: list[tuple[dict[str, str], str]] = [
        ({"X-API-Key": ANNA}, ""),
        ({"Authorization": f"Bearer {ANNA}"}, ""),
        ({"Authorization": f"Basic {basic}"}, ""),
        ({}, f"?token={ANNA}"),
        ({"Cookie": f"comfyui_gateway_key={ANNA}"}, ""),
    ]
    for headers, query in credentials:
        async with lab.http.get(f"{gateway.url}/queue{query}", headers=headers) as answer:
            assert answer.status == 200, headers
        async with lab.http.ws_connect(f"{gateway.url}/ws{query}", headers=headers) as socket:
            assert (await socket.receive(5)).type is aiohttp.WSMsgType.TEXT
    for headers in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": ANNA + "x"}, {"Authorization": "Basic !!"}):
        async with lab.http.get(f"{gateway.url}/queue", headers=headers) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert (await answer.json())["error"]["type"] == "unauthorized"
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await lab.http.ws_connect(f"{gateway.url}/ws", headers=headers)


async def test_open_paths_and_roles(lab: Lab) -> None:
    gateway = await with_keys(lab, auth__metrics="key")
    expected = {
        "/healthz": (200, 200, 200, 200),
        "/readyz": (200, 200, 200, 200),
        "/metrics": (401, 403, 200, 200),
        "/queue": (401, 200, 200, 403),
        "/gateway/backends": (401, 403, 200, 403),
        "/gateway/packs": (401, 403, 200, 403),
        "/gateway/differences": (401, 403, 200, 403),
        "/gateway/poisonous": (401, 403, 200, 403),
        "/internal/logs": (401, 403, 200, 403),
        "/api/internal/logs": (401, 403, 200, 403),
        "//internal/logs": (401, 403, None, 403),
        "/%69nternal/logs": (401, 403, None, 403),
        "/manager/queue/status": (401, 403, None, 403),
    }
    for path, statuses in expected.items():
        for key, status in zip((None, ANNA, BOSS, "key-for-metrics-1"), statuses, strict=True):
            headers = {"X-API-Key": key} if key else {}
            url = aiohttp.client.URL(gateway.url + path, encoded=True)
            async with lab.http.get(url, headers=headers) as answer:
                assert status is None or answer.status == status, (path, key, answer.status)
                if (path, key) == ("/metrics", ANNA):
                    assert (await answer.json())["error"]["message"] == (
                        "This route needs a key for metrics, or an admin's"
                    )


async def test_tenants_see_their_own(lab: Lab) -> None:
    """The same client id, file names and workflow: nothing crosses."""
    gateway = await with_keys(lab)
    anna, ben, boss = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN, BOSS))
    hears_anna, hears_ben = await anna.listen("same"), await ben.listen("same")
    prompt_id = await anna.prompt(slow(5, steps=20), "same")
    assert (await ben.get("/queue"))["queue_running"] == []
    assert (await ben.get("/prompt"))["exec_info"]["queue_remaining"] == 0
    await ben.post("/queue", {"clear": True, "delete": [prompt_id]})
    await ben.post("/interrupt", {"prompt_id": prompt_id})
    await ben.post("/interrupt")
    assert (await ben.post(f"/api/jobs/{prompt_id}/cancel"))[1] == {"cancelled": False}
    entry = await anna.entry(prompt_id)
    assert entry["status"]["status_str"] == "success"
    await hears_anna.end_of(prompt_id)
    await hears_ben.silent()
    assert len(hears_ben.heard) == 1
    assert await ben.get("/history") == {}
    assert await ben.get(f"/history/{prompt_id}") == {}
    assert (await ben.get("/api/jobs"))["jobs"] == []
    await ben.post("/history", {"clear": True, "delete": [prompt_id]})
    (image,) = anna.images(entry)
    async with lab.http.get(f"{gateway.url}/view", params=image, headers=ben.headers) as answer:
        assert answer.status == 404
    assert await anna.view(image) == await boss.view(image)
    assert prompt_id in await boss.get("/history")


async def test_no_other_route_shows_a_foreign_file(lab: Lab) -> None:
    """Custom nodes have viewers of their own, and the asset list shows what everybody made."""
    gateway = await with_keys(lab)
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
    (image,) = anna.images(await anna.entry(await anna.prompt(slow())))
    simulator = lab.servers[0]
    assert isinstance(simulator, Simulator)
    statuses = {}
    for name, caller in (("anna", anna), ("ben", ben)):
        for path in ("/vhs/viewvideo", "//view", "/api/assets", "/view/"):
            async with lab.http.get(gateway.url + path, params=image, headers=caller.headers) as answer:
                statuses[name, path] = answer.status
                assert not answer.headers.get("Content-Type", "").startswith("image/")
    assert statuses["ben", "/vhs/viewvideo"] == 404
    assert statuses["ben", "/api/assets"] == 403
    requests = await simulator.requests(lab.http)
    asked = {key: count for key, count in requests.items() if "viewvideo" in key or "path" in key or "assets" in key}
    assert sum(asked.values()) <= 3, asked


async def test_the_same_prompt_id_of_two_tenants(lab: Lab) -> None:
    """An id belongs to its tenant: neither learns of the other's."""
    gateway = await with_keys(lab)
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
    body = {"prompt_id": "11111111-2222-4333-8444-555555555555", "client_id": "c"}
    listeners = [await anna.listen("c"), await ben.listen("c")]
    assert (await anna.post("/prompt", {**body, "prompt": slow(1, steps=10)}))[0] == 200
    assert (await ben.post("/prompt", {**body, "prompt": slow(2, steps=10)}))[0] == 200
    entries = [await caller.entry(body["prompt_id"]) for caller in (anna, ben)]
    assert [entry["prompt"][2]["1"]["inputs"]["seed"] for entry in entries] == [1, 2]
    for listener in listeners:
        await listener.end_of(body["prompt_id"])
        assert listener.of(body["prompt_id"]).count("execution_start") == 1


async def test_keys_go_nowhere(lab: Lab) -> None:
    """No key in a log line, a metric, an upstream request or the journal; no partner key on disk either."""
    seen: list[str] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.read(65536)).decode("latin-1"))
        body = b'{"queue_running": [], "queue_pending": []}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    gateway = await with_keys(lab)
    anna = Comfy(lab.http, gateway.url, X_API_Key=ANNA)
    extra = {"api_key_comfy_org": "partner-secret-1", "auth_token_comfy_org": "partner-secret-2"}
    prompt_id = await anna.prompt(slow(), "c", extra_data=extra)
    assert "partner-secret" not in str(await anna.get("/queue"))
    assert "partner-secret" not in str(await anna.entry(prompt_id))
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        metrics = await answer.text()
    for secret in (ANNA, BEN, BOSS, "partner-secret"):
        assert secret not in gateway.log.read_text()
        assert secret not in metrics
        for file in files_below(lab.directory / "data"):
            assert secret.encode() not in file.read_bytes(), file
    server = await start_raw_server(record, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    other = GatewayProcess(lab.directory / "other", [f"http://127.0.0.1:{port}"], ("--api-key", ANNA), {})
    lab.servers.append(other)
    await other.start()

    async def passed_on() -> bool:
        async with lab.http.get(f"{other.url}/extensions", headers={"X-API-Key": ANNA}) as answer:
            return answer.status == 200

    await until(passed_on, what="the backend is known to be there")
    seen.clear()
    for headers, query in (
        ({"X-API-Key": ANNA}, ""),
        ({"Authorization": f"Bearer {ANNA}"}, "?a=1"),
        ({}, f"?token={ANNA}"),
    ):
        headers = {**headers, "Cookie": f"comfyui_gateway_key={ANNA}", "X-API-Key": ANNA}
        async with lab.http.get(f"{other.url}/extensions{query}", headers=headers) as answer:
            await answer.read()
    assert any("/extensions" in request for request in seen)
    assert not any(ANNA in request for request in seen)
    assert await other.stop() == 0
    await server.close()


async def test_foreign_origins_may_not_write(lab: Lab) -> None:
    gateway = await lab.gateway(await lab.simulator(), options=(), cors__origins="https://app.example.com")
    body = {"prompt": slow()}
    for origin, status in (
        (None, 200),
        (gateway.url, 200),
        ("https://app.example.com", 200),
        ("https://evil.example.com", 403),
        ("null", 403),
    ):
        headers = {"Origin": origin} if origin else {}
        async with lab.http.post(f"{gateway.url}/prompt", json=body, headers=headers) as answer:
            assert answer.status == status, origin
    async with lab.http.get(f"{gateway.url}/queue", headers={"Origin": "https://app.example.com"}) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await lab.http.ws_connect(f"{gateway.url}/ws", headers={"Origin": "https://evil.example.com"})


@pytest.mark.parametrize("options", [["--host", "0.0.0.0"], ["--host", "::"]])
async def test_listening_to_strangers_without_a_key_is_refused(options: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        "serve",
        "--backend",
        "http://127.0.0.1:1",
        *options,
        stderr=asyncio.subprocess.PIPE,
    )
    _, error = await process.communicate()
    assert process.returncode == 2
    assert b"--api-key" in error
    assert b"--no-auth" in error


async def test_metrics_and_logs(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(2))
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(), "c")
    await listener.end_of(prompt_id)
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = await answer.text()
    for line in (
        'comfyui_gateway_backend_up{backend="b1"} 1.0',
        'comfyui_gateway_backend_queue_pending{backend="b1"} 0.0',
        'comfyui_gateway_backend_vram_total_bytes{backend="b1",device="0"}',
        'comfyui_gateway_jobs_total{backend="',
        'comfyui_gateway_http_requests_total{method="POST",route="/prompt",status="200"} 1.0',
        "comfyui_gateway_sockets_open 1.0",
        'comfyui_gateway_events_relayed_total{kind="lifecycle"}',
        'comfyui_gateway_dispatch_attempts_total{backend="',
        'comfyui_gateway_probe_seconds_count{backend="b1",outcome="ok"}',
        "comfyui_gateway_job_wait_seconds_count",
        "comfyui_gateway_job_run_seconds_count",
    ):
        assert line in text, line
    assert prompt_id not in text
    lines = [line for line in gateway.log_lines() if line.get("prompt_id") == prompt_id and line["event"] == "job"]
    assert [line["status"] for line in lines] == ["queued", "running", "done"]
    for line in lines:
        assert {"ts", "prompt_id", "status", "duration_ms", "model", "backend", "tenant", "error"} <= line.keys()
