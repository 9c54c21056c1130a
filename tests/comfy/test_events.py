"""What a backend's messages say."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.comfy.events import end_frame, status_frame, timestamp_of


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


def test_short_messages_are_written_as_comfyui_writes_them() -> None:
    """Scripts search the text of messages for the queue's length and a prompt's end."""
    queue = b'"data": {"status": {"exec_info": {"queue_remaining": 2}}'
    assert status_frame(2).payload == b'{"type": "status", ' + queue + b"}}"
    assert status_frame(2, 'a"b').payload == b'{"type": "status", ' + queue + b', "sid": "a\\"b"}}'
    assert end_frame("x").payload == b'{"type": "executing", "data": {"node": null, "prompt_id": "x"}}'
