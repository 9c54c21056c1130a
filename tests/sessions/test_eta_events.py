"""Events of ETAs, for sockets that asked."""

from __future__ import annotations

import json
from typing import Any

from gateway.comfy.events import Frame
from gateway.jobs.routing.eta import Eta, Shown
from gateway.jobs.state.job import Job
from gateway.sessions import eta_events
from gateway.sessions.eta_events import EtaEvents, is_news
from tests.support.ledgers import admit, new_ledger


class Reader:
    """A socket that keeps what it gets."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def send(self, frame: Frame) -> None:
        """Keep a frame."""
        assert frame.prompt_id is None
        self.heard.append(json.loads(frame.payload))


def shown(seconds: float | None, at: float = 0.0, place: int = 0) -> Shown:
    """What a client is shown."""
    return Shown(place, 1, None, None if seconds is None else Eta(seconds, seconds, seconds), at)


def test_a_clients_clock_is_enough_until_something_changes() -> None:
    assert is_news(None, shown(None))
    assert not is_news(shown(None), shown(None, 60.0))
    assert is_news(shown(None), shown(30.0))
    assert is_news(shown(30.0), shown(None))
    assert is_news(shown(30.0, place=1), shown(30.0))
    assert not is_news(shown(30.0), shown(20.0, 10.0))
    assert not is_news(shown(30.0), shown(21.5, 10.0))
    assert is_news(shown(30.0), shown(23.0, 10.0))
    assert not is_news(shown(300.0), shown(320.0))


async def test_each_socket_is_told_of_its_sessions_jobs_once() -> None:
    ledger, places = new_ledger(), dict[Job, int]()
    told = EtaEvents(ledger, lambda job: shown(30.0, place=places.get(job, 0)))
    mine, late, others = Reader(), Reader(), Reader()
    told.join("t", "me", mine)
    told.join("t", "other", others)
    first, second = (admit(ledger, "t", client_id="me") for _ in range(2))
    admit(ledger, "t", client_id="nobody")
    admit(ledger, "strange", client_id="me")
    held = admit(ledger, "t", client_id="me")
    held.live.held = True
    await told.tell()
    await told.tell()
    ids = [event["data"]["prompt_id"] for event in mine.heard]
    assert ids == [first.prompt_id, second.prompt_id]
    assert mine.heard[0]["type"] == "gateway_eta"
    assert mine.heard[0]["data"]["eta"] == {"seconds": 30, "low": 30, "high": 30}
    assert others.heard == []

    told.join("t", "me", late)
    assert [event["data"]["prompt_id"] for event in late.heard] == ids
    places[second] = 1
    ledger.hold(first)
    ledger.cancel(first)
    await told.tell()
    assert [event["data"]["place"] for event in mine.heard] == [0, 0, 1]
    assert [event["data"]["place"] for event in late.heard] == [0, 0, 1]
    for session, reader in (("me", mine), ("me", late), ("other", others)):
        told.leave("t", session, reader)
    await told.tell()
    assert not told._tenants


async def test_a_round_has_a_bound_and_nobody_is_left_out_for_ever(monkeypatch: Any) -> None:
    monkeypatch.setattr(eta_events, "MAX_ESTIMATES", 30)
    ledger = new_ledger()
    told, readers = EtaEvents(ledger, lambda _: shown(30.0)), {tenant: Reader() for tenant in "abcd"}
    for tenant, reader in readers.items():
        told.join(tenant, "me", reader)
        assert reader.heard == []
        for _ in range(25):
            admit(ledger, tenant, client_id="me")
    await told.tell()
    assert [len(reader.heard) for reader in readers.values()] == [20, 20, 0, 0]
    await told.tell()
    assert [len(reader.heard) for reader in readers.values()] == [20, 20, 20, 20]
