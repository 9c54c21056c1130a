"""Learned times in the store."""

from __future__ import annotations

from pathlib import Path

from gateway.jobs.kept_learning import KeptLearning
from gateway.jobs.routing.times import RunKind
from gateway.jobs.scheduling.learning import Learning
from gateway.store.learned_records import LearnedRecord
from gateway.store.sqlite import SqliteStore
from tests.support.workloads import workload

WORK = workload("sdxl", 20)


def learn(learning: Learning) -> None:
    learning.times.learn(WORK, "b1", 8.0, RunKind.WARM)
    learning.changes += 1


async def test_times_are_there_after_a_restart(tmp_path: Path) -> None:
    before, after, damaged = Learning(), Learning(), Learning()
    store = SqliteStore(tmp_path)
    await store.open()
    kept = KeptLearning(store, before)
    await kept.restore()
    await kept._write_changes()
    assert await store.learned() == b""
    learn(before)
    await kept.close()
    await store.close()

    store = SqliteStore(tmp_path)
    await store.open()
    await KeptLearning(store, after).restore()
    assert list(after.parts()) == list(before.parts())
    record = await store.learned()
    # Damaged lines are left out, and what is whole is kept.
    lines = [b"[7", b"\xff", b"7", b"", *record.split(b"\n")[:3], b'["speeds"]', *record.split(b"\n")[3:]]
    await store.write([LearnedRecord(b"\n".join(lines))])
    await KeptLearning(store, damaged).restore()
    assert list(damaged.parts()) == list(before.parts())
    await store.close()


async def test_times_are_written_if_they_changed(tmp_path: Path) -> None:
    learning = Learning()
    store = SqliteStore(tmp_path)
    await store.open()
    kept, written = KeptLearning(store, learning), []
    for has_learned in (True, False, True):
        if has_learned:
            learn(learning)
        else:
            await store.write([LearnedRecord(b"as it was")])
        await kept._write_changes()
        written.append(await store.learned())
    assert written[1] == b"as it was"
    assert len({*written}) == 3
    # A record that is large is written less often.
    assert kept._pause() == 60
    kept._bytes = 3_000_000
    assert kept._pause() == 300
    await store.close()
