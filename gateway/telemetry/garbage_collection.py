"""Collections of garbage that hold the loop for 50 ms at most.

A collection takes about 0.4 ms for each thousand objects that it looks at, and nothing else runs meanwhile. Python
collects young objects by itself. This module collects older objects while they are few. Objects that survive are in
use: if they become many, they are frozen, and not looked at again. Reference counts free them later, because no request
leaves objects that hold one another (tests/telemetry/test_garbage_collection.py).
"""

from __future__ import annotations

import gc

from gateway.telemetry.tasks import Tasks

# Python looks at its young objects whenever there are YOUNG more of them, and at the survivors of three such looks.
# OLD is so large that Python never looks at older objects.
YOUNG, LEFT, OLD = 5_000, 2, 1_000_000
# How often survivors may have become old since the last look at the old objects: up to 15,000 objects each time.
MAX_OLDER = 2
# Maximum number of old objects that are looked at again.
MAX_OLD = 30_000
SECONDS = 30.0


def set_thresholds() -> None:
    """Set Python's thresholds, so that a collection of its own takes less than 50 ms."""
    gc.set_threshold(YOUNG, LEFT, OLD)


def collect(max_older: int = MAX_OLDER, max_old: int = MAX_OLD) -> int:
    """Collect all garbage unless there are too many objects; return the number of unreachable objects.

    If there are too many objects, freeze them, so that no collection looks at them again.
    """
    # Ask for the count of collections first, because counting objects takes as long as collecting a tenth of them.
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
