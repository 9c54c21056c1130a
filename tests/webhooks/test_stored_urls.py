"""Links in the bodies of events: to the tenant's own stored outputs, as far as there is room."""

from __future__ import annotations

import json
from typing import Any

from gateway.files.index import Stored
from gateway.jobs.files.entry_links import EntryLinks
from gateway.jobs.state.job_end import End
from gateway.webhooks.model import MAX_PAYLOAD, Event, EventType
from gateway.webhooks.payload import job_payload
from gateway.webhooks.stored_urls import StoredUrls
from tests.support.stored_links import indexed, links
from tests.webhooks.test_payload import CHECK, NOW, job


def body(*names: str, type_: EventType = EventType.JOB_SUCCEEDED) -> bytes:
    """The journalled body of an event about these images."""
    images = [{"filename": name, "subfolder": "", "type": "output"} for name in names]
    status = {"status_str": "success", "messages": []}
    return job_payload(type_, job(), NOW, End("success", {"outputs": {"9": {"images": images}}, "status": status}))


async def sent(urls: StoredUrls, journalled: bytes, tenant: str = "anna") -> list[Any]:
    """The outputs that a receiver reads."""
    event = Event("evt_1", tenant, EventType.JOB_SUCCEEDED, NOW, "p")
    told = await urls.to(event, journalled)
    assert len(told) <= MAX_PAYLOAD
    CHECK.validate(json.loads(told))
    outputs: list[Any] = json.loads(told)["data"]["outputs"]
    return outputs


def made(public_url: str = "", **files: dict[str, Stored | None]) -> StoredUrls:
    """Links to these tenants' files."""

    async def unread(*_: Any) -> None:
        return None

    return StoredUrls(EntryLinks(indexed(files), links(), unread), public_url)


async def test_stored_outputs_have_a_link_and_others_none() -> None:
    urls = made("https://gw.example", anna={"a.png": Stored("k", 5, "b3", 1), "b.png": None}, ben={})
    journalled = body("a.png", "b.png", "c.png")
    assert b"stored" not in journalled
    first, second, third = await sent(urls, journalled)
    assert first["stored_url"].startswith("https://gw.example/gateway/stored/k?expires=")
    assert first["stored_url_expires_at"].endswith("Z")
    assert (second["stored_url"], second["stored_url_expires_at"], third["stored_url"]) == (None, None, None)
    # The same names of another tenant are other files.
    assert [each["stored_url"] for each in await sent(urls, journalled, "ben")] == [None] * 3


async def test_a_body_with_links_is_no_longer_than_one_without() -> None:
    names = [f"picture-{n:03}.png" for n in range(100)]
    urls = made(anna={name: Stored(f"{'t' * 32}/{'j' * 36}/{name}", 5, "b3", 1) for name in names})
    outputs = await sent(urls, body(*names))
    linked = [each for each in outputs if each.get("stored_url")]
    assert 0 < len(linked) < len(outputs)
    few = await sent(urls, body(*names[:5]))
    assert all(each["stored_url"] for each in few)


async def test_an_event_without_outputs_is_sent_as_it_is() -> None:
    urls = made(anna={})
    event = Event("evt_1", "anna", EventType.JOB_SUCCEEDED, NOW, "p")
    for journalled in (body(), b'{"type":"webhook.test"}'):
        type_ = EventType.TEST if journalled.startswith(b'{"type":"webhook') else event.type
        assert await urls.to(Event("evt_1", "anna", type_, NOW), journalled) == journalled


def test_the_schema_describes_links() -> None:
    """A link that is no text is refused."""
    wrong = json.loads(body("a.png"))
    wrong["data"]["outputs"][0]["stored_url"] = 1
    assert not CHECK.is_valid(wrong)
