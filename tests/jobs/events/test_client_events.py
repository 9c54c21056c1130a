"""Frames that wait until their job may be told of."""

from __future__ import annotations

from gateway.bus import LocalBus, session_topic
from gateway.comfy.events import TERMINAL_SLOT, Frame, Kind
from gateway.jobs.events.client_events import MAX_HELD_BYTES, ClientEvents
from tests.support.ledgers import admit, new_ledger

MIB = 2**20


def test_what_waits_for_an_answer_is_bounded() -> None:
    """Past the bound frames are left out, but never what ends their prompt."""
    bus = LocalBus()
    ledger = new_ledger(bus)
    client_events, told = ClientEvents(bus, ledger.begin), []
    job = admit(ledger, "anna", client_id="s1")
    bus.subscribe(session_topic("anna", "s1"), told.append)
    client_events.hold_until_answered(job)
    for _ in range(80):
        client_events.tell(job, Frame(Kind.LIFECYCLE, bytes(MIB), "p"))
    client_events.tell(job, Frame(Kind.LIFECYCLE, b"success", "p", TERMINAL_SLOT))
    client_events.tell(job, Frame(Kind.END, b"end", "p"))
    client_events.answered(job)
    assert [frame.payload for frame in told[-2:]] == [b"success", b"end"]
    assert sum(frame.size for frame in told) <= MAX_HELD_BYTES + MIB
    assert len(told) > 60
