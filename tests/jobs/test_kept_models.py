"""The models' slots in the store."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from gateway.jobs.kept_models import KeptModels
from gateway.store.protocol import ModelNames
from gateway.store.sqlite import SqliteStore
from gateway.telemetry.job_times import JobTimes


def _times() -> JobTimes:
    return JobTimes(CollectorRegistry(), "x_", by_model=True)


async def test_slots_are_there_after_a_restart(tmp_path: Path) -> None:
    before, after, damaged = _times(), _times(), _times()
    store = SqliteStore(tmp_path)
    await store.open()
    kept = KeptModels(store, before)
    await kept.restore()
    assert before.slots.used == {}
    before.started("a.safetensors", "p", 1.0)
    await kept.close()
    await store.close()

    store = SqliteStore(tmp_path)
    await store.open()
    await KeptModels(store, after).restore()
    assert after.slots.used == before.slots.used != {}
    await store.write([ModelNames("no JSON")])
    await KeptModels(store, damaged).restore()
    assert damaged.slots.used == {}
    await store.close()


async def test_slots_are_written_when_they_change_and_once_an_hour(tmp_path: Path) -> None:
    now = [1e9]
    times = JobTimes(CollectorRegistry(), "x_", by_model=True, wall_clock=lambda: now[0])
    store = SqliteStore(tmp_path)
    await store.open()
    kept = KeptModels(store, times)
    written = []
    for seconds, model in ((0, "a"), (60, "a"), (60, "b"), (3700, "a")):
        now[0] += seconds
        times.started(model, "p", 1.0)
        await kept._write_changes()
        await store.write([])
        written.append(await store.model_names())
    assert written[1] == written[0]
    assert '"b"' in written[2]
    assert written[3] != written[2]
    await store.close()
