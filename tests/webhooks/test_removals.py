"""Deletion of endpoints: in short commits, the endpoint's row last, and finished after a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.store.webhook_records import DeliveryRecord, EventRecord
from gateway.webhooks.model import NotFound, TooManyEndpoints
from gateway.webhooks.outbox import BATCH
from gateway.webhooks.service import Webhooks
from tests.support.webhook_service import URL, rows, served

TABLES = ("webhook_endpoints", "webhook_events", "webhook_deliveries")


async def filled(directory: Path, *, events: int = 2 * BATCH + 1) -> tuple[str, str]:
    """Make two endpoints and events: all go to the first one, and every tenth to the other, too."""
    async with served(directory) as hooks:
        first, second = [(await hooks.create("t", URL))[0].id for _ in range(2)]
        changes: list[EventRecord | DeliveryRecord] = []
        for n in range(events):
            changes.append(EventRecord(f"evt_{n}", "t", "job.failed", None, 2_000_000_000_000 + n, b"{}", 2))
            to = [first, *([second] if n % 10 == 0 else [])]
            changes += [DeliveryRecord(f"evt_{n}", each, "t", "dead", "[]", 10, None) for each in to]
        await hooks._store.write(changes)
    return first, second


def is_all_of(hooks: Webhooks, endpoint_id: str) -> bool:
    """Whether all that there is belongs to one endpoint."""
    listed = hooks.deliveries("t", limit=200).items
    return bool(listed) and {each.delivery.endpoint_id for each in listed} == {endpoint_id}


async def test_an_endpoint_goes_in_short_commits(tmp_path: Path) -> None:
    first, second = await filled(tmp_path)
    async with served(tmp_path) as hooks:
        hooks._deliveries._failing[first] = 0.0
        write, sizes = hooks._store.write, []
        hooks._store.write = lambda changes: [sizes.append(len(changes)), write(changes)][1]  # type: ignore[method-assign]
        # Who asks again waits for the same deletion.
        await asyncio.gather(hooks.delete("t", first), hooks.delete(None, first))
        assert max(sizes) <= BATCH
        assert len(sizes) == 1 + 3 + 1
        with pytest.raises(NotFound):
            await hooks.delete("t", first)
        assert [rows(tmp_path, table) for table in TABLES] == [1, 21, 21]
        assert is_all_of(hooks, second)
        assert (len(hooks._outbox), hooks._deliveries._failing) == (21, {})


async def test_a_deletion_that_a_crash_broke_off_is_finished_by_the_next_start(tmp_path: Path) -> None:
    first, second = await filled(tmp_path)
    async with served(tmp_path) as hooks:
        hooks._removals.start(hooks.endpoint("t", first))
        await asyncio.sleep(0)
        # The gateway ends while the first batch is written: those behind it never are.
    assert [rows(tmp_path, table) for table in TABLES] == [2, 111, 111 + 11]
    async with served(tmp_path) as hooks:
        assert [each.id for each in hooks.endpoints(None)] == [second]
        assert [rows(tmp_path, table) for table in TABLES] == [1, 21, 21]
        assert is_all_of(hooks, second)


async def test_endpoints_that_are_being_deleted_count(tmp_path: Path) -> None:
    """Else a tenant could have any number of deletions under way."""
    first, _ = await filled(tmp_path)
    async with served(tmp_path, max_endpoints=2) as hooks:
        hooks._removals.start(hooks.endpoint("t", first))
        with pytest.raises(TooManyEndpoints, match="still being deleted"):
            await hooks.create("t", URL)
        await hooks.delete("t", first)
        await hooks.create("t", URL)
