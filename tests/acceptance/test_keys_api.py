"""Keys made, listed, rotated and revoked while the gateway runs; and what becomes of those who guess."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.comfy_client import Comfy
from tests.support.commands import command
from tests.support.folders import files_below
from tests.support.keys_api import CLOSED, ask, audit, make, status_of, wrong
from tests.support.lab import Lab, until
from tests.support.uploads import ANNA, BOSS, with_keys
from tests.support.workflows import slow


async def test_a_key_lives_in_the_store(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await with_keys(lab, simulator)
    carol = await make(lab, gateway, "carol", tenant="team", expires="30d")
    assert carol.startswith("cgw_")
    other = await make(lab, gateway, "admin2", role="admin")
    comfy = Comfy(lab.http, gateway.url, X_API_Key=carol)
    prompt_id = await comfy.prompt(slow(steps=1))
    await comfy.entry(prompt_id)
    status, listed, headers = await ask(lab, gateway, "GET", "", key=other)
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    rows = {row["name"]: row for row in listed["keys"]}
    assert list(rows) == ["admin2", "anna", "ben", "boss", "carol"]
    row = rows["carol"]
    assert (row["role"], row["tenant"], row["source"]) == ("user", "team", "store")
    assert row["last_used"] is not None
    assert row["created"] < row["expires"]
    assert rows["anna"]["source"] == "file"
    assert rows["anna"]["last_used"] is None
    text = json.dumps(listed)
    assert carol not in text
    assert all(len(shown["digest"]) == 9 for shown in rows.values())
    pages, after = [], ""
    while after is not None:
        page = (await ask(lab, gateway, "GET", f"?limit=2&after={after}"))[1]
        pages.append([shown["name"] for shown in page["keys"]])
        after = page.get("next")
    assert pages == [["admin2", "anna"], ["ben", "boss"], ["carol"]]
    await gateway.stop()
    gateway = await with_keys(lab, simulator)
    comfy = Comfy(lab.http, gateway.url, X_API_Key=carol)
    assert prompt_id in await comfy.get("/history")
    listed = (await ask(lab, gateway, "GET", ""))[1]
    assert {shown["name"]: shown for shown in listed["keys"]}["carol"]["last_used"] is not None
    for file in files_below(lab.directory / "data"):
        assert carol.encode() not in file.read_bytes(), file


async def test_a_revoked_key_is_gone_with_its_sockets_and_stays_gone(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await with_keys(lab, simulator)
    carol, dave = await make(lab, gateway, "carol"), await make(lab, gateway, "dave")
    sockets = [await Comfy(lab.http, gateway.url, X_API_Key=key).listen("c") for key in (carol, carol, dave)]
    assert (await ask(lab, gateway, "DELETE", "/carol"))[:2] == (200, {"revoked": "carol"})
    assert await status_of(lab, gateway, carol) == 401
    for listener in sockets[:2]:
        assert await listener.receive() == CLOSED
    await sockets[2].silent()
    await sockets[2].socket.close()
    assert (await ask(lab, gateway, "DELETE", "/carol"))[0] == 404
    await gateway.kill()
    gateway = await with_keys(lab, simulator)
    assert await status_of(lab, gateway, carol) == 401
    assert await status_of(lab, gateway, dave) == 200
    # The name is free again; the old secret stays worthless.
    assert await make(lab, gateway, "carol") != carol
    assert await status_of(lab, gateway, carol) == 401


async def test_rotation(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await with_keys(lab, simulator)
    first = await make(lab, gateway, "carol")

    status, answer, headers = await ask(lab, gateway, "POST", "/carol/rotate", {})
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    second = answer["key"]
    assert second != first
    assert [await status_of(lab, gateway, key) for key in (first, second)] == [200, 200]
    await gateway.kill()
    gateway = await with_keys(lab, simulator)
    assert [await status_of(lab, gateway, key) for key in (first, second)] == [200, 200]
    with_second = await Comfy(lab.http, gateway.url, X_API_Key=second).listen("c")
    third = (await ask(lab, gateway, "POST", "/carol/rotate", {"overlap_seconds": 0}))[1]["key"]
    assert [await status_of(lab, gateway, key) for key in (first, second, third)] == [401, 401, 200]
    assert await with_second.receive() == CLOSED
    async with lab.http.get(f"{gateway.url}/queue", headers={"X-API-Key": second}) as refused:
        error = (await refused.json())["error"]
        assert (error["type"], error["message"][:28]) == ("key_expired", "This key was replaced, and h")
    # What is over is said to whoever holds it, and is no guess.
    assert audit(gateway, "key_refused")[-1]["reason"] == "expired"
    assert [line["what"] for line in audit(gateway, "key_rotated")] == ["carol"]


async def test_expiry(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator())
    dave = await Comfy(lab.http, gateway.url, X_API_Key=await make(lab, gateway, "dave")).listen("c")
    now = time.time()
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + 3))
    key = await make(lab, gateway, "carol", expires=soon)
    listener = await Comfy(lab.http, gateway.url, X_API_Key=key).listen("c")

    async def over() -> bool:
        return await status_of(lab, gateway, key) == 401

    await until(over)
    async with lab.http.get(f"{gateway.url}/queue", headers={"X-API-Key": key}) as answer:
        error = (await answer.json())["error"]
        assert error["type"] == "key_expired"
        assert error["message"] == f"This key expired on {soon}"
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    # Its socket is closed as well, a few seconds later: where all are looked at, every 5 s.
    assert await listener.receive() == CLOSED
    # One of a revoked key does not wait for that.
    await ask(lab, gateway, "DELETE", "/dave")
    assert await dave.receive(4) == CLOSED


async def test_what_is_refused(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator(), auth__max_keys=1)
    for method, path in (("GET", ""), ("POST", ""), ("POST", "/anna/rotate"), ("DELETE", "/anna")):
        assert (await ask(lab, gateway, method, path, {}, key=ANNA))[0] == 403
        assert (await ask(lab, gateway, method, path, {}, key=""))[0] == 401
    for method, path in (("POST", "/anna/rotate"), ("DELETE", "/anna")):
        status, answer, _ = await ask(lab, gateway, method, path)
        assert (status, answer["error"]["type"]) == (409, "key_refused")
        assert "auth.keys" in answer["error"]["details"]
    for body, said in (
        ({}, "letters"),
        ({"name": "a b"}, "letters"),
        ({"name": "x", "tenant": "a/b"}, "letters"),
        ({"name": "anna"}, "already"),
        ({"name": "x", "expires": "2020-01-01"}, "past"),
    ):
        status, answer, _ = await ask(lab, gateway, "POST", "", body)
        assert status == 409, body
        assert said in answer["error"]["details"]
    for body in (
        [],
        {"name": 5},
        {"name": "x", "role": "root"},
        {"name": "x", "expires": "soon"},
        {"name": "x", "expires": 5},
        {"name": "x", "expire": "30d"},
        {"name": "x", "key": "my-own-key-123456"},
    ):
        assert (await ask(lab, gateway, "POST", "", body))[0] == 400, body
    for overlap in ("1", -1, True, 1e12):
        assert (await ask(lab, gateway, "POST", "/x/rotate", {"overlap_seconds": overlap}))[0] == 400
    for query in ("?limit=0", "?limit=x", "?limit=1001"):
        assert (await ask(lab, gateway, "GET", query))[0] == 400
    assert (await ask(lab, gateway, "POST", "/nobody/rotate"))[0] == 404
    await make(lab, gateway, "one")
    status, answer, _ = await ask(lab, gateway, "POST", "", {"name": "two"})
    assert (status, "auth.max_keys" in answer["error"]["details"]) == (409, True)


async def test_the_log_says_when_a_tenant_is_alone_no_more(lab: Lab) -> None:
    """When the first key of another tenant is made: from then on prompts of both are judged."""
    config = lab.directory / "alone.yaml"
    config.write_text(f"auth: {{keys: [{{name: anna, key: {ANNA}}}, {{name: boss, key: {BOSS}, role: admin}}]}}\n")
    gateway = await lab.gateway(await lab.simulator(), options=("--config", str(config)))

    def started() -> list[list[str]]:
        return [line["tenants"] for line in gateway.log_lines() if line["event"] == "isolation_started"]

    await make(lab, gateway, "anna-too", tenant="anna")
    await make(lab, gateway, "boss-too", role="admin", tenant="staff")
    await make(lab, gateway, "eye", role="metrics")
    await make(lab, gateway, "ben")
    await make(lab, gateway, "eve")
    await make(lab, gateway, "ben-too", tenant="ben")
    for name in ("ben", "ben-too", "eve"):
        await ask(lab, gateway, "DELETE", f"/{name}")
    await make(lab, gateway, "carol")

    async def twice() -> bool:
        return len(started()) >= 2

    await until(twice)
    await gateway.stop()
    assert started() == [["anna", "ben"], ["anna", "carol"]]


async def test_many_at_once(lab: Lab) -> None:
    """Of those who ask for one name at the same time one gets it."""
    gateway = await with_keys(lab, await lab.simulator())
    asked = await asyncio.gather(*(ask(lab, gateway, "POST", "", {"name": "carol"}) for _ in range(10)))
    assert sorted(status for status, _, _ in asked) == [201] + [409] * 9
    keys = await asyncio.gather(*(make(lab, gateway, f"k{n}") for n in range(50)))
    assert len(set(keys)) == 50
    revoked = await asyncio.gather(*(ask(lab, gateway, "DELETE", f"/k{n}") for n in range(50)))
    assert {status for status, _, _ in revoked} == {200}
    assert {await status_of(lab, gateway, key) for key in keys[:5]} == {401}


async def test_the_first_key_closes_the_gateway_and_the_last_does_not_open_it(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, options=())
    listener = await Comfy(lab.http, gateway.url).listen("c")
    status, answer, _ = await ask(lab, gateway, "POST", "", {"name": "carol"}, key="")
    assert (status, "admin" in answer["error"]["details"]) == (409, True)
    assert await status_of(lab, gateway, "") == 200
    status, made, _ = await ask(lab, gateway, "POST", "", {"name": "root", "role": "admin"}, key="")
    assert status == 201
    assert await status_of(lab, gateway, "") == 401
    # Whoever was in without a key is out.
    assert await listener.receive() == CLOSED
    assert (await ask(lab, gateway, "DELETE", "/root", key=made["key"]))[0] == 200
    for _ in range(2):
        for key in ("", made["key"]):
            assert await status_of(lab, gateway, key) == 401
        await gateway.stop()
        gateway = await lab.gateway(simulator, options=())
    await gateway.stop()
    gateway = await lab.gateway(simulator, options=("--admin-key", BOSS))
    assert (await ask(lab, gateway, "POST", "", {"name": "carol"}))[0] == 201
    await gateway.stop()
    gateway = await lab.gateway(simulator, options=("--no-auth",))
    assert await status_of(lab, gateway, "") == 200


async def test_keys_in_the_store_are_keys_enough_to_listen_to_strangers(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, options=("--admin-key", BOSS))
    await make(lab, gateway, "root", role="admin")
    await gateway.stop()
    gateway = await lab.gateway(simulator, options=("--host", "0.0.0.0"))
    assert await status_of(lab, gateway, "") == 401
    code, out, error = await command(
        "check", "--backend", simulator.url, cwd=lab.directory, environment={"COMFYUI_GATEWAY_HOST": "0.0.0.0"}
    )
    assert code == 0, (out, error)
    await gateway.stop()
    options = ("serve", "--backend", simulator.url, "--host", "0.0.0.0", "--data-dir", "fresh")
    code, _, error = await command(*options, cwd=lab.directory)
    assert (code, "--api-key" in error) == (2, True)
    assert not (lab.directory / "fresh").exists()
    # A journal that only looks as if it knew keys does not open it either.
    connection = sqlite3.connect(lab.directory / "data" / "gateway.sqlite3")
    connection.execute("DELETE FROM meta WHERE key='had_keys'")
    connection.commit()
    connection.close()
    code, _, error = await command(*options[:-1], "data", cwd=lab.directory)
    assert (code, "--api-key" in error) == (2, True)


async def test_a_key_of_the_file_goes_before_one_of_the_store(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, options=("--admin-key", BOSS))
    shadowed = await make(lab, gateway, "anna")
    await gateway.stop()
    gateway = await with_keys(lab, simulator)
    assert [await status_of(lab, gateway, key) for key in (shadowed, ANNA)] == [401, 200]
    listed = (await ask(lab, gateway, "GET", ""))[1]["keys"]
    assert [(row["source"], row.get("shadowed", False)) for row in listed if row["name"] == "anna"] == [
        ("file", False),
        ("store", True),
    ]
    assert (await ask(lab, gateway, "DELETE", "/anna"))[0] == 200
    assert (await ask(lab, gateway, "DELETE", "/anna"))[0] == 409
    assert await status_of(lab, gateway, ANNA) == 200


async def test_one_who_guesses_waits_and_others_go_on(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator(), auth__lockout__first=30)
    carol = await make(lab, gateway, "carol")
    anna = Comfy(lab.http, gateway.url, X_API_Key=ANNA)
    listener = await anna.listen("c")
    assert await wrong(lab, gateway, 10) == [401] * 10
    assert await wrong(lab, gateway, 3) == [429] * 3
    async with lab.http.get(f"{gateway.url}/queue", headers={"X-API-Key": "again-a-guess"}) as answer:
        assert answer.status == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= 30
        assert (await answer.json())["error"]["type"] == "locked_out"
        as_wrong = await answer.text(), {*answer.headers} - {"Date"}
    # A right key that was never seen from here answers as a wrong one; one that was seen goes on.
    async with lab.http.get(f"{gateway.url}/queue", headers={"X-API-Key": carol}) as answer:
        assert answer.status == 429
        assert (await answer.text(), {*answer.headers} - {"Date"}) == as_wrong
    assert await status_of(lab, gateway, ANNA) == 200
    assert await status_of(lab, gateway, BOSS) == 200
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await lab.http.ws_connect(f"{gateway.url}/ws?token={carol}")
    assert refused.value.status == 429
    # Nobody without a key guesses; and what is open stays so.
    async with lab.http.get(f"{gateway.url}/queue") as answer:
        assert answer.status == 401
    await listener.silent()
    await listener.socket.close()
    # From elsewhere the same key is as good as ever.
    connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    async with (
        aiohttp.ClientSession(connector=connector) as elsewhere,
        elsewhere.get(f"{gateway.url}/queue", headers={"X-API-Key": carol}) as answer,
    ):
        assert answer.status == 200
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        text = await answer.text()
    assert "comfyui_gateway_addresses_locked 1.0" in text
    assert 'comfyui_gateway_keys_refused_total{reason="unknown"} 10.0' in text
    refusals = audit(gateway, "key_refused")
    assert [(line["reason"], line["count"], line["client_address"]) for line in refusals] == [
        ("unknown", 1, "127.0.0.1"),
        ("locked out", 1, "127.0.0.1"),
    ]
    await gateway.stop()
    counts = [(line["reason"], line["count"]) for line in audit(gateway, "key_refused")][2:]
    assert sorted(counts) == [("locked out", 5), ("unknown", 9)]


async def test_the_wait_ends_and_grows(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator(), auth__lockout__after=3, auth__lockout__first=0.3)
    assert await wrong(lab, gateway, 4) == [401, 401, 401, 429]

    async def again() -> bool:
        return (await wrong(lab, gateway, 1)) == [401]

    began = time.monotonic()
    for _ in range(3):
        await until(again)
    # 0.3, 0.6 and 1.2 s, and then 2.4.
    assert time.monotonic() - began > 1.8
    carol = await make(lab, gateway, "carol") if await status_of(lab, gateway, BOSS) == 200 else ""
    assert carol == ""

    async def right() -> bool:
        return await status_of(lab, gateway, BOSS) == 200

    await until(right)


async def test_one_wrong_key_again_and_again_is_no_guess(lab: Lab) -> None:
    """A program that nobody told of the new key keeps no one else out."""
    gateway = await with_keys(lab, await lab.simulator(), auth__lockout__first=30)
    statuses = [await status_of(lab, gateway, "the-old-key-123") for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    assert await status_of(lab, gateway, ANNA) == 200


async def test_the_form_counts_too(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator(), auth__lockout__after=3, auth__lockout__first=30)
    url = f"{gateway.url}/gateway/signin"
    statuses = []
    for n in range(5):
        async with lab.http.post(url, data={"key": f"guess-{n}-123"}) as answer:
            statuses.append(answer.status)
            text = await answer.text()
    assert statuses == [401, 401, 401, 429, 429]
    assert int(answer.headers["Retry-After"]) <= 30
    assert "Too many wrong keys" in text
    async with lab.http.post(url, data={"key": ANNA}, allow_redirects=False) as answer:
        assert (answer.status, "Set-Cookie" in answer.headers) == (429, False)
    assert await status_of(lab, gateway, ANNA) == 429


async def test_two_keys_in_one_credential_are_refused(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator())
    for headers, query in (
        ([("X-API-Key", ANNA), ("X-API-Key", "other-key-123")], ""),
        ([("Authorization", f"Bearer {ANNA}"), ("Authorization", "Bearer other-key-123")], ""),
        ([], f"?token={ANNA}&token=other-key-123"),
    ):
        for path in ("/queue", "/ws"):
            async with lab.http.get(f"{gateway.url}{path}{query}", headers=headers) as answer:
                assert answer.status == 400
                body = await answer.text()
                assert json.loads(body)["error"]["type"] == "ambiguous_key"
                assert ANNA not in body
    # Of several credentials the first counts, right or wrong.
    cookie = {"Cookie": f"comfyui_gateway_key={ANNA}"}
    async with lab.http.get(f"{gateway.url}/queue", headers={**cookie, "X-API-Key": "wrong-key-123"}) as answer:
        assert answer.status == 401
    async with lab.http.get(f"{gateway.url}/queue?token=wrong-key-123", headers=cookie) as answer:
        assert answer.status == 401


async def test_what_admins_do_is_audited(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await with_keys(lab, simulator, log__level="error")
    anna, boss = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BOSS))
    ran = await anna.prompt(slow(steps=1))
    await anna.entry(ran)
    running = await anna.prompt(slow(steps=1000))
    await anna.running(running)
    waiting, cancelled = await anna.prompt(slow(steps=1000)), await anna.prompt(slow(steps=1000))
    own = await boss.prompt(slow(steps=1000))
    await boss.post("/queue", {"delete": [waiting, own]})
    await boss.post(f"/api/jobs/{cancelled}/cancel")
    await boss.post("/interrupt", {"prompt_id": running})
    await anna.entry(running)
    await boss.post("/history", {"delete": [ran]})
    await boss.post("/free", {"free_memory": True})
    await boss.post("/gateway/backends/b1/drain")
    await boss.post("/gateway/backends/b1/resume")
    await boss.post("/gateway/backends/nope/drain")
    await make(lab, gateway, "carol", role="metrics")
    await ask(lab, gateway, "POST", "/anna/rotate")
    await ask(lab, gateway, "GET", "")
    for path in ("/manager/reboot", "/internal/logs", "/v2/manager/queue/status"):
        async with lab.http.get(gateway.url + path, headers=boss.headers) as answer:
            await answer.read()

    async def lines_of(count: int) -> list[dict[str, Any]]:
        lines = [line for line in gateway.log_lines() if line["event"] == "audit"]
        return lines if len(lines) >= count else []

    # What is streamed is told of when it has been.
    lines = await until(lambda: lines_of(12))
    assert all((line["who"], line["tenant"], line["role"]) == ("boss", "boss", "admin") for line in lines)
    assert all((line["client_address"], line["level"]) == ("127.0.0.1", "info") for line in lines)
    assert [(line["action"], line["what"], line.get("whose"), line["outcome"]) for line in lines] == [
        ("job_cancelled", waiting, "anna", "ok"),
        ("job_cancelled", cancelled, "anna", "ok"),
        ("job_interrupted", running, "anna", "ok"),
        ("history_deleted", ran, "anna", "ok"),
        ("admin_write", "POST /free", None, "200"),
        ("backend_drained", "b1", None, "ok"),
        ("backend_resumed", "b1", None, "ok"),
        ("admin_write", "POST /gateway/backends/nope/drain", None, "404"),
        ("key_made", "carol", None, "ok"),
        ("admin_write", "POST /gateway/keys/anna/rotate", None, "409"),
        ("admin_write", "GET /manager/reboot", None, "404"),
        ("admin_write", "GET /v2/manager/queue/status", None, "404"),
    ]
    assert [line["key_role"] for line in lines if line["action"] == "key_made"] == ["metrics"]


async def test_what_a_role_may_not_is_audited_but_not_as_often_as_it_is_asked_for(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator(), log__level="error")
    async with lab.http.post(f"{gateway.url}/free?token={ANNA}", json={}) as answer:
        assert answer.status == 403
    for n in range(30):
        assert await status_of(lab, gateway, ANNA, f"/internal/logs/{n}") == 403
    (first,) = audit(gateway, "forbidden")
    await gateway.stop()
    counted = audit(gateway, "forbidden")[1]
    shown = [(line["what"], line["outcome"], line["reason"], line["count"]) for line in (first, counted)]
    named = ", ".join(f"GET /internal/logs/{n}" for n in range(5))
    assert shown == [("POST /free", "403", "role", 1), (named, "403", "role", 30)]
    for line in (first, counted):
        who = (line["who"], line["tenant"], line["role"], line["client_address"])
        assert who == ("anna", "anna", "user", "127.0.0.1")
    assert len(audit(gateway, "forbidden")) == 2
    assert ANNA not in gateway.log.read_text()


async def test_the_commands(lab: Lab, tmp_path: Path) -> None:
    gateway = await with_keys(lab, await lab.simulator())

    async def keys(*arguments: str, key: str = BOSS) -> tuple[int | None, str, str]:
        return await command("keys", *arguments, "--url", gateway.url, cwd=tmp_path, environment={"COMFYUI_KEY": key})

    code, out, error = await keys("create", "carol", "--role", "user", "--tenant", "team", "--expires", "30d")
    assert code == 0, error
    assert out.startswith("cgw_")
    assert await status_of(lab, gateway, out.strip()) == 200
    code, rotated, _ = await keys("rotate", "carol", "--overlap", "0")
    assert code == 0
    assert [await status_of(lab, gateway, key.strip()) for key in (out, rotated)] == [401, 200]
    code, listed, _ = await keys("list")
    assert code == 0
    assert listed.splitlines()[-1].split()[:4] == ["carol", "user", "team", "store"]
    code, said, _ = await keys("revoke", "carol", "--url", gateway.url.removeprefix("http://"))
    assert (code, said) == (0, "carol is revoked\n")
    for arguments, key, says in (
        (("revoke", "carol"), BOSS, "There is no key 'carol'"),
        (("revoke", "anna"), BOSS, "auth.keys"),
        (("create", "x"), ANNA, "needs an admin's key"),
        (("create", "x"), "", "A valid API key is needed"),
    ):
        code, out, error = await keys(*arguments, key=key)
        assert (code, out) == (1, ""), error
        assert says in error
        assert "Traceback" not in error
