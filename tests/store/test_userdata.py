"""Going through thousands of a tenant's files, and what else the threads are for."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from gateway.store.userdata import MAX_WALKS, UserData


async def test_those_who_go_through_many_files_leave_threads_to_others(tmp_path: Path) -> None:
    """Of one tenant one at a time, of all no more than a few; what is quick does not wait for them."""
    data = UserData(tmp_path, 1000, 1000)
    await data.open()
    loop, started, go_on = asyncio.get_running_loop(), asyncio.Queue[str](), threading.Event()

    def walk(tenant: str) -> None:
        loop.call_soon_threadsafe(started.put_nowait, tenant)
        assert go_on.wait(30)

    tenants = ["a"] * 10 + ["b", "c", "d"] * 10
    walks = [asyncio.create_task(data.of(tenant).walk(lambda tenant=tenant: walk(tenant))) for tenant in tenants]
    async with asyncio.timeout(30):
        first = [await started.get() for _ in range(MAX_WALKS)]
        assert len(set(first)) == MAX_WALKS
        for tenant in "abcde":
            assert not await data.of(tenant).exists()
            assert await data.of(tenant).settings() == {}
        assert started.empty()
        go_on.set()
        await asyncio.gather(*walks)
    rest = [started.get_nowait() for _ in range(started.qsize())]
    assert sorted(first + rest) == sorted(tenants)
