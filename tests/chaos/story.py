"""What a client may be told of its prompts: a small grammar, and a checker of it. Pure.

A prompt's story on one connection, as a single ComfyUI would tell it:

    story    = start [cached] news* terminal end
    start    = execution_start
    cached   = execution_cached
    news     = executing (a node) | progress | progress_state | executed | a preview
    terminal = execution_success | execution_error | execution_interrupted
    end      = executing (node null)

A prompt that runs a second time goes on with its story: nothing in it may be told twice but news. On a connection that
was opened later a story may begin in its midst, or with its start again; but what has ended stays so for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

START = "execution_start"
CACHED = "execution_cached"
TERMINAL = frozenset({"execution_success", "execution_error", "execution_interrupted"})
NEWS = frozenset({"executing", "progress", "progress_state", "executed", "preview"})


class Place(Enum):
    """How far a story is."""

    UNTOLD = "untold"
    MAYBE = "untold on this connection"
    STARTED = "started"
    GOING_ON = "going on"
    TERMINAL = "at its terminal event"
    OVER = "over"


class IllegalStory(AssertionError):
    """An event that could not come there."""


@dataclass
class Story:
    """One prompt's story as one client hears it. `events` are the types told so far, a bar for each new connection."""

    prompt_id: str
    place: Place = Place.UNTOLD
    terminal: str | None = None
    events: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether it may stay as it is: nothing is told, or all."""
        return self.place in (Place.UNTOLD, Place.OVER)

    @property
    def is_begun(self) -> bool:
        """Whether its end is still to be told on this connection."""
        return self.place in (Place.STARTED, Place.GOING_ON, Place.TERMINAL)

    def told(self, type_: str, data: dict[str, Any]) -> None:
        """The next event.

        Raises:
            IllegalStory: it could not come here.
        """
        is_end = type_ == "executing" and data.get("node") is None
        self.events.append("end" if is_end else type_)
        following = self._after("end" if is_end else type_)
        if following is None:
            raise IllegalStory(f"{self.prompt_id}: {self.events[-1]} while {self.place.value}: {self.tale()}")
        if type_ in TERMINAL:
            self.terminal = type_
        _check_progress(type_, data)
        self.place = following

    def _after(self, what: str) -> Place | None:
        """Where a story is after an event; None if that is illegal."""
        place = self.place
        if what == START:
            return Place.STARTED if place in (Place.UNTOLD, Place.MAYBE) else None
        if what == CACHED:
            return Place.GOING_ON if place in (Place.STARTED, Place.MAYBE) else None
        is_going_on = place in (Place.STARTED, Place.GOING_ON, Place.MAYBE)
        if what in NEWS:
            return Place.GOING_ON if is_going_on else None
        if what in TERMINAL:
            return Place.TERMINAL if is_going_on else None
        if what == "end":
            # The terminal event may have gone to a connection that broke.
            return Place.OVER if place in (Place.TERMINAL, Place.MAYBE) else None
        return None

    def connected_anew(self) -> None:
        """The client has a new connection: what was told while it had none is not known."""
        self.events.append("|")
        if self.place is not Place.OVER:
            self.place = Place.MAYBE

    def tale(self) -> str:
        """What was told last, repetitions left out."""
        short: list[str] = []
        for event in self.events:
            if not short or short[-1] != event:
                short.append(event)
        return " ".join(short[-16:])


def _check_progress(type_: str, data: dict[str, Any]) -> None:
    if type_ == "progress" and not 0 <= data["value"] <= data["max"]:
        raise IllegalStory(f"{data['value']} of {data['max']}")


class Listening:
    """All that one client hears, whose sockets come one after the other.

    With `one_at_a_time` no other prompt's event comes between a prompt's start and its end.
    """

    def __init__(self, *, one_at_a_time: bool) -> None:
        self.stories: dict[str, Story] = {}
        self.remaining: int | None = None
        self.connections = 0
        self._one_at_a_time = one_at_a_time
        self._current: str | None = None

    def connected(self) -> None:
        """A socket was opened."""
        self.connections += 1
        self.remaining = self._current = None
        if self.connections > 1:
            for story in self.stories.values():
                story.connected_anew()

    def heard(self, type_: str, data: dict[str, Any]) -> None:
        """The next message.

        Raises:
            IllegalStory: it could not come here.
        """
        if type_ == "status":
            self.remaining = int(data["status"]["exec_info"]["queue_remaining"])
            if self.remaining < 0:
                raise IllegalStory(f"queue_remaining {self.remaining}")
            return
        prompt_id = data.get("prompt_id")
        if prompt_id is None:
            return
        story = self._story(prompt_id)
        story.told(type_, data)
        if self._one_at_a_time and self._current not in (None, prompt_id):
            raise IllegalStory(f"{type_} of {prompt_id} before the end of {self._current}")
        self._current = None if story.place is Place.OVER else prompt_id

    def _story(self, prompt_id: str) -> Story:
        story = self.stories.get(prompt_id)
        if story is None:
            story = self.stories[prompt_id] = Story(prompt_id)
            if self.connections > 1:
                story.place = Place.MAYBE
        return story

    def is_whole(self, prompt_id: str) -> bool:
        """Whether nothing is missing of a prompt's story."""
        return prompt_id not in self.stories or self.stories[prompt_id].is_whole
