"""Collections of garbage that hold the loop for 50 ms at most.

A collection takes about 0.4 ms for each thousand objects that it looks at, and nothing else runs meanwhile. Python
collects those that are young by itself. The others are looked at here while they are few. What is left then is in use:
once it is many, it is looked at no more. Reference counts free it when its time comes, because no request leaves
objects that hold one another (tests/telemetry/test_garbage_collection.py).
"""

from __future__ import annotations

import gc

from gateway.telemetry.tasks import Tasks

# Python looks at its young objects whenever there are YOUNG more of them, and at those that three such looks left.
# Older ones it would look at after so many of these that it never does.
YOUNG, LEFT, OLD = 5_000, 2, 1_000_000
# How often what was left may have become old since the old ones were looked at: up to 15,000 objects each time.
MAX_OLDER = 2
# Old objects that are looked at again.
MAX_OLD = 30_000
SECONDS = 30.0


def set_thresholds() -> None:
    """Have Python collect only as much by itself as takes less than 50 ms."""
    gc.set_threshold(YOUNG, LEFT, OLD)


def collect(max_older: int = MAX_OLDER, max_old: int = MAX_OLD) -> int:
    """Collect all garbage unless there are too many objects; return how many were found.

    Objects that are many are not looked at again.
    """
    # To count the objects takes as long as a collection of a tenth of them.
    if gc.get_count()[2] > max_older:
        gc.freeze()
        return 0
    found = gc.collect()
    if len(gc.get_objects()) > max_old:
        gc.freeze()
    return found


class Garbage:
    """Collects garbage now and then."""

    def __init__(self) -> None:
        self._tasks = Tasks("garbage")

    def start(self) -> None:
        """Begin to collect."""
        self._tasks.repeat(self._collect, "collect", SECONDS, at_once=False)

    async def close(self) -> None:
        """Stop collecting."""
        await self._tasks.close()

    async def _collect(self) -> None:
        collect()
