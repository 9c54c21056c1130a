"""How long a job waits until it is sent again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.retries import backoff


def test_it_doubles_up_to_a_limit() -> None:
    assert [backoff(losses, 1.0, 0.5, 3.0) for losses in range(1, 6)] == [0.5, 1, 2, 3, 3]
    assert backoff(1, 0.0, 0.5, 3.0) == 0.25


@given(st.integers(1, 1000), st.floats(0, 1), st.floats(0.001, 100), st.floats(0.001, 1000))
def test_it_is_bounded_and_never_gets_shorter(losses: int, luck: float, first: float, most: float) -> None:
    pause = backoff(losses, luck, first, most)
    assert min(first, most) / 2 <= pause <= most
    assert pause <= backoff(losses + 1, luck, first, most)
    assert backoff(losses, 0.0, first, most) <= pause <= backoff(losses, 1.0, first, most)
