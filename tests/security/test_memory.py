"""What one caller has the gateway hold in memory."""

from __future__ import annotations

import asyncio
import json

import psutil

from tests.support.lab import Lab
from tests.support.security_world import ask, caller, start
from tests.support.workflows import slow

ENTRIES, SIZE, READERS = 80, 900_000, 4


async def test_a_history_is_not_held_whole(lab: Lab) -> None:
    """Entries are read and sent one by one, also for an admin, whatever they are together."""
    gateway = await start(lab, await lab.simulator(), history__memory=1_000_000)
    anna, boss = caller(lab, gateway, "anna"), caller(lab, gateway, "boss")
    for n in range(ENTRIES):
        prompt = slow(n, steps=1, step_seconds=0.001)
        prompt["1"]["_meta"] = {"noise": "a" * SIZE}
        await anna.entry(await anna.prompt(prompt))
    process = psutil.Process(gateway.pid)
    maximum = before = process.memory_info().rss
    reading = [asyncio.create_task(ask(comfy, "GET", "/history")) for comfy in (anna, boss) * (READERS // 2)]
    while not all(task.done() for task in reading):
        maximum = max(maximum, process.memory_info().rss)
        await asyncio.sleep(0.005)
    seen = [json.loads((await task).body) for task in reading]
    assert [len(entries) for entries in seen] == [ENTRIES] * READERS
    assert {entry["gateway_tenant"] for entry in seen[1].values()} == {"anna"}
    assert list(seen[0]) == list(await anna.get("/history"))
    head = await ask(anna, "HEAD", "/history")
    assert (head.status, head.body) == (200, b"")
    assert {("cache-control", "private"), ("x-content-type-options", "nosniff")} <= set(head.headers)
    assert maximum - before < ENTRIES * SIZE, "less than one answer of them"
