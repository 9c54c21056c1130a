"""The gateway's disk is full for a while: what runs goes on, what is new is refused, and nothing is lost."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import aiohttp

from tests.support import disk
from tests.support.comfy_client import Comfy
from tests.support.folders import files_below
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.workflows import slow


def fill(lab: Lab, gateway: GatewayProcess) -> None:
    """No file of the gateway's can grow beyond what its write-ahead log has now."""
    disk.fill(gateway.pid, room(lab))


def room(lab: Lab) -> int:
    """Bytes of the write-ahead log."""
    return (lab.directory / "data" / "gateway.sqlite3-wal").stat().st_size


async def refused(comfy: Comfy, path: str, **sent: Any) -> dict[str, Any]:
    """Send what must be refused for want of space; what is said."""
    async with comfy.http.post(comfy.url + path, **sent) as answer:
        assert answer.status == 503, await answer.text()
        assert answer.headers["Retry-After"]
        error: dict[str, Any] = (await answer.json())["error"]
        return error


async def metric(comfy: Comfy, name: str) -> float:
    """A metric without labels."""
    async with comfy.http.get(f"{comfy.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return float(next(line for line in lines if line.startswith(f"comfyui_gateway_{name} ")).split()[1])


async def test_running_jobs_go_on_and_new_ones_are_refused(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy, there = Comfy(lab.http, gateway.url), Comfy(lab.http, simulator.url)
    listener = await comfy.listen("c", "&events=interleave")
    ids = [await comfy.prompt(slow(n, steps=25), "c") for n in range(3)]
    await listener.next("progress", prompt_id=ids[0])
    fill(lab, gateway)
    error = await refused(comfy, "/prompt", json={"prompt": slow(9)})
    assert "free some space" in error["details"]
    assert "can't be written" in (await comfy.get("/readyz"))["journal"]
    assert await metric(comfy, "journal_writable") == 0
    await listener.next("progress", prompt_id=ids[0], value=25)
    for prompt_id in ids:
        await there.entry(gateway.upstream_ids()[prompt_id])

    async def all_owed() -> bool:
        return await metric(comfy, "journal_owed") >= 3

    await until(all_owed, what="three ends wait for the disk")
    # What a crash could undo is not told: not as an event, not in /history, not as a count.
    assert await comfy.get("/history") == {}
    assert not {"execution_success"} & {event["type"] for event in listener.heard}
    assert (await comfy.get("/prompt"))["exec_info"]["queue_remaining"] == 3
    disk.free(gateway.pid)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    await listener.next("execution_success", prompt_id=ids[2])
    assert (await comfy.get("/readyz"))["journal"] == "ok"
    assert await metric(comfy, "journal_writable") == 1

    async def are_told() -> list[dict[str, Any]]:
        found = [line for line in gateway.log_lines() if line["event"] in ("journal_unwritable", "journal_writable")]
        return found if len(found) > 1 else []

    told = await until(are_told, what="it is well again")
    assert [(line["event"], line["level"]) for line in told] == [
        ("journal_unwritable", "error"),
        ("journal_writable", "info"),
    ], "once, though it was tried again and again"
    assert "free some space" in told[0]["reason"]
    assert "are refused with 503" in told[0]["affected"]
    await comfy.entry(await comfy.prompt(slow(10)))
    assert list(await comfy.get("/history"))[:3] == ids
    assert (await simulator.requests(lab.http))["POST /prompt"] == 4


async def test_ends_that_wait_for_the_disk_outlive_their_backend(lab: Lab) -> None:
    """They are here and only have to be written, one after the other: that their backend dies sends none again."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, dispatch__work_stealing=False)
    comfy = Comfy(lab.http, gateway.url)
    ids = [await comfy.prompt(slow(n, steps=20)) for n in range(6)]
    fill(lab, gateway)
    for simulator in simulators:
        assert (await simulator.requests(lab.http))["POST /prompt"] == 3

        async def all_ended(url: str = simulator.url) -> bool:
            return len(await Comfy(lab.http, url).get("/history")) == 3

        await until(all_ended, what="three jobs ran to their end there")

    async def are_fetched() -> bool:
        asked = [(await each.requests(lab.http)).get("GET /history/{prompt_id}", 0) for each in simulators]
        return min(asked) >= 3

    await until(are_fetched, what="all entries were asked for")
    await simulators[0].kill()
    await lab.backends_up(gateway, 1)
    disk.free(gateway.pid)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    assert (await simulators[1].requests(lab.http))["POST /prompt"] == 3


async def test_what_waits_is_sent_when_there_is_space_again(lab: Lab) -> None:
    """A backend must not have what the journal does not know to be there: a killed gateway would send it twice."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, dispatch__max_queue=1)
    comfy = Comfy(lab.http, gateway.url)
    async with lab.held(simulator):
        ids = [await comfy.prompt(slow(n)) for n in range(4)]
        await comfy.running(ids[0])
        fill(lab, gateway)

    async def put_off() -> bool:
        return (
            sum(
                line["event"] == "journal_write_failed" and line["prompt_id"] in ids[1:] for line in gateway.log_lines()
            )
            >= 3
        )

    await until(put_off, what="there was room on the backend, and none on the disk")
    assert (await simulator.requests(lab.http))["POST /prompt"] == 1
    await gateway.kill()
    again = await lab.gateway(simulator, dispatch__max_queue=1)
    comfy = Comfy(lab.http, again.url)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    assert (await simulator.requests(lab.http))["POST /prompt"] == 4


async def test_what_is_deleted_is_not_called_gone_before_that_is_written(lab: Lab) -> None:
    """It is out of the queue at once, but killed now the gateway would have it again: so no 200 yet."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, dispatch__max_queue=1)
    comfy = Comfy(lab.http, gateway.url)
    ended = await comfy.prompt(slow())
    await comfy.entry(ended)
    ids = [await comfy.prompt(slow(n, steps=20)) for n in range(3)]
    await comfy.running(ids[0])
    fill(lab, gateway)
    orders: list[tuple[str, Any]] = [
        ("/queue", {"delete": ids[1:2]}),
        (f"/api/jobs/{ids[1]}/cancel", {}),
        ("/queue", {"clear": True}),
        ("/history", {"delete": [ended]}),
    ]
    for path, body in orders:
        assert "a restart of the gateway would bring it back" in (await refused(comfy, path, json=body))["details"]
    assert (await comfy.get("/prompt"))["exec_info"]["queue_remaining"] == 1
    await comfy.post("/interrupt", {"prompt_id": ids[0]})
    disk.free(gateway.pid)
    for path, body in orders:

        async def is_confirmed(path: str = path, body: Any = body) -> bool:
            async with lab.http.post(gateway.url + path, json=body) as answer:
                return answer.status == 200

        await until(is_confirmed, what=path)
    await gateway.kill()
    again = await lab.gateway(simulator, dispatch__max_queue=1)
    comfy = Comfy(lab.http, again.url)
    assert await comfy.get("/queue") == {"queue_running": [], "queue_pending": []}
    assert list(await comfy.get("/history")) == ids[:1]


async def test_an_upload_is_refused_whole_and_taken_later(lab: Lab) -> None:
    """Also the one whose bytes find room, and whose name does not: sent again it is not taken for one that is kept."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    await comfy.entry(await comfy.prompt(slow()))
    uploads = lab.directory / "data" / "uploads"
    # Larger than what fits, by more and by less than what Python's own buffer holds; and small enough to fit.
    sizes = (room(lab) + 500_000, room(lab) + 100, 10)
    fill(lab, gateway)
    for size in sizes:
        form = aiohttp.FormData()
        form.add_field("image", b"x" * size, filename=f"{size}.png")
        await refused(comfy, "/upload/image", data=form)
        assert files_below(uploads) == []
    disk.free(gateway.pid)

    async def well() -> bool:
        return bool((await comfy.get("/readyz"))["journal"] == "ok")

    await until(well, what="the journal is well")
    for size in sizes:
        form = aiohttp.FormData()
        form.add_field("image", b"x" * size, filename=f"{size}.png")
        async with lab.http.post(f"{gateway.url}/upload/image", data=form) as answer:
            assert (await answer.json())["name"] == f"{size}.png"
    await gateway.kill()
    again = await lab.gateway(simulator)
    view = {"filename": "10.png", "type": "input"}
    assert await Comfy(lab.http, again.url).view(view) == b"x" * 10


async def test_it_is_started_again_on_a_full_disk(lab: Lab) -> None:
    """Killed, it finds the ends that it could not write, and still can't: nobody is told of them before it can."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    ids = [await Comfy(lab.http, gateway.url).prompt(slow(n, steps=20)) for n in range(3)]
    fill(lab, gateway)
    for prompt_id in ids:
        await Comfy(lab.http, simulator.url).entry(gateway.upstream_ids()[prompt_id])
    await gateway.kill()
    again = GatewayProcess(lab.directory / "data", [simulator.url], ("--no-auth",), {"probe__interval": 0.25})
    again.wrapper = ["prlimit", f"--fsize={room(lab)}:unlimited"]
    lab.servers.append(again)
    await again.start()
    comfy = Comfy(lab.http, again.url)

    async def is_owed() -> bool:
        return await metric(comfy, "journal_owed") >= 2

    await until(is_owed, what="the first end and its file wait for the disk, the others wait for it")
    assert await comfy.get("/history") == {}
    assert (await comfy.get("/prompt"))["exec_info"]["queue_remaining"] == 3
    await refused(comfy, "/prompt", json={"prompt": slow(9)})
    disk.free(again.pid)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    assert (await simulator.requests(lab.http))["POST /prompt"] == 3


async def test_it_ends_politely_on_a_full_disk(lab: Lab) -> None:
    """With an end that is owed; the next start finds it where it ran."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    prompt_id = await comfy.prompt(slow(steps=20))
    await comfy.running(prompt_id)
    fill(lab, gateway)
    await Comfy(lab.http, simulator.url).entry(gateway.upstream_ids()[prompt_id])
    gateway.signal(signal.SIGTERM)
    assert await asyncio.wait_for(gateway.wait(), 30) == 0
    again = await lab.gateway(simulator)
    assert (await Comfy(lab.http, again.url).entry(prompt_id))["status"]["status_str"] == "success"
    assert (await simulator.requests(lab.http))["POST /prompt"] == 1


async def test_a_key_is_revoked_though_the_disk_takes_nothing(lab: Lab) -> None:
    """What can be refused still is; what must not wait does not."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, options=("--admin-key", "key-of-the-admin"))
    admin = Comfy(lab.http, gateway.url, X_API_Key="key-of-the-admin")
    secrets = [(await admin.post("/gateway/keys", {"name": name}))[1]["key"] for name in ("anna", "ben")]
    fill(lab, gateway)
    for path, body in (("", {"name": "carol"}), ("/ben/rotate", {"overlap_seconds": 0})):
        async with lab.http.post(f"{gateway.url}/gateway/keys{path}", json=body, headers=admin.headers) as answer:
            assert answer.status == 503
            assert "key" not in await answer.json()
    async with lab.http.delete(f"{gateway.url}/gateway/keys/anna", headers=admin.headers) as answer:
        assert answer.status == 503
        assert "is revoked, but the disk has not taken it yet" in (await answer.json())["error"]["details"]

    async def statuses() -> list[int]:
        found = []
        for secret in secrets:
            async with lab.http.get(f"{gateway.url}/queue", headers={"X-API-Key": secret}) as answer:
                found.append(answer.status)
        return found

    assert await statuses() == [401, 200]
    disk.free(gateway.pid)

    async def written() -> bool:
        return await metric(admin, "journal_owed") == 0

    await until(written)
    await gateway.kill()
    gateway = await lab.gateway(simulator, options=("--admin-key", "key-of-the-admin"))
    assert await statuses() == [401, 200]
