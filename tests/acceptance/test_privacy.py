"""A tenant that is isolated gets nothing of another's, whatever it asks for and however it spells it."""

from __future__ import annotations

from tests.acceptance.test_uploads import ANNA, BEN, with_keys
from tests.comfy_client import Comfy
from tests.lab import Lab
from tests.workflows import slow


async def test_jobs_under_api_twice(lab: Lab) -> None:
    """ComfyUI serves /api/jobs under /api/api/jobs, too (server.py, add_routes)."""
    gateway = await with_keys(lab, await lab.simulator())
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=key) for key in (ANNA, BEN))
    prompt_id = await anna.prompt(slow())
    await anna.entry(prompt_id)
    assert (await anna.get("/api/api/jobs"))["jobs"][0]["id"] == prompt_id
    assert (await ben.get("/api/api/jobs"))["jobs"] == []
    async with lab.http.get(f"{gateway.url}/api/api/jobs/{prompt_id}", headers=ben.headers) as answer:
        assert answer.status == 404
    running = await anna.prompt(slow(steps=1000))
    await anna.running(running)
    assert await ben.post(f"/api/api/jobs/{running}/cancel") == (200, {"cancelled": False})
    assert await ben.post("/api/api/jobs/cancel", {"job_ids": [running]}) == (200, {"cancelled": False})
    assert await anna.post(f"/api/api/jobs/{running}/cancel") == (200, {"cancelled": True})
