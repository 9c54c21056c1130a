"""Links to stored outputs, in the bodies of events. They are signed for each attempt, so the journal holds none."""

from __future__ import annotations

from typing import Any, Protocol

from gateway.comfy import json_codec
from gateway.comfy.file_refs import FileRef
from gateway.jobs.files.entry_links import EntryLinks
from gateway.webhooks.model import MAX_PAYLOAD, TERMINAL, Event
from gateway.webhooks.payload import iso

# Members of an output that has no link.
_NO_LINK = {"stored_url": None, "stored_url_expires_at": None}


class AddLinks(Protocol):
    """Part that adds to the body of an event what nobody but its receiver may see: `StoredUrls`."""

    async def to(self, event: Event, payload: bytes) -> bytes:
        """Return the body as it is sent."""


class StoredUrls:
    """Links in the bodies of events.

    Args:
        public_url: the address of this gateway for its clients; its own links are paths if it is empty.
    """

    def __init__(self, links: EntryLinks, public_url: str) -> None:
        self._links = links
        self._public_url = public_url

    async def to(self, event: Event, payload: bytes) -> bytes:
        """Return the body of an event with a link to each output that is stored by now.

        An output whose link finds no room in `MAX_PAYLOAD` has none, as one that is not stored.
        """
        if event.type not in TERMINAL:
            return payload
        body = json_codec.loads(payload)
        outputs: list[dict[str, Any]] = body["data"]["outputs"]
        if not outputs:
            return payload
        refs = [FileRef(each["type"], each["subfolder"], each["filename"]) for each in outputs]
        links = await self._links.links_to(event.tenant, refs)
        room = MAX_PAYLOAD - len(payload) - len(outputs) * len(json_codec.dumps(_NO_LINK))
        if room < 0:
            return payload
        for output, link in zip(outputs, links, strict=True):
            output.update(_NO_LINK)
            if link is None:
                continue
            told = {"stored_url": link.under(self._public_url), "stored_url_expires_at": iso(link.expires_at)}
            if (size := len(json_codec.dumps(told))) <= room:
                output.update(told)
                room -= size
        return json_codec.dumps(body)
