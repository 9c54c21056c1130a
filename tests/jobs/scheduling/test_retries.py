"""How long a job waits until it is sent again."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.fleet import Fleet
from gateway.jobs.scheduling.retries import Retries, backoff
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.support.ledgers import Paper, admit, new_ledger


def test_it_doubles_up_to_a_limit() -> None:
    assert [backoff(losses, 1.0, 0.5, 3.0) for losses in range(1, 6)] == [0.5, 1, 2, 3, 3]
    assert backoff(1, 0.0, 0.5, 3.0) == 0.25


@given(st.integers(1, 1000), st.floats(0, 1), st.floats(0.001, 100), st.floats(0.001, 1000))
def test_it_is_bounded_and_never_gets_shorter(losses: int, luck: float, first: float, maximum: float) -> None:
    pause = backoff(losses, luck, first, maximum)
    assert min(first, maximum) / 2 <= pause <= maximum
    assert pause <= backoff(losses + 1, luck, first, maximum)
    assert backoff(losses, 0.0, first, maximum) <= pause <= backoff(losses, 1.0, first, maximum)


async def test_what_was_lost_together_goes_together() -> None:
    """So that the dispatcher, which goes by age, sends the oldest first; no backend is up, so none goes at once."""
    settings, metrics, ledger, woken = Settings(), Metrics(), new_ledger(), []
    paper: Any = Paper()
    retries = Retries(Fleet(settings, metrics, "id", paper), settings.dispatch, metrics, lambda: woken.append(1))
    jobs = [admit(ledger) for _ in range(5)]
    for job in jobs:
        ledger.send(job, "b1")
        ledger.lose(job)
    before = time.monotonic()
    retries.later(jobs[:4], "b1", "lost")
    assert len({job.not_before for job in jobs[:4]}) == 1
    assert settings.dispatch.backoff / 2 <= jobs[0].not_before - before
    assert jobs[4].not_before == 0
    assert woken == [1]
    assert ledger.waiting.jobs() == jobs
    await retries.close()


async def test_after_a_restart_a_pause_begins_again() -> None:
    settings, metrics, ledger = Settings(), Metrics(), new_ledger()
    paper: Any = Paper()
    retries = Retries(Fleet(settings, metrics, "id", paper), settings.dispatch, metrics, lambda: None)
    for attempts, pauses in ((0, False), (1, False), (2, True), (9, True)):
        job = admit(ledger)
        ledger.hold(job)
        job.attempts = attempts
        retries.resume(job)
        least = min(settings.dispatch.backoff * 2 ** (attempts - 1), settings.dispatch.max_backoff) / 2
        assert (job.not_before - time.monotonic() > least - 1) if pauses else job.not_before == 0
    await retries.close()
