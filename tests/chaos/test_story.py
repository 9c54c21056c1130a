"""The checker refuses what must not be told, or it would be worth nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.story import IllegalStory, Listening

WHOLE = ["start", "cached", "node", "progress", "executed", "success", "end"]
EVENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "start": ("execution_start", {}),
    "cached": ("execution_cached", {"nodes": []}),
    "node": ("executing", {"node": "1"}),
    "progress": ("progress", {"value": 1, "max": 2}),
    "state": ("progress_state", {"nodes": {}}),
    "too much": ("progress", {"value": 3, "max": 2}),
    "preview": ("preview", {}),
    "executed": ("executed", {"node": "2", "output": {}}),
    "success": ("execution_success", {}),
    "error": ("execution_error", {}),
    "interrupted": ("execution_interrupted", {}),
    "end": ("executing", {"node": None}),
    "unknown": ("execution_paused", {}),
}


def tell(*words: str, one_at_a_time: bool = True) -> Listening:
    """Tell a story of prompt ``a``; ``b:word`` is about another one, ``|`` a new connection, a number a status."""
    listening = Listening(one_at_a_time=one_at_a_time)
    listening.connected()
    for word in words:
        if word == "|":
            listening.connected()
        elif word.lstrip("-").isdecimal():
            listening.heard("status", {"status": {"exec_info": {"queue_remaining": int(word)}}})
        else:
            prompt_id, _, name = word.rpartition(":")
            type_, data = EVENTS[name]
            listening.heard(type_, {**data, "prompt_id": prompt_id or "a"})
    return listening


@pytest.mark.parametrize(
    "words",
    [
        WHOLE,
        ["1", *WHOLE, "0"],
        ["start", "success", "end"],
        ["start", "interrupted", "end"],
        ["start", "cached", "node", "error", "end"],
        [*WHOLE[:4], "node", "progress", "state", "preview", "executed", "success", "end"],
        ["start", "node", "success", "end"],
        [*WHOLE, *(f"b:{word}" for word in WHOLE)],
        [*WHOLE[:3], "|", "node", "state", "success", "end"],
        [*WHOLE[:3], "|", *WHOLE],
        ["|", "node", "success", "end"],
        [*WHOLE[:6], "|", "end"],
    ],
)
def test_legal(words: list[str]) -> None:
    listening = tell(*words)
    assert listening.is_whole("a")


@pytest.mark.parametrize(
    "words",
    [
        ["node"],
        ["progress"],
        ["success"],
        ["end"],
        ["start", "start"],
        [*WHOLE[:4], "start"],
        [*WHOLE[:2], "cached"],
        ["start", "node", "cached"],
        ["start", "end"],
        ["start", "success", "success"],
        ["start", "success", "error"],
        ["start", "success", "progress"],
        ["start", "success", "start"],
        [*WHOLE, "start"],
        [*WHOLE, "end"],
        [*WHOLE, "progress"],
        [*WHOLE, "|", "start"],
        [*WHOLE, "|", "node"],
        ["start", "|", "start", "start"],
        ["start", "too much"],
        ["start", "unknown"],
        ["-1"],
        ["start", "b:start"],
        ["start", "success", "b:start"],
    ],
)
def test_illegal(words: list[str]) -> None:
    tell(*words[:-1])
    with pytest.raises(IllegalStory):
        tell(*words)


def test_side_by_side_is_for_those_who_ask() -> None:
    tell("start", "b:start", "node", "b:node", "b:success", "success", "b:end", "end", one_at_a_time=False)


@pytest.mark.parametrize("words", [["start"], WHOLE[:-1], [*WHOLE, "b:start"]])
def test_half_a_story_is_seen(words: list[str]) -> None:
    listening = tell(*words)
    assert not (listening.is_whole("a") and listening.is_whole("b"))


def test_the_last_status_counts() -> None:
    assert tell("3", "2").remaining == 2
    assert tell("3", "|").remaining is None
