"""What an operator does by habit in the first hours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.commands import command
from tests.support.keys_api import audit
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.uploads import ANNA, BOSS, with_keys
from tests.support.workflows import failing, slow, text_to_image

LONG: dict[str, Any] = {"steps": 1000, "step_seconds": 0.1}


async def test_a_hangup_does_not_end_it(lab: Lab) -> None:
    """systemctl reload and logrotate send SIGHUP. There is no certificate to be read anew, and the log says so."""
    gateway = await lab.gateway(await lab.simulator())
    gateway.signal(signal.SIGHUP)

    async def told() -> bool:
        return any(line["event"] == "reload_requested" for line in gateway.log_lines())

    await until(told, what="a log line")
    assert gateway.running
    comfy = Comfy(lab.http, gateway.url)
    await comfy.entry(await comfy.prompt(slow(steps=1)))


async def test_an_admin_clears_and_interrupts_for_a_tenant(lab: Lab) -> None:
    """With ``?tenant=`` it is that tenant's queue, as everywhere, and each job has an audit line."""
    gateway = await with_keys(lab, await lab.simulator())
    anna, boss = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BOSS))
    own = await boss.prompt(slow(**LONG))
    ids = [await anna.prompt(slow(n, **LONG)) for n in range(3)]
    await boss.post("/interrupt?tenant=boss", {})
    await boss.entry(own)
    await anna.running(ids[0])
    own = await boss.prompt(slow(**LONG))
    assert (await boss.post("/queue?tenant=anna", {"clear": True}))[0] == 200
    assert [item[1] for item in (await anna.get("/queue"))["queue_pending"]] == []
    assert (await boss.post("/interrupt?tenant=anna", {}))[0] == 200
    assert (await anna.entry(ids[0]))["status"]["messages"][-1][0] == "execution_interrupted"
    await boss.running(own)
    assert [line["what"] for line in audit(gateway, "job_cancelled")] == ids[1:]
    assert [line["what"] for line in audit(gateway, "job_interrupted")] == ids[:1]
    assert (await boss.post("/history?tenant=anna", {"clear": True}))[0] == 200
    assert await anna.get("/history") == {}
    assert [line["what"] for line in audit(gateway, "history_deleted")] == ids[:1]


async def test_an_exported_graph_is_a_prompt(lab: Lab) -> None:
    """``curl -d @workflow_api.json``, and what is said of a file that was saved and not exported."""
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    status, answer = await comfy.post("/prompt", text_to_image())
    assert status == 200, answer
    assert (await comfy.entry(answer["prompt_id"]))["status"]["status_str"] == "success"
    saved = {"last_node_id": 1, "nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 0.4}
    for body in (saved, {"prompt": saved}):
        status, answer = await comfy.post("/prompt", body)
        assert status == 400
        assert answer["error"]["type"] == "workflow_not_exported"
        assert "Export (API)" in json.dumps(answer)
    for body in ({}, {"client_id": "c"}, {"1": {"class_type": "KSampler"}, "client_id": "c"}):
        status, answer = await comfy.post("/prompt", body)
        assert (status, answer["error"]["type"]) == (400, "no_prompt")


def client_id_of(data_dir: Path) -> str:
    """The name under which a gateway is known to its backends."""
    connection = sqlite3.connect(f"file:{data_dir / 'gateway.sqlite3'}?mode=ro", uri=True)
    with contextlib.closing(connection):
        return str(connection.execute("SELECT value FROM meta WHERE key='client_id'").fetchone()[0])


async def test_a_gateway_on_a_copy_takes_no_events_away(lab: Lab) -> None:
    """A copy of the journal, started beside the live gateway: each has a name of its own towards the backend."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    await asyncio.to_thread(shutil.copytree, gateway.data_dir, lab.directory / "copy")
    copied = GatewayProcess(lab.directory / "copy", [simulator.url], ("--no-auth",), {"probe__interval": 0.25})
    lab.servers.append(copied)
    await copied.start()
    await lab.backends_up(copied, 1)
    assert client_id_of(copied.data_dir) != client_id_of(gateway.data_dir)
    assert [line["event"] for line in copied.log_lines() if line["level"] == "warning"] == ["journal_copied"]
    for n in range(3):
        prompt_id = await comfy.prompt(slow(n, steps=2), "c")
        await listener.end_of(prompt_id)
        assert "progress" in listener.of(prompt_id)
    await copied.stop()
    prompt_id = await comfy.prompt(slow(9, steps=2), "c")
    await listener.end_of(prompt_id)
    assert not [line for line in gateway.log_lines() if line["event"] == "socket_deaf"]


async def test_a_socket_through_which_nothing_comes_is_opened_anew(lab: Lab) -> None:
    """Another program connects with the gateway's client_id and goes: ComfyUI forgets the gateway's own socket."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")

    async def deafen() -> None:
        async with lab.http.ws_connect(f"{simulator.url}/ws?clientId={client_id_of(gateway.data_dir)}") as other:
            await other.receive()

    async def is_open_anew(count: int) -> bool:
        (backend,) = (await comfy.get("/gateway/backends"))["backends"]
        deaf = [line for line in gateway.log_lines() if line["event"] == "socket_deaf"]
        return len(deaf) == count and backend["connected"]

    await deafen()
    prompt_id = await comfy.prompt(slow(1, steps=2), "c")
    await listener.end_of(prompt_id)
    assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    await until(lambda: is_open_anew(1), what="a new socket")
    # It is found while a job runs, too.
    await deafen()
    async with lab.held(simulator):
        prompt_id = await comfy.prompt(slow(2, steps=2), "c")
        await until(lambda: is_open_anew(2), what="a new socket")
    await listener.end_of(prompt_id)
    assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    assert "progress" in listener.of(prompt_id)
    prompt_id = await comfy.prompt(slow(3, steps=2), "c")
    await listener.end_of(prompt_id)
    assert "progress" in listener.of(prompt_id)


async def test_a_backend_with_a_full_disk_loses_no_job(lab: Lab) -> None:
    """Its jobs run elsewhere, and it gets none for a while; the operator sees why."""
    full, other = await lab.simulators(2)
    await full.fault(lab.http, "full-disk")
    gateway = await lab.gateway(full, other, ejection__first=60)
    comfy = Comfy(lab.http, gateway.url)
    for n in range(5):
        entry = await comfy.entry(await comfy.prompt(slow(n, steps=2)))
        assert entry["status"]["status_str"] == "success"
    backends = {backend["name"]: backend for backend in (await comfy.get("/gateway/backends"))["backends"]}
    assert backends["b1"]["ejected"]
    assert backends["b1"]["ejected_for"] == "OSError: [Errno 28] No space left on device"
    assert (backends["b2"]["ejected"], backends["b2"]["ejected_for"]) == (False, "")
    assert [line["reason"] for line in gateway.log_lines() if line["event"] == "backend_ejected"] == [
        "OSError: [Errno 28] No space left on device"
    ]
    assert (await full.requests(lab.http))["POST /prompt"] == 1


async def test_an_error_of_the_machine_that_all_machines_give_is_the_answer(lab: Lab) -> None:
    """A prompt may bring it about itself, so nobody is ejected for it."""
    simulators = await lab.simulators(2, "--fail", "full-disk")
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    entry = await comfy.entry(await comfy.prompt(slow(steps=2)))
    assert "No space left on device" in json.dumps(entry["status"])
    assert [(await simulator.requests(lab.http))["POST /prompt"] for simulator in simulators] == [1, 1]
    assert not [line for line in gateway.log_lines() if line["event"] == "backend_ejected"]


async def test_a_drain_takes_back_what_has_not_started(lab: Lab) -> None:
    """The pending jobs run elsewhere at once; what runs is told, and ends there. Planned work pages nobody."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, dispatch__max_queue=20)
    comfy = Comfy(lab.http, gateway.url)
    await comfy.post("/gateway/backends/b2/drain")
    async with lab.held(*simulators):
        ids = [await comfy.prompt(slow(n, steps=2)) for n in range(8)]
        await comfy.running(ids[0])
        await comfy.post("/gateway/backends/b2/resume")
        status, described = await comfy.post("/gateway/backends/b1/drain")
    assert (status, described["drained"]) == (200, True)
    assert (described["ejected"], described["ejected_for"]) == (False, "")
    assert (described["jobs_queued"], described["jobs_running"]) == (0, 1)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    assert (await simulators[1].requests(lab.http))["POST /prompt"] >= 6
    history = await Comfy(lab.http, simulators[0].url).get("/history")
    assert gateway.upstream_ids()[ids[0]] in history
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        text = await answer.text()
    assert 'comfyui_gateway_backend_up{backend="b1"} 1.0' in text
    assert 'comfyui_gateway_backend_drained{backend="b1"} 1.0' in text


async def test_a_drain_of_the_only_backend_keeps_its_jobs(lab: Lab) -> None:
    """They wait in the gateway until it is resumed."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    async with lab.held(simulator):
        ids = [await comfy.prompt(slow(n)) for n in range(3)]
        await comfy.running(ids[0])
        _, described = await comfy.post("/gateway/backends/b1/drain")
        assert (described["jobs_queued"], described["jobs_running"]) == (0, 1)
        assert (await comfy.get("/gateway/backends"))["jobs_waiting"] == 2
    await comfy.entry(ids[0])
    await comfy.post("/gateway/backends/b1/resume")
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"


async def test_an_admin_sees_which_backend_has_a_job(lab: Lab) -> None:
    gateway = await with_keys(lab, await lab.simulator())
    anna, boss = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BOSS))
    ended, runs = await anna.prompt(slow(steps=1)), await anna.prompt(slow(**LONG))
    await anna.entry(ended)
    await anna.running(runs)
    (item,) = (await boss.get("/queue"))["queue_running"]
    assert (item[3]["gateway_tenant"], item[3]["gateway_backend"]) == ("anna", "b1")
    assert (await boss.get("/history"))[ended]["gateway_backend"] == "b1"
    jobs = [*(await boss.get("/api/jobs"))["jobs"], await boss.get(f"/api/jobs/{ended}")]
    assert [job["gateway_backend"] for job in jobs] == ["b1"] * 3
    assert "gateway_backend" not in json.dumps([await anna.get("/queue"), await anna.get("/history")])
    for comfy, told in ((anna, None), (boss, "b1")):
        async with lab.http.post(f"{comfy.url}/prompt", json={"prompt": slow()}, headers=comfy.headers) as answer:
            assert answer.headers.get("X-Gateway-Backend") == told


async def test_a_file_of_a_backend_that_was_removed(lab: Lab) -> None:
    """It is not there later either: 404 with the reason. An admin alone reads which backend it was."""
    simulators = await lab.simulators(2)
    gateway = await with_keys(lab, *simulators)
    anna, boss = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BOSS))
    await boss.post("/gateway/backends/b1/drain")
    (image,) = anna.images(await anna.entry(await anna.prompt(slow(steps=1))))
    await boss.post("/gateway/backends/b1/resume")
    await gateway.stop()
    gateway = await with_keys(lab, simulators[0])
    for key, named in ((ANNA, False), (BOSS, True)):
        async with lab.http.get(f"{gateway.url}/view", params=image, headers={"X-API-Key": key}) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["type"]) == (404, "owner_removed")
            assert ("b2" in json.dumps(error)) is named, error


async def test_backends_in_another_order_or_with_other_names_are_noticed(lab: Lab) -> None:
    """At the start, and by `check` before it: files are known by the name of their backend."""
    first, second = await lab.simulators(2)
    gateway = await lab.gateway(first, second)
    comfy = Comfy(lab.http, gateway.url)
    await asyncio.gather(*[comfy.entry(await comfy.prompt(slow(n, steps=5))) for n in range(4)])
    config = lab.directory / "gateway.yaml"
    entries = f"{{url: '{first.url}', name: gpu-1}}, {{url: '{second.url}', name: b2}}"
    config.write_text(f"{{data_dir: {gateway.data_dir}, backends: [{entries}]}}")
    for is_running in (True, False):
        code, _, error = await command("check", "--config", str(config), cwd=lab.directory)
        assert code == 0
        assert "give gpu-1, which is where b1 was, its former name" in error, is_running
        if is_running:
            await gateway.stop()
    told = []
    for backends in ((second, first), (second, first), (first, second)):
        gateway = await lab.gateway(*backends)
        told.append([line["message"] for line in gateway.log_lines() if line["event"] == "backend_name_lost"])
        await gateway.stop()
    assert [len(messages) for messages in told] == [2, 2, 0]
    assert told[0][0].startswith(f"backends: b1 is at {second.url}, where b2 was, and ")


async def test_what_an_operator_looks_for_has_a_log_line(lab: Lab) -> None:
    """The start, a failed job with its node, a backend that goes, and the stop."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    failed = await comfy.prompt(failing("no luck"))
    await comfy.entry(failed)
    await simulator.kill()

    async def is_told() -> bool:
        return any(line["event"] == "backend_changed" and line["state"] == "gone" for line in gateway.log_lines())

    await until(is_told, what="a line about the backend")
    await gateway.stop()
    lines = gateway.log_lines()
    told = {line["event"]: line for line in lines}
    assert told["gateway_ready"]["url"] == gateway.url
    assert told["gateway_ready"]["backends"] == {"b1": simulator.url}
    (job,) = [line for line in lines if line["event"] == "job" and line["status"] == "failed"]
    assert (job["level"], job["node_id"], job["node_type"]) == ("warning", "3", "FailNode")
    assert job["error"] == "RuntimeError: no luck"
    assert told["backend_changed"]["level"] == "warning"
    assert "gateway_stopping" in told
    assert lines[-1]["event"] == "gateway_stopped"


def lines_with(gateway: GatewayProcess, request_id: str) -> list[dict[str, Any]]:
    """The log lines that an operator finds who searches for a request's id."""
    return [line for line in gateway.log_lines() if line.get("request_id") == request_id]


async def test_a_request_id_leads_to_all_that_the_log_says_of_it(lab: Lab) -> None:
    """The request itself, and its job: accepted, run, lost, run again, and ended by a later run of the gateway."""
    simulators = await lab.simulators(2)
    gateway = await with_keys(lab, *simulators)
    comfy = Comfy(lab.http, gateway.url, X_API_Key=ANNA, X_Request_Id="ticket/4711")
    prompt_id = await comfy.prompt(slow(**LONG))
    comfy.headers.pop("X-Request-Id")
    await comfy.running(prompt_id)
    (running,) = [line for line in gateway.log_lines() if line.get("status") == "running"]
    await simulators[int(running["backend"][1]) - 1].kill()

    async def runs_again() -> bool:
        return [line.get("status") for line in lines_with(gateway, "ticket/4711")].count("running") == 2

    await until(runs_again, what="it runs on the other backend")
    lines = gateway.log_lines()
    (http,) = [line for line in lines if line.get("request_id") == "ticket/4711" and line["event"] == "http"]
    asked = {name: http[name] for name in ("method", "route", "status", "prompt_id", "key", "tenant", "client_address")}
    assert asked == {
        "method": "POST",
        "route": "/prompt",
        "status": 200,
        "prompt_id": prompt_id,
        "key": "anna",
        "tenant": "anna",
        "client_address": "127.0.0.1",
    }
    told = [line for line in lines if line.get("request_id") == "ticket/4711" and line["event"] != "http"]
    assert {"job", "job_lost"} <= {line["event"] for line in told}
    assert {line["prompt_id"] for line in told} == {prompt_id}
    assert [line for line in lines if line.get("prompt_id") == prompt_id and line["event"] != "http"] == told
    await gateway.stop()
    gateway = await with_keys(lab, *simulators, up=1)
    boss = Comfy(lab.http, gateway.url, X_API_Key=BOSS)
    async with lab.http.post(f"{gateway.url}/api/jobs/{prompt_id}/cancel", headers=boss.headers) as answer:
        cancelled = answer.headers["X-Request-Id"]

    async def has_ended() -> bool:
        return any(line.get("status") == "failed" for line in lines_with(gateway, "ticket/4711"))

    await until(has_ended, what="its last line")
    by_event = {line["event"]: line for line in lines_with(gateway, cancelled)}
    http, audited = by_event["http"], by_event["audit"]
    assert (http["prompt_id"], http["key"], http["status"]) == (prompt_id, "boss", 200)
    assert (audited["what"], audited["client_address"]) == (prompt_id, "127.0.0.1")


async def test_requests_about_jobs_name_them(lab: Lab) -> None:
    """The job that a prompt made or was refused as, and those that other requests name or act on."""
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    first, second = [await comfy.prompt(slow(n, **LONG)) for n in range(2)]
    await comfy.running(first)
    await comfy.post("/queue", {"delete": [second, "no id", "X" * 1000]})
    await comfy.post("/interrupt", {})
    await comfy.entry(first)
    await comfy.post("/history", {"clear": True})
    await comfy.post("/api/jobs/cancel", {"job_ids": [first, second]})
    await comfy.get("/history/none")
    own_id = "01234567-89ab-4cde-8f01-23456789abcd"
    refused = {"prompt": {"1": {"class_type": "FailNode", "inputs": {}}}, "prompt_id": own_id}
    assert (await comfy.post("/prompt", refused))[0] == 400

    def named(method: str, route: str) -> list[Any]:
        lines = [line for line in gateway.log_lines() if line["event"] == "http"]
        return [
            line.get("prompt_id") or line.get("prompt_ids")
            for line in lines
            if (line["method"], line["route"]) == (method, route)
        ]

    async def told() -> bool:
        return len(named("POST", "/prompt")) == 3

    await until(told, what="the last line")
    assert named("POST", "/prompt") == [first, second, own_id]
    assert named("POST", "/queue") == [second]
    assert named("POST", "/interrupt") == named("POST", "/history") == [first]
    assert named("POST", "/api/jobs/cancel") == [[first, second]]
    *asked, none = named("GET", "/history/{prompt_id}")
    assert ({*asked}, none) == ({first}, None)
