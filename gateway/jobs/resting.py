"""How long a job rests after a backend failed over it, so that its attempts are not used up in one bad moment."""

from __future__ import annotations

import random
import time

from gateway.jobs.job import Job

FIRST = 0.5
MOST = 10.0


def rest(job: Job) -> float:
    """Seconds, twice as many after each attempt, a fifth more or less so that not all come back at once."""
    seconds = min(FIRST * 2.0 ** (job.attempts - 1), MOST) * random.uniform(0.8, 1.2)
    job.not_before = time.monotonic() + seconds
    return seconds
