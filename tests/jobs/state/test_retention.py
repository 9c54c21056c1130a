"""History entries that are too old, or too many."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.jobs.state.history import DROPPED_AT_ONCE, MAX_DROPPED, History
from gateway.jobs.state.retention import BATCH, Retention
from gateway.settings import RetentionSettings
from gateway.store.protocol import ClockReading, HistoryRecord
from gateway.store.sqlite import SqliteStore

DAY = 86_400_000


def at(time: int, *, set_by: int = 0, boot: str = "first") -> ClockReading:
    """What the clocks say so long after the machine's start, the wall clock being set by so much since."""
    return ClockReading(time + set_by, time, boot)


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
    await kept.retention.sweep(at(100 * DAY))
    await kept.end(3)
    await kept.retention.sweep(at(110 * DAY))
    await kept.end(4)
    await kept.retention.sweep(at(129 * DAY))
    assert await kept.left() == ["p1", "p2", "p3", "p4"]
    await kept.retention.sweep(at(130 * DAY))
    assert await kept.left() == ["p3", "p4"]
    await kept.retention.sweep(at(159 * DAY))
    assert await kept.left() == []


async def test_a_journal_without_marks_is_as_old_as_the_first_one(store: SqliteStore) -> None:
    """One of an earlier version does not lose its history at the first start."""
    kept = Kept(store, max_age=86_400)
    await kept.end(1)
    await kept.retention.sweep(at(100 * DAY))
    assert await kept.left() == ["p1"]
    await kept.retention.sweep(at(101 * DAY))
    assert await kept.left() == []


@pytest.mark.parametrize("set_by", [-400 * DAY, -40 * DAY, 40 * DAY, 20_000 * DAY])
async def test_a_clock_that_is_set_makes_nothing_older_or_younger(store: SqliteStore, set_by: int) -> None:
    """A machine starts in 1970 and is told the date then, or its clock is set wrong for a while."""
    kept = Kept(store, max_age=30 * 86_400)
    await kept.end(1)
    await kept.retention.sweep(at(100 * DAY))
    await kept.end(2)
    await kept.retention.sweep(at(110 * DAY, set_by=set_by))
    await kept.end(3)
    await kept.retention.sweep(at(111 * DAY, set_by=set_by))
    await kept.retention.sweep(at(112 * DAY))
    assert await kept.left() == ["p1", "p2", "p3"]
    await kept.retention.sweep(at(130 * DAY, set_by=set_by))
    assert await kept.left() == ["p2", "p3"]
    await kept.retention.sweep(at(141 * DAY))
    assert await kept.left() == []


async def test_a_clock_that_runs_a_little_wrong_is_not_taken_for_set(store: SqliteStore) -> None:
    kept = Kept(store, max_age=86_400)
    await kept.end(1)
    for hour in range(24):
        await kept.retention.sweep(at(hour * 3_600_000, set_by=hour * 1000))
    assert await kept.left() == ["p1"]
    await kept.retention.sweep(at(DAY, set_by=25_000))
    assert await kept.left() == []


async def test_over_a_restart_of_the_machine_its_clock_is_believed(store: SqliteStore) -> None:
    kept = Kept(store, max_age=30 * 86_400)
    await kept.end(1)
    await kept.retention.sweep(at(100 * DAY))
    await kept.retention.sweep(at(0, set_by=129 * DAY, boot="second"))
    assert await kept.left() == ["p1"]
    await kept.retention.sweep(at(DAY, set_by=129 * DAY, boot="second"))
    assert await kept.left() == []


async def test_the_oldest_go_where_there_are_too_many(store: SqliteStore) -> None:
    kept = Kept(store, max_items=3)
    await kept.end(1, 2, tenant="a")
    await kept.end(3, 4, 5, tenant="b")
    await kept.retention.sweep(at(DAY))
    assert await kept.left() == ["p3", "p4", "p5"]


async def test_many_go_in_several_commits(tmp_path: Path) -> None:
    commits: list[float] = []
    store = SqliteStore(tmp_path, observe_commit=commits.append)
    await store.open()
    kept = Kept(store, max_items=1)
    await kept.end(*range(5 * BATCH + 1))
    before = len(commits)
    await kept.retention.sweep(at(DAY))
    assert await kept.left() == [f"p{5 * BATCH}"]
    assert len(commits) - before >= 5
    await store.close()


async def test_marks_do_not_pile_up(store: SqliteStore, tmp_path: Path) -> None:
    kept = Kept(store, max_age=86_400)
    for day in range(50):
        await kept.end(day)
        await kept.retention.sweep(at(day * DAY))
    rows = await store._rows("SELECT count(*) FROM marks")
    assert int(str(rows[0][0])) <= 3


async def test_room_of_what_went_is_used_again(store: SqliteStore, tmp_path: Path) -> None:
    """The file does not grow while as much goes as comes."""
    kept = Kept(store, max_items=100)
    sizes = []
    for lap in range(6):
        await kept.end(*range(lap * 400, lap * 400 + 400))
        await kept.retention.sweep(at(lap * DAY))
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


def sized(n: int, size: int, tenant: str = "t") -> HistoryRecord:
    """A job that ended, with so much noise in its entry."""
    return HistoryRecord(
        tenant, f"p{n}", "b1", f"p{n}", n, "success", None, None, b"{}", random.Random(n).randbytes(size)
    )


async def test_a_tenants_entries_have_so_many_bytes(store: SqliteStore) -> None:
    """The oldest go, whatever their number; what is newest stays, however large it is."""
    history = History(store, 1_000, 1_000_000, max_bytes=100_000)
    for n in range(5):
        record = sized(n, 30_000)
        await store.write([record])
        await store.write(history.add(record))
    assert [record.prompt_id for record in history.of(None)] == ["p2", "p3", "p4"]
    assert history.kept_bytes("t") == pytest.approx(90_000, rel=0.01)
    large = sized(9, 500_000)
    await store.write([large])
    await store.write(history.add(large))
    kept = await store.history()
    assert [record.prompt_id for record in history.of(None)] == ["p9"] == [record.prompt_id for record in kept]
    # A restarted gateway knows the same.
    again = History(store, 1_000, 1_000_000)
    for record in kept:
        again.restore(record)
    assert again.kept_bytes("t") == again.kept_bytes() == history.kept_bytes()
    history.remove("t", "p9")
    assert history.kept_bytes() == history.kept_bytes("t") == 0


async def test_one_tenants_bytes_are_no_other_ones_loss(store: SqliteStore) -> None:
    history = History(store, 1_000, 1_000_000, max_total_bytes=100_000)
    for n, (size, tenant) in enumerate([(10_000, "anna"), *[(30_000, "ben")] * 6, (10_000, "anna")]):
        record = sized(n, size, tenant)
        await store.write([record])
        await store.write(history.add(record))
    assert [record.prompt_id for record in history.of(None)] == ["p0", "p7", "p5", "p6"]
    assert history.kept_bytes() <= 100_000


async def test_a_large_entry_in_place_of_many_small_ones(store: SqliteStore) -> None:
    """They go a few hundred a commit; each that comes takes more of them along."""
    history = History(store, 10_000, 1_000_000, max_bytes=100_000)
    for n in range(2_000):
        history.add(sized(n, 40))
    dropped = history.add(sized(2_000, 100_000))
    assert len(dropped) == MAX_DROPPED
    while len(history) > 1:
        assert history.add(sized(2_000, 100_000))
    assert history.kept_bytes() <= 100_002


async def test_limits_that_were_made_smaller_hold_at_the_next_sweep(store: SqliteStore) -> None:
    """Of tenants that end no further job, too; the newest entry of each stays past its own limit."""
    wide = History(store, 1_000, 1_000_000)
    for n, tenant in enumerate(["anna"] * 4 + ["ben"] * 4):
        record = sized(n, 30_000, tenant)
        await store.write([record])
        wide.add(record)
    for limits, left in (
        ({"max_bytes": 70_000}, ["p2", "p3", "p6", "p7"]),
        ({"max_bytes": 10_000}, ["p3", "p7"]),
        ({"max_total_bytes": 40_000}, ["p7"]),
    ):
        history = History(store, 1_000, 1_000_000, **limits)
        for record in await store.history():
            history.restore(record)
        await Retention(RetentionSettings(), history, store).sweep(at(0), by_age=False)
        assert [record.prompt_id for record in history.of(None)] == left
        assert [record.prompt_id for record in await store.history()] == left


@pytest.mark.parametrize("wrong_by", [40 * DAY, -100 * DAY])
async def test_a_clock_that_is_wrong_until_it_is_set_ages_nothing(store: SqliteStore, wrong_by: int) -> None:
    """After a machine's start, say: marks of the time before are neither moved nor held against a wrong time."""
    hour = 3_600_000
    kept = Kept(store, max_age=30 * 86_400)
    await kept.end(1)
    await kept.retention.turn(at(100 * DAY))
    await kept.retention.turn(at(100 * DAY + hour))
    kept.retention = Retention(RetentionSettings(max_age=30 * 86_400), kept.history, store)
    await kept.retention.turn(at(0, set_by=101 * DAY + wrong_by, boot="second"))
    await kept.end(2)
    await kept.retention.turn(at(hour // 2, set_by=101 * DAY + wrong_by, boot="second"))
    for minutes in (40, 70, 101, 24 * 60):
        await kept.retention.turn(at(minutes * 60_000, set_by=101 * DAY, boot="second"))
    assert await kept.left() == ["p1", "p2"]
    await kept.retention.turn(at(29 * DAY + 2 * hour, set_by=101 * DAY, boot="second"))
    assert await kept.left() == ["p2"]
    await kept.retention.turn(at(32 * DAY, set_by=101 * DAY, boot="second"))
    assert await kept.left() == []


async def test_what_is_dropped_is_counted_by_its_setting(store: SqliteStore) -> None:
    kept = Kept(store, max_items=3)
    await kept.end(*range(5))
    await kept.retention.sweep(at(DAY))
    assert kept.history.take_dropped() == {"store.retention.max_items": 2}
    assert kept.history.take_dropped() == {}
    few = History(store, 2, 1_000_000)
    for n in range(5):
        few.add(ended(n))
    few.remove("t", "p4")
    assert few.take_dropped() == {"history.max_items": 3}
