"""Replay on a real journal: what fits, what is written, and that no attempt is undone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from gateway.store.webhook_records import DeliveryRecord, EventRecord
from gateway.webhooks.model import Attempt, DeliveryState, WebhookRefused
from gateway.webhooks.outbox import BATCH
from gateway.webhooks.queues import Key
from gateway.webhooks.service import Webhooks
from tests.support.webhook_service import URL, served


async def events(hooks: Webhooks, tenant: str, endpoint_id: str, count: int = 1) -> None:
    """Write events whose delivery to an endpoint is dead. The next start knows them."""
    now, changes = round(time.time() * 1000), list[EventRecord | DeliveryRecord]()
    for n in range(count):
        event = EventRecord(f"evt_{tenant}{n}", tenant, "job.failed", None, now + n, b"{}", 2)
        changes += [event, DeliveryRecord(event.id, endpoint_id, tenant, "dead", "[]", 10, None)]
    await hooks._store.write(changes)


async def test_a_tenant_replays_one_range_at_a_time(tmp_path: Path) -> None:
    """Each may write every event anew, so many at a time would hold up the journal."""
    async with served(tmp_path) as hooks:
        ids = {tenant: (await hooks.create(tenant, URL, ["job.failed"]))[0].id for tenant in ("t", "u")}
        for tenant, id_ in ids.items():
            await events(hooks, tenant, id_)
    async with served(tmp_path) as hooks:
        until_now = time.time() + 1
        for _ in range(2):
            # Each waits for the journal, so the second is asked for while the first one is under way.
            asked = (hooks.replay_range(tenant, ids[tenant], 0, until_now) for tenant in ("t", "t", "u"))
            first, second, third = await asyncio.gather(*asked, return_exceptions=True)
            assert (first, third) == (1, 1)
            assert isinstance(second, WebhookRefused)
            assert "under way" in str(second)


async def test_a_replay_that_does_not_fit_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    """Else the next event of anybody would drop the excess, which is others' events."""
    async with served(tmp_path) as hooks:
        old, new = [(await hooks.create("t", URL, ["job.failed"]))[0].id for _ in range(2)]
        await events(hooks, "t", old, 3)
    async with served(tmp_path) as hooks:
        hooks._outbox._max_deliveries = 5
        with pytest.raises(WebhookRefused, match="makes 3 new deliveries, and the gateway has room for 2"):
            await hooks.replay_range("t", new, 0, time.time() + 9)
        assert hooks._outbox.count(DeliveryState.PENDING) == 0
        # Deliveries that there are take no more room.
        assert await hooks.replay_range("t", old, 0, time.time() + 9) == 3
        assert await hooks.replay_event("t", "evt_t0", new) == await hooks.replay_event("t", "evt_t1", new) == 1
        with pytest.raises(WebhookRefused, match="a shorter time"):
            await hooks.replay_event("t", "evt_t2", new)
        assert hooks._outbox.count(DeliveryState.PENDING) == 5
        assert (hooks._outbox.over_bounds(), hooks._replays._reserved) == ([], 0)


async def test_two_replays_at_a_time_fit_together(tmp_path: Path) -> None:
    async with served(tmp_path) as hooks:
        new = {}
        for tenant, count in (("t", BATCH + 1), ("u", 3)):
            old, new[tenant] = [(await hooks.create(tenant, URL, ["job.failed"]))[0].id for _ in range(2)]
            await events(hooks, tenant, old, count)
    async with served(tmp_path) as hooks:
        # After the first batch of one, there seems to be room for the other.
        hooks._outbox._max_deliveries = BATCH + 1 + 3 + BATCH + 3
        asked = (hooks.replay_range(tenant, new[tenant], 0, time.time() + 9) for tenant in "tu")
        first, second = await asyncio.gather(*asked, return_exceptions=True)
        assert first == BATCH + 1
        assert isinstance(second, WebhookRefused)


async def begun(hooks: Webhooks, replay: Coroutine[Any, Any, int], pending: int) -> asyncio.Task[int]:
    """Begin a replay. Return its task as soon as it writes, or has made so many deliveries pending."""
    task = asyncio.ensure_future(replay)
    for _ in range(5):
        await asyncio.sleep(0)
        if hooks._outbox.count(DeliveryState.PENDING) >= pending:
            break
    assert not task.done()
    return task


def note(hooks: Webhooks, key: Key) -> None:
    """End an attempt that succeeded."""
    current = hooks._outbox.delivery(key)
    assert current is not None
    hooks._deliveries._note(current, Attempt(time.time(), 204, 0.1), None)


async def test_an_attempt_that_ends_while_a_replay_is_written_is_not_undone(tmp_path: Path) -> None:
    """The journal has the replay first, and so has memory."""
    async with served(tmp_path) as hooks:
        endpoint, _ = await hooks.create("t", URL, ["job.failed"])
        await events(hooks, "t", endpoint.id)
    key = ("evt_t0", endpoint.id)
    async with served(tmp_path) as hooks:
        task = await begun(hooks, hooks.replay_event("t", "evt_t0"), 1)
        note(hooks, key)
        assert await task == 1
        known = hooks._outbox.delivery(key)
    async with served(tmp_path) as hooks:
        kept = hooks._outbox.delivery(key)
    for each in (known, kept):
        assert each is not None
        assert (each.state, len(each.attempts)) == (DeliveryState.DELIVERED, 1)


async def test_a_long_replay_knows_of_attempts_that_ended_since_it_began(tmp_path: Path) -> None:
    async with served(tmp_path) as hooks:
        endpoint, _ = await hooks.create("t", URL, ["job.failed"])
        await events(hooks, "t", endpoint.id, BATCH + 1)
    key = (f"evt_t{BATCH}", endpoint.id)
    async with served(tmp_path) as hooks:
        await hooks.replay_event("t", key[0])
        task = await begun(hooks, hooks.replay_range("t", endpoint.id, 0, time.time() + 9), BATCH)
        note(hooks, key)
        assert await task == BATCH + 1
        known = hooks._outbox.delivery(key)
    async with served(tmp_path) as hooks:
        kept = hooks._outbox.delivery(key)
    for each in (known, kept):
        assert each is not None
        assert (each.state, len(each.attempts)) == (DeliveryState.PENDING, 1)


async def test_a_delivery_whose_schedule_has_just_begun_is_not_written_again(tmp_path: Path) -> None:
    async with served(tmp_path) as hooks:
        endpoint, _ = await hooks.create("t", URL, ["job.failed"])
        await events(hooks, "t", endpoint.id)
    async with served(tmp_path) as hooks:
        assert await hooks.replay_event("t", "evt_t0") == 1
        first = hooks._outbox.delivery(("evt_t0", endpoint.id))
        assert await hooks.replay_event("t", "evt_t0") == 1
        assert hooks._outbox.delivery(("evt_t0", endpoint.id)) is first
