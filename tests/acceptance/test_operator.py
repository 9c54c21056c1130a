"""What an operator does by habit in the first hours."""

from __future__ import annotations

import json
import signal
from typing import Any

from tests.acceptance.test_keys_api import audit
from tests.acceptance.test_uploads import ANNA, BOSS, with_keys
from tests.comfy_client import Comfy
from tests.lab import Lab, until
from tests.workflows import slow, text_to_image

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
