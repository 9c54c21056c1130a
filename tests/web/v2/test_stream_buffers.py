"""The bytes that wait for slow readers of event streams."""

from __future__ import annotations

from contextlib import ExitStack

from gateway.web.v2.stream_buffers import StreamBuffers


def test_a_tenant_and_all_have_a_bound() -> None:
    buffers = StreamBuffers(100, 150)
    with ExitStack() as waiting:
        waiting.enter_context(buffers.holding("anna", 60))
        assert buffers.has_room("anna", 40)
        assert not buffers.has_room("anna", 41)
        assert buffers.has_room("ben", 90)
        assert not buffers.has_room("ben", 91)
        # What is no preview is sent, and counts.
        waiting.enter_context(buffers.holding("anna", 1_000))
        assert not buffers.has_room("ben", 1)
    assert buffers.has_room("anna", 100)
    assert not buffers.has_room("anna", 101)
    assert not buffers._bytes
