"""Frames that wait for their turn."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.backlog import MAX_FRAMES, MAX_PROGRESS_BYTES, MAX_SLOTS, Backlog
from gateway.comfy.events import Frame, Kind

KINDS = st.sampled_from([Kind.PROGRESS, Kind.PREVIEW, Kind.OTHER, Kind.LIFECYCLE])


def progress(n: int, size: int = 4) -> Frame:
    """The n-th event of a sampler."""
    return Frame(Kind.PROGRESS, str(n).encode().zfill(size), "A", "progress")


def test_progress_is_kept_evenly_and_the_newest_always() -> None:
    backlog = Backlog()
    for n in range(1, 65):
        backlog.add(progress(n))
    assert [int(frame.payload) for frame in backlog.frames] == list(range(1, 65))
    for n in range(65, 1001):
        backlog.add(progress(n))
    kept = [int(frame.payload) for frame in backlog.frames]
    assert kept[-1] == 1000
    assert 32 <= len(kept) <= 64
    assert max(later - earlier for earlier, later in itertools.pairwise([0, *kept])) <= 32


def test_large_progress_is_bounded_by_its_bytes() -> None:
    backlog = Backlog()
    for n in range(100):
        backlog.add(progress(n, MAX_PROGRESS_BYTES // 4))
    assert 1 <= len(backlog.frames) <= 4
    backlog.add(progress(100, MAX_PROGRESS_BYTES * 2))
    assert [len(frame.payload) for frame in backlog.frames] == [MAX_PROGRESS_BYTES * 2]


@given(st.lists(st.tuples(KINDS, st.sampled_from(["a", "b"]), st.integers(0, 9)), max_size=300), st.integers(0, 80))
def test_what_is_left_out(said: list[tuple[Kind, str, int]], whole: int) -> None:
    """Lifecycle events all wait, of each other kind and slot the newest, in their order; bytes are counted."""
    backlog, frames = Backlog(whole), [Frame(kind, b"x" * size, "A", slot) for kind, slot, size in said]
    for frame in frames:
        backlog.add(frame)
    kept = [id(frame) for frame in backlog.frames]
    assert kept == [id(frame) for frame in frames if id(frame) in set(kept)]
    for kind in MAX_FRAMES:
        for slot in "ab":
            of_slot = [id(frame) for frame in frames if frame.kind is kind and frame.slot == slot]
            assert not of_slot or of_slot[-1] in kept
            assert len(set(of_slot) & set(kept)) <= max(MAX_FRAMES[kind], whole)
    assert {id(frame) for frame in frames if frame.kind is Kind.LIFECYCLE} <= set(kept)
    if len(frames) <= whole:
        assert len(kept) == len(frames)
    backlog.thin()
    assert backlog.bytes == sum(len(frame.payload) for frame in backlog.frames)
    slots = [(frame.kind, frame.slot) for frame in backlog.frames if frame.kind in (Kind.PROGRESS, Kind.PREVIEW)]
    assert len(slots) == len(set(slots))


def test_events_of_types_without_number_are_few() -> None:
    """Nodes make up types of events. Of the first of these the newest of each type wait, of all others together."""
    backlog = Backlog()
    for n in range(3_000):
        backlog.add(Frame(Kind.OTHER, str(n).encode(), "A", f"type-{n}"))
        backlog.add(Frame(Kind.OTHER, b"", "A", "type-0"))
    backlog.add(progress(0))
    assert len(backlog.frames) <= (MAX_SLOTS + 2) * MAX_FRAMES[Kind.OTHER]
    assert backlog.frames[-3].payload == b"2999"
    assert sum(frame.slot == "type-0" for frame in backlog.frames) == MAX_FRAMES[Kind.OTHER]
