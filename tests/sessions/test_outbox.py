"""What is left out for a slow reader."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.events import KEPT, Frame, Kind
from gateway.sessions.buffer_bounds import Shared, Total
from gateway.sessions.outbox import MAX_PAUSED, PAUSE_SECONDS, Outbox, pause_after


def frame(kind: Kind, size: int, slot: str = "") -> Frame:
    """A frame of a size."""
    return Frame(kind, bytes(size), "p", slot or str(kind))


def kinds(outbox: Outbox) -> list[Kind]:
    """What is in it."""
    found = []
    while (taken := outbox.take()) is not None:
        found.append(taken.kind)
    return found


def test_previews_go_first_then_progress_never_a_lifecycle_event() -> None:
    outbox = Outbox(1000, Shared(Total()))
    for _ in range(3):
        outbox.put(frame(Kind.PREVIEW, 100))
        outbox.put(frame(Kind.PROGRESS, 50))
    assert len(outbox) == 6
    dropped = outbox.put(frame(Kind.LIFECYCLE, 100))
    assert {d.kind for d in dropped} == {Kind.PREVIEW}
    dropped = outbox.put(frame(Kind.LIFECYCLE, 400))
    assert Kind.LIFECYCLE not in {d.kind for d in dropped}
    assert not outbox.overflowing
    assert kinds(outbox).count(Kind.LIFECYCLE) == 2


def test_lifecycle_events_alone_can_overflow() -> None:
    outbox = Outbox(1000, Shared(Total()))
    for _ in range(12):
        outbox.put(frame(Kind.LIFECYCLE, 100))
    assert outbox.overflowing
    assert len(outbox) == 12


def test_a_single_frame_may_be_large() -> None:
    outbox = Outbox(1000, Shared(Total()))
    outbox.put(frame(Kind.PREVIEW, 50_000))
    assert not outbox.overflowing
    assert kinds(outbox) == [Kind.PREVIEW]


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.integers(0, 400))))
def test_bytes_and_order(frames: list[tuple[Kind, int]]) -> None:
    outbox = Outbox(1000, Shared(Total()))
    put: list[Frame] = []
    for kind, size in frames:
        new = frame(kind, size)
        put.append(new)
        outbox.put(new)
    left = []
    total = outbox.bytes
    while (taken := outbox.take()) is not None:
        left.append(taken)
    assert total == sum(len(x.payload) for x in left)
    assert outbox.bytes == 0
    places = [next(n for n, x in enumerate(put) if x is y) for y in left]
    assert places == sorted(places)
    kept = [x for x in put if x.kind in KEPT]
    assert [x for x in left if x.kind in KEPT] == kept


def test_a_pause_parts_prompts_that_are_told_in_a_row() -> None:
    assert pause_after(1) == pause_after(MAX_PAUSED) == PAUSE_SECONDS
    assert pause_after(0) == pause_after(MAX_PAUSED + 1) == 0
