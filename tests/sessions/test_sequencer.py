"""The order in which one socket is told. `>` is what comes in, `<` what goes out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.events import START_SLOT, TERMINAL_SLOT, Frame, Kind
from gateway.sessions.sequencer import Sequencer


def f(text: str) -> Frame:
    """A frame: ``A:start``, ``A:progress1``, ``A:preview1``, ``A:end``, ``status``."""
    if ":" not in text:
        return Frame(Kind.STATUS, text.encode(), None, "status")
    prompt_id, what = text.split(":")
    kind = next((k for k in (Kind.PROGRESS, Kind.PREVIEW, Kind.END) if what.startswith(k)), Kind.LIFECYCLE)
    lifecycle = {"start": START_SLOT, "success": TERMINAL_SLOT}
    slot = str(kind) if kind in (Kind.PROGRESS, Kind.PREVIEW) else lifecycle.get(what, "")
    return Frame(kind, text.encode(), prompt_id, slot)


def play(sequencer: Sequencer, *incoming: str) -> str:
    """What goes out for what comes in."""
    return " ".join(frame.payload.decode() for text in incoming for frame in sequencer.feed(f(text)))


def test_one_prompt_at_a_time() -> None:
    s = Sequencer()
    assert play(s, "A:start", "B:start", "A:progress1") == "A:start A:progress1"
    assert play(s, "B:done", "B:end") == ""
    assert play(s, "A:done", "A:end") == "A:done A:end B:start B:done B:end"
    assert play(s, "C:start") == "C:start"


def test_only_frames_that_need_not_wait_count_as_delays() -> None:
    s, at_once, late = Sequencer(), f("A:start"), f("B:start")
    at_once.heard_at = late.heard_at = 5.0
    s.feed(at_once)
    s.feed(late)
    assert [frame.heard_at for frame in s.feed(f("A:end"))] == [0.0, 0.0]
    assert (at_once.heard_at, late.heard_at) == (5.0, 0.0)


def test_an_id_that_is_sent_again_is_told_anew() -> None:
    s = Sequencer()
    play(s, "A:start", "A:end")
    assert play(s, "A:straggler", "A:start", "A:progress1", "A:end") == "A:start A:progress1 A:end"


def test_the_next_one_goes_on_live() -> None:
    s = Sequencer()
    play(s, "A:start", "B:start", "C:start", "B:executed")
    assert play(s, "A:end") == "A:end B:start B:executed"
    assert play(s, "B:progress1", "C:executed") == "B:progress1"
    assert play(s, "B:end") == "B:end C:start C:executed"


def test_progress_waits_and_of_previews_the_newest() -> None:
    s = Sequencer()
    play(
        s, "A:start", "B:start", "B:progress1", "B:preview1", "B:progress2", "B:executing", "B:progress3", "B:preview2"
    )
    assert play(s, "A:end") == "A:end B:start B:progress1 B:progress2 B:executing B:progress3 B:preview2"
    assert s.waiting_bytes == 0


def test_thinned_only_the_newest_progress_and_preview_wait() -> None:
    s = Sequencer()
    play(s, "A:start", "B:start", "B:progress1", "B:progress2", "B:executing", "B:progress3", "C:start", "C:progress1")
    assert [frame.payload for frame in s.thin()] == [b"B:progress1", b"B:progress2"]
    assert play(s, "A:end", "B:end") == "A:end B:start B:executing B:progress3 B:end C:start C:progress1"


def test_what_a_second_run_repeats_is_told_to_those_who_take_it_as_it_happens() -> None:
    repeated = Frame(Kind.PROGRESS, b"1 of 8", "A", "progress", repeats=True)
    assert Sequencer().feed(repeated) == []
    assert Sequencer(interleave=True).feed(repeated) == [repeated]


def test_status_waits_while_a_prompt_that_has_ended_is_untold() -> None:
    s = Sequencer()
    assert play(s, "A:start", "B:start", "status") == "A:start status"
    assert play(s, "C:start", "C:end", "status1", "A:progress1", "status2") == "A:progress1"
    assert play(s, "A:end") == "A:end C:start C:end status2 B:start"
    assert play(s, "status3") == "status3"
    # ComfyUI's order at an end: the terminal event, status, executing with node null.
    assert play(s, "D:start", "D:success", "status4", "D:end") == ""
    assert play(s, "B:end") == "B:end D:start D:success D:end status4"


def test_those_that_have_ended_come_first() -> None:
    s = Sequencer()
    play(s, "A:start", "B:start", "C:start", "C:end")
    assert play(s, "A:end") == "A:end C:start C:end B:start"


def test_a_straggler_does_not_open_its_prompt_again() -> None:
    s = Sequencer()
    play(s, "A:start", "A:end")
    assert play(s, "A:progress9", "B:start") == "B:start"


def test_interleaving_releases_what_waited() -> None:
    s = Sequencer()
    play(s, "A:start", "B:start")
    assert [frame.payload for frame in s.interleave()] == [b"B:start"]
    assert play(s, "B:progress1", "A:progress1") == "B:progress1 A:progress1"
    assert s.waiting_bytes == 0


@given(st.lists(st.sampled_from([f"{p}:{w}" for p in "ABC" for w in ("start", "progress", "preview", "executed")])))
def test_every_lifecycle_frame_arrives_once_and_in_its_prompts_order(incoming: list[str]) -> None:
    s = Sequencer()
    ends = [f"{p}:end" for p in sorted({text[0] for text in incoming})]
    told = play(s, *incoming, *ends).split()
    for prompt in "ABC":
        mine = [text for text in [*incoming, *ends] if text[0] == prompt and "pro" not in text and "pre" not in text]
        assert [text for text in told if text[0] == prompt and "pro" not in text and "pre" not in text] == mine
    stretches = [text[0] for n, text in enumerate(told) if n == 0 or told[n - 1][0] != text[0]]
    assert len(stretches) == len(set(stretches))
    assert s.waiting_bytes == 0
