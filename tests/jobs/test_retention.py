"""History entries that are too old, or too many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.jobs.history import DROPPED_AT_ONCE, History
from gateway.jobs.retention import BATCH, Retention
from gateway.settings import RetentionSettings
from gateway.store.protocol import HistoryRecord
from gateway.store.sqlite import SqliteStore

DAY = 86_400_000


def ended(n: int, tenant: str = "t") -> HistoryRecord:
    """A job that ended."""
    return HistoryRecord(tenant, f"p{n}", "b1", f"p{n}", n, "success", None, None, b"{}", b"{}")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """An open store."""
    store = SqliteStore(tmp_path)
    await store.open()
    yield store
    await store.close()


class Kept:
    """A history with its retention, as the engine has them."""

    def __init__(self, store: SqliteStore, **settings: float) -> None:
        self.store = store
        self.history = History(store, 1_000_000, 1_000_000)
        self.retention = Retention(RetentionSettings(**settings), self.history, store)  # type: ignore[arg-type]

    async def end(self, *numbers: int, tenant: str = "t") -> None:
        """Jobs end."""
        for n in numbers:
            self.store.write([ended(n, tenant)])
            self.history.add(ended(n, tenant))
        await self.store.write([])

    async def left(self) -> list[str]:
        """What is left, in memory and journal alike."""
        listed = [record.prompt_id for record in self.history.of(None)]
        assert sorted(listed) == sorted(record.prompt_id for record in await self.store.history())
        return listed


async def test_what_is_too_old_goes(store: SqliteStore) -> None:
    kept = Kept(store, max_age=30 * 86_400)
    await kept.end(1, 2)
    await kept.retention.sweep(100 * DAY)
    await kept.end(3)
    await kept.retention.sweep(110 * DAY)
    await kept.end(4)
    await kept.retention.sweep(129 * DAY)
    assert await kept.left() == ["p1", "p2", "p3", "p4"]
    await kept.retention.sweep(130 * DAY)
    assert await kept.left() == ["p3", "p4"]
    await kept.retention.sweep(159 * DAY)
    assert await kept.left() == []


async def test_a_journal_without_marks_is_as_old_as_the_first_one(store: SqliteStore) -> None:
    """One of an earlier version does not lose its history at the first start."""
    kept = Kept(store, max_age=86_400)
    await kept.end(1)
    await kept.retention.sweep(100 * DAY)
    assert await kept.left() == ["p1"]
    await kept.retention.sweep(101 * DAY)
    assert await kept.left() == []


async def test_the_oldest_go_where_there_are_too_many(store: SqliteStore) -> None:
    kept = Kept(store, max_items=3)
    await kept.end(1, 2, tenant="a")
    await kept.end(3, 4, 5, tenant="b")
    await kept.retention.sweep(DAY)
    assert await kept.left() == ["p3", "p4", "p5"]


async def test_many_go_in_several_commits(tmp_path: Path) -> None:
    commits: list[float] = []
    store = SqliteStore(tmp_path, observe_commit=commits.append)
    await store.open()
    kept = Kept(store, max_items=1)
    await kept.end(*range(5 * BATCH + 1))
    before = len(commits)
    await kept.retention.sweep(DAY)
    assert await kept.left() == [f"p{5 * BATCH}"]
    assert len(commits) - before >= 5
    await store.close()


async def test_marks_do_not_pile_up(store: SqliteStore, tmp_path: Path) -> None:
    kept = Kept(store, max_age=86_400)
    for day in range(50):
        await kept.end(day)
        await kept.retention.sweep(day * DAY)
    rows = await store._rows("SELECT count(*) FROM marks")
    assert int(str(rows[0][0])) <= 3


async def test_room_of_what_went_is_used_again(store: SqliteStore, tmp_path: Path) -> None:
    """The file does not grow while as much goes as comes."""
    kept = Kept(store, max_items=100)
    sizes = []
    for lap in range(6):
        await kept.end(*range(lap * 400, lap * 400 + 400))
        await kept.retention.sweep(lap * DAY)
        sizes.append(int(str((await store._rows("PRAGMA page_count"))[0][0])))
    assert sizes[-1] <= sizes[1] * 1.1


def test_a_smaller_number_a_tenant_is_reached_step_by_step() -> None:
    history = History(None, 10, 1_000_000)  # type: ignore[arg-type]
    for n in range(100):
        history.restore(ended(n))
    assert len(history.add(ended(100))) == DROPPED_AT_ONCE
    for n in range(101, 120):
        history.add(ended(n))
    assert [record.prompt_id for record in history.of(None)] == [f"p{n}" for n in range(110, 120)]
