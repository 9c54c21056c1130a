"""GET /api/jobs over a running gateway: open and ended jobs, whole and in pages, also where the answer is long."""

from __future__ import annotations

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.uploads import ANNA, BEN, BOSS, with_keys
from tests.support.workflows import slow

# More than is usual.
LONG = "-" * 1_000


async def test_what_a_list_tells(lab: Lab) -> None:
    """The same whole and in pages, and after a restart; an admin is told whose each is."""
    simulator = await lab.simulator()
    gateway = await with_keys(lab, simulator)
    anna, ben, boss = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN, BOSS))
    for n in range(3):
        extra = {"extra_pnginfo": {"workflow": {"id": f"{n}{LONG}"}}}
        await anna.entry(await anna.prompt(slow(steps=1), extra_data=extra))
    await ben.entry(await ben.prompt(slow(steps=1)))
    running = await anna.prompt(
        slow(steps=1000, step_seconds=0.1), extra_data={"extra_pnginfo": {"workflow": {"id": "w"}}}
    )
    await anna.running(running)
    waiting = await anna.prompt(
        slow(steps=1000, step_seconds=0.1), number=2.5, extra_data={"extra_pnginfo": {"workflow": {"id": 7}}}
    )
    whole = await anna.get("/api/jobs")
    pages = [await anna.get("/api/jobs", limit="1", offset=str(n)) for n in range(6)]
    assert [job for page in pages for job in page["jobs"]] == whole["jobs"]
    assert whole["pagination"] == {"offset": 0, "limit": None, "total": 5, "has_more": False}
    assert [page["pagination"]["has_more"] for page in pages] == [True] * 4 + [False] * 2
    statuses = [job["status"] for job in whole["jobs"]]
    assert statuses == ["pending", "in_progress", "completed", "completed", "completed"]
    first, second = whole["jobs"][:2]
    assert {name: first[name] for name in ("id", "priority", "workflow_id")} == {
        "id": waiting,
        "priority": 2.5,
        "workflow_id": 7,
    }
    assert (second["id"], second["workflow_id"], type(second["priority"])) == (running, "w", int)
    assert {"gateway_tenant"}.isdisjoint(first)
    for job in whole["jobs"][:2]:
        shown = await anna.get(f"/api/jobs/{job['id']}")
        assert {shown.pop(f"gateway_{name}", 0) for name in ("load", "eta")} == {2, None}
        assert shown.pop("gateway_place") == (job["id"] == waiting)
        assert shown == job
    assert (await anna.get("/api/jobs", workflow_id="w"))["jobs"] == [second]
    assert [job["workflow_id"][0] for job in whole["jobs"][2:]] == ["2", "1", "0"]
    async with lab.http.head(f"{gateway.url}/api/jobs", headers=anna.headers) as answer:
        assert answer.status == 200
    shown = [(job["id"], job["gateway_tenant"]) for job in (await boss.get("/api/jobs"))["jobs"]]
    assert len(shown) == 6
    assert [job_id for job_id, tenant in shown if tenant == "anna"] == [job["id"] for job in whole["jobs"]]
    assert (await boss.get(f"/api/jobs/{running}"))["gateway_tenant"] == "anna"
    of_anna = await boss.get("/api/jobs", tenant="anna")
    assert {job.pop("gateway_tenant") for job in of_anna["jobs"]} == {"anna"}
    assert {job.pop("gateway_backend", None) for job in of_anna["jobs"]} == {"b1"}
    assert of_anna == whole
    await gateway.kill()
    gateway = await with_keys(lab, simulator)
    anna = Comfy(lab.http, gateway.url, X_API_Key=ANNA)
    assert await anna.get("/api/jobs") == whole
