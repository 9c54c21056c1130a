"""Background tasks with an owner: a failure is logged with its traceback, and all are awaited at the end.

And the pauses of such tasks, which an event cuts short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from gateway.telemetry import logs

_log = logs.get("tasks")
_T = TypeVar("_T")


class Tasks:
    """The tasks of one part of the gateway. `close` cancels what is left and waits for it."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    def start(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Run `work` in the background. After `close` nothing starts any more: the work is dropped, cancelled."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self._owner}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        if self._closing:
            task.cancel()
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task failed", task=task.get_name(), error=repr(error), exc_info=error)

    async def close(self) -> None:
        """Cancel the tasks that still run and wait until each has ended."""
        self._closing = True
        while self._tasks:
            pending = list(self._tasks)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)


async def pause(seconds: float, event: asyncio.Event) -> None:
    """Wait for a time, but not longer than until an event is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
