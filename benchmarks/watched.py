"""An ordinary gateway whose callbacks are timed, beside a heartbeat in its loop: ``python -m benchmarks.watched``.

It runs on asyncio's own loop, because no other lets its callbacks be timed. With ``WATCH_LATENESS_ALONE`` in the
environment callbacks are not timed, and it runs on the loop that an ordinary gateway runs on.

The arguments are those of the gateway's own command. ``WATCH_SOCKET`` names the Unix socket on which the figures are
asked for: each line that comes is answered with the figures since the line before (`Watch.report`), as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
from collections import deque

import psutil
import uvloop

from gateway import app
from gateway.cli import main

BEAT_SECONDS = 0.001
_MILLION = 1_000_000
# Beats whose lateness is remembered.
_MAX_BEATS = 200_000


class Watch:
    """A heartbeat in the loop that it measures.

    `piece` is CPU time of the longest callback, `collection` that of the longest collection of garbage, which is part
    of a callback. `stall` is that of the loop's thread between two beats, in which many
    connections may have had a callback each, `every` that of all threads: one that parses JSON holds the interpreter,
    and the loop with it. `late` is the most by which a beat came late, by the clock, and `late_p99` the
    99th percentile.
    """

    piece = 0.0
    collection = 0.0

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._loop = asyncio.get_running_loop()
        self._late: deque[float] = deque([0.0], maxlen=_MAX_BEATS)
        self._due = time.monotonic()
        self.clear()
        self._beat()

    def clear(self) -> None:
        """Forget what was measured."""
        self._stall = self._every = self._peak = 0.0
        self._late.clear()
        Watch.piece = Watch.collection = 0.0
        self._began, self._began_at = time.process_time(), time.monotonic()
        self._rss = self._maximum = self._process.memory_info().rss
        self._note()

    def _note(self) -> None:
        self._thread, self._all = time.thread_time(), time.process_time()

    def _beat(self) -> None:
        self._late.append(max(0.0, time.monotonic() - self._due))
        thread, every = time.thread_time() - self._thread, time.process_time() - self._all
        self._stall, self._every = max(self._stall, thread), max(self._every, every)
        if thread > 10 * BEAT_SECONDS or self._loop.time() > self._peak:
            # If something large was just done, or now and then, look at the memory, because that costs time, too.
            self._maximum = max(self._maximum, self._process.memory_info().rss)
            self._peak = self._loop.time() + 50 * BEAT_SECONDS
        self._note()
        self._due = time.monotonic() + BEAT_SECONDS
        self._loop.call_later(BEAT_SECONDS, self._beat)

    def report(self) -> dict[str, float]:
        """Return the figures in milliseconds and MB: the longest stalls, all CPU time, seconds, memory and its peak."""
        rss = self._process.memory_info().rss
        late = sorted(self._late) or [0.0]
        return {
            "late": late[-1] * 1000,
            "late_p99": late[int(len(late) * 0.99)] * 1000,
            "piece": Watch.piece * 1000,
            "collection": Watch.collection * 1000,
            "stall": self._stall * 1000,
            "every": self._every * 1000,
            "cpu": (time.process_time() - self._began) * 1000,
            "seconds": time.monotonic() - self._began_at,
            "grown": (rss - self._rss) / _MILLION,
            "peak": (max(self._maximum, rss) - self._rss) / _MILLION,
        }


class Watched(app.Gateway):
    """A gateway with a `Watchdog`."""

    async def start(self) -> None:
        """Start it, and listen for questions."""
        await super().start()
        watch = Watch()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.readline():
                writer.write(json.dumps(watch.report()).encode() + b"\n")
                watch.clear()
            writer.close()

        self._questions = await asyncio.start_unix_server(answer, os.environ["WATCH_SOCKET"])


def time_callbacks() -> None:
    """Have the longest callback of the loop noted."""
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        Watch.piece = max(Watch.piece, time.thread_time() - began)

    began_at = 0.0

    def collected(phase: str, _: dict[str, int]) -> None:
        nonlocal began_at
        if phase == "start":
            began_at = time.thread_time()
        else:
            Watch.collection = max(Watch.collection, time.thread_time() - began_at)

    gc.callbacks.append(collected)
    asyncio.Handle._run = timed  # type: ignore[method-assign]
    uvloop.run = asyncio.run


if __name__ == "__main__":
    if "WATCH_LATENESS_ALONE" not in os.environ:
        time_callbacks()
    main.Gateway = Watched  # type: ignore[misc]
    main.main()
