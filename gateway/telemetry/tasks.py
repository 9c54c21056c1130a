"""Background tasks with an owner: a failure is logged with its traceback, and all are awaited at the end.

Work that is done once is started with `Tasks.start`; work that goes on as long as the gateway is a `Loop`, which no
failure ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from contextvars import ContextVar
from typing import Any, TypeVar

from gateway.telemetry import logs

_log = logs.get("tasks")
_T = TypeVar("_T")

# Seconds before a failed loop goes on: doubled with each failure in a row.
FIRST_BACKOFF, MAX_BACKOFF = 0.5, 15.0

# Seconds of a long piece of work after which others have their turn.
TURN_SECONDS = 0.005

# Seconds for which cancelled tasks may clean up, before they are cancelled again. No cleanup takes longer.
CLEANUP_SECONDS = 8.0

# All loops that run in this process.
running: set[Loop] = set()

# Counts a failure, given the name of its task. Set before the parts of a gateway are made, because each takes it then.
count_failure: ContextVar[Callable[[str], None] | None] = ContextVar("count_failure", default=None)
# Counts a loop that goes on after a failure, in the same way.
count_restart: ContextVar[Callable[[str], None] | None] = ContextVar("count_restart", default=None)


class Loop:
    """Work that is done again and again until its owner is closed.

    An unexpected exception is logged with its traceback and counted; the work goes on after a pause.

    Attributes:
        name: the name of the task, for logs and metrics.
        work: does one round.
        rounds: how many rounds have ended well.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        rest: Callable[[], float],
        failed: Callable[[str, BaseException], None],
    ) -> None:
        self.name = name
        self.work = work
        self.rounds = 0
        self._rest = rest
        self._failed = failed
        self._restarted = count_restart.get()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Begin the next round at once: cut the pause short, or leave it out if a round is under way."""
        self._woken.set()

    def forget_wake(self) -> None:
        """Pause after this round, even if `wake` was called meanwhile."""
        self._woken.clear()

    async def run(self, *, at_once: bool) -> None:
        """Do rounds for ever, the first one after a pause unless it is to be `at_once`."""
        seconds, backoff = 0.0 if at_once else self._rest(), FIRST_BACKOFF
        while True:
            # If the work has no pause of its own, let others run all the same.
            await pause(seconds, self._woken) if seconds > 0 else await asyncio.sleep(0)
            self._woken.clear()
            try:
                await self.work()
                seconds = self._rest()
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                self._failed(self.name, error)
                if self._restarted is not None:
                    self._restarted(self.name)
                seconds, backoff = backoff, min(backoff * 2, MAX_BACKOFF)
            else:
                self.rounds, backoff = self.rounds + 1, FIRST_BACKOFF


def _is_cancelled() -> bool:
    """Return True if the current task is to end, False if it only waited for another one that was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Failures:
    """Reports unexpected errors of work in the background: a line in the log with the traceback, and a count."""

    def __init__(self) -> None:
        self._count = count_failure.get()

    def report(self, counted: str, error: BaseException, name: str = "", **about: str | None) -> None:
        """Count an error as `counted`, and log it under the same name, or under `name` if given.

        Args:
            about: further fields of the log line, such as the ids of a job.
        """
        if self._count is not None:
            self._count(counted)
        _log.error("task_failed", task=name or counted, error=repr(error), **about, exc_info=error)


class Tasks:
    """The tasks of one part of the gateway. `close` cancels what is left and waits for it."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures = Failures()
        self._closing = False

    def start(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Run `work` in the background. After `close` nothing starts any more: the work is dropped, cancelled."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self._owner}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        if self._closing:
            task.cancel()
        return task

    def repeat(
        self,
        work: Callable[[], Awaitable[None]],
        name: str,
        rest: Callable[[], float] | float,
        *,
        at_once: bool = True,
    ) -> Loop:
        """Do `work` again and again, with `rest` seconds in between, until `close`. No failure ends it.

        The first round is `at_once`, or after such a rest.
        """
        seconds = rest if callable(rest) else lambda: rest
        loop = Loop(f"{self._owner}:{name}", work, seconds, self._failures.report)
        running.add(loop)
        self.start(loop.run(at_once=at_once), name).add_done_callback(lambda _: running.discard(loop))
        return loop

    def __len__(self) -> int:
        return len(self._tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.report(self._owner, error, task.get_name())

    async def finish(self, seconds: float) -> None:
        """Let the tasks end by themselves for so long, then `close`."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=seconds)
        await self.close()

    async def close(self) -> None:
        """Cancel the tasks that still run and wait until each has ended.

        Cancel a task again if it goes on, because libraries lose a cancellation that comes together with an error.
        """
        self._closing = True
        while self._tasks:
            pending = list(self._tasks)
            for task in pending:
                task.cancel()
            _, remaining = await asyncio.wait(pending, timeout=CLEANUP_SECONDS)
            for task in remaining:
                _log.warning("task_goes_on", task=task.get_name(), seconds=CLEANUP_SECONDS)


class Soon:
    """A call in a later turn of the event loop: one, however often it is asked for until then."""

    def __init__(self, tasks: Tasks, call: Callable[[], None], name: str) -> None:
        self._tasks, self._call, self._name = tasks, call, name
        self._is_asked = False

    def ask(self) -> None:
        """Have it called, unless it is to be called already."""
        if not self._is_asked:
            self._is_asked = True
            self._tasks.start(self._run(), self._name)

    async def _run(self) -> None:
        await asyncio.sleep(0)
        self._is_asked = False
        self._call()


async def together(works: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run coroutines at the same time, and return their results in order. The first failure cancels the others.

    A cancellation of the caller is raised even if a failure comes in the same turn. `asyncio.TaskGroup` and
    `asyncio.gather` raise the failure then, so that the caller goes on (asyncio/taskgroups.py, asyncio/tasks.py).

    Raises:
        Exception: the first failure.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        unfinished = [task for task in tasks if not task.done()]
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)
        failures = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    if failures:
        raise failures[0]
    return [task.result() for task in tasks]


async def pause(seconds: float, event: asyncio.Event) -> None:
    """Wait for a time, or until an event is set if that is sooner."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


async def in_turns(steps: Generator[None, None, _T]) -> _T:
    """Do long work in steps, with a turn for other tasks in between, and return its result."""
    outcome: list[_T] = []

    def kept() -> Generator[None, None, None]:
        outcome.append((yield from steps))

    with contextlib.closing(kept()) as taken:
        until = time.monotonic() + TURN_SECONDS
        for _ in taken:
            if time.monotonic() >= until:
                await asyncio.sleep(0)
                until = time.monotonic() + TURN_SECONDS
    return outcome[0]
