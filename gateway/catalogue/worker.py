"""Long work of Python's in a thread that gives the loop its turn.

A thread that never pauses holds the interpreter for 5 ms each time that the loop wants it back, and the loop does so
several times a request.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Seconds of work before a pause, and of the pause.
TURN_SECONDS = 0.001
PAUSE_SECONDS = 0.0002


def no_rest() -> None:
    """Go on without a pause."""


class Stopped(Exception):
    """The work is not wanted any more."""


class Worker:
    """One thread, so that of several long pieces of work one is under way at a time."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, name)
        self._closed = threading.Event()
        self._next_pause = 0.0

    async def run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do work in the thread, after all earlier work. The work calls `rest` between pieces of a millisecond."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: work(*args, **kwargs))

    def rest(self) -> None:
        """Let others have the interpreter, if the thread has had it for long.

        Raises:
            Stopped: the worker is closed.
        """
        if self._closed.is_set():
            raise Stopped
        if time.monotonic() >= self._next_pause:
            self._closed.wait(PAUSE_SECONDS)
            self._next_pause = time.monotonic() + TURN_SECONDS

    def let_go(self, held: list[Any]) -> None:
        """Give back the memory of large values one by one: to free a whole catalogue takes the interpreter long."""
        while held:
            held.pop()
            self.rest()

    def close(self) -> None:
        """Begin nothing more, and end the running work at its next rest."""
        self._closed.set()
        self._executor.shutdown(wait=False, cancel_futures=True)
