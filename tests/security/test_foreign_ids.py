"""Ids of before, and ids of others: what an earlier version has journalled, and what another gateway sends."""

from __future__ import annotations

import json

from gateway.jobs.state.submission import encode_for_journal, read
from gateway.simulator.nodes import seed_colour
from gateway.store.protocol import HistoryRecord, JobRecord
from gateway.store.sqlite import SqliteStore
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.pictures import colour
from tests.support.security_world import caller, start
from tests.support.workflows import slow

SHARED_ID = "11111111-2222-4333-8444-555555555555"
ANNAS, BENS = 0x112233, 0x070809


async def test_a_job_of_an_earlier_version_gets_no_entry_of_another_job(lab: Lab) -> None:
    """Prompts went upstream under their clients' ids: Ben's was being sent under Anna's as the version was changed."""
    simulator = await lab.simulator()
    there = Comfy(lab.http, simulator.url)
    await there.prompt(slow(ANNAS, prefix="annas"), prompt_id=SHARED_ID)
    entry = await there.entry(SHARED_ID)
    store = SqliteStore(lab.directory / "data")
    await store.open()
    submission = read(json.dumps({"prompt": slow(BENS, prefix="bens"), "prompt_id": SHARED_ID}).encode())
    ended = HistoryRecord(
        "anna", SHARED_ID, "b1", SHARED_ID, 0, "success", None, None, b"{}", json.dumps(entry).encode()
    )
    journalled = encode_for_journal(submission)
    sending = ("sending", "b1", SHARED_ID, 1, None, 0, submission.digest, None, journalled)
    await store.write([ended, JobRecord("ben", SHARED_ID, await store.identity(), 1, 1.0, *sending)])
    await store.close()
    gateway = await start(lab, simulator)
    ben = caller(lab, gateway, "ben")
    own = await ben.entry(SHARED_ID)
    assert own["prompt"][2] == slow(BENS, prefix="bens")
    assert [colour(await ben.view(image)) for image in ben.images(own)] == [seed_colour(BENS)]


async def test_an_admin_is_not_shown_the_mark_of_another_gateway(lab: Lab) -> None:
    """Two gateways before one backend: what one sends is foreign to the other, which shows none of its ids."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator)
    boss, there = caller(lab, gateway, "boss"), Comfy(lab.http, simulator.url)
    extra = {"gateway_assignment": "a secret", "own": 1}
    running = await there.prompt(slow(steps=1000, step_seconds=0.1), extra_data=extra)
    pending = await there.prompt(slow(2), extra_data=extra)

    async def shown() -> bool:
        queue = await boss.get("/queue")
        return [item[1] for items in queue.values() for item in items] == [running, pending]

    await until(shown, what="both are shown")
    items = [item for items in (await boss.get("/queue")).values() for item in items]
    assert [item[3]["own"] for item in items] == [1, 1]
    assert "a secret" not in json.dumps(items)
