"""What a backend's messages say."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.comfy.events import timestamp_of


@pytest.mark.parametrize(
    ("timestamp", "told"),
    [
        (1795608000123, 1795608000123),
        (0, 0),
        (-1, None),
        (10**400, None),
        (True, None),
        (1795608000123.5, None),
        ("now", None),
        (None, None),
    ],
)
def test_a_time_is_one_that_can_be_reckoned_with(timestamp: Any, told: int | None) -> None:
    assert timestamp_of({"timestamp": timestamp}) == told
