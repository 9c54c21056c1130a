"""Events that take too long to read in one piece, up to the maximum size of a message.

A process apart cuts out the long parts. The rest is handled like all events (`event_relay.py`). Then a process writes
the whole event into a file, with the names that the tenant knows. The sockets read from that file.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from gateway.comfy import events
from gateway.comfy.events import MAX_TEXT, Frame
from gateway.fleet.backend import Backend
from gateway.jobs.events.results import dropped
from gateway.jobs.files.outputs import Outputs
from gateway.jobs.lifecycle.event_relay import Caught, EventRelay
from gateway.jobs.lifecycle.large_entries import changes_for
from gateway.jobs.parsing.json_reader import JsonReader, NotRead
from gateway.jobs.parsing.reader_process import CutParts, FillParts
from gateway.store.spool import Lost, Spool
from gateway.telemetry import logs

_log = logs.get("results")


class LargeEvents:
    """Reader of large events, one of a backend at a time."""

    def __init__(self, event_relay: EventRelay, reader: JsonReader, spool: Spool, outputs: Outputs) -> None:
        self._event_relay = event_relay
        self._reader = reader
        self._spool = spool
        self._outputs = outputs

    async def heard(self, backend: Backend, raw: bytes) -> bool:
        """Send an event to its job's session. Return False if the event can't be read."""
        tenant = self._event_relay.tenant_at(backend)
        try:
            path = await self._spool.store([raw])
        except Lost:
            return False
        try:
            cut = CutParts(str(path), secrets.token_hex(12), MAX_TEXT, is_event=True)
            left = await self._reader.cut(tenant, cut)
            event = events.parse(left) if left else None
            if event is None:
                return False
            caught = await self._event_relay.catch_event(backend, event)
            frame = await self._whole(caught, cut, len(raw)) if caught is not None else None
            if caught is not None and frame is not None:
                self._event_relay.tell_caught(caught, frame)
        except NotRead as error:
            _log.warning("large_event_not_read", backend=backend.name, reason=str(error))
            return False
        finally:
            self._spool.discard(path)
        return True

    async def _whole(self, caught: Caught, cut: CutParts, size: int) -> Frame | None:
        """Return a frame with its long parts; None if the job has no session, or the spool has no room for it."""
        job, assignment, frame = caught.job, caught.assignment, caught.frame
        said = frame.payload
        if job.submission.session_id is None or assignment is None:
            return None
        if cut.mark.encode() not in said:
            return frame
        if not self._spool.has_place(job.tenant, size):
            dropped(job, "too much waits on disk for its tenant's sockets", size)
            return None
        target = self._spool.new_path()
        order = FillParts(cut, str(target), changes_for(job, assignment, self._outputs), is_packed=False)
        bulk = None
        try:
            written = await self._reader.fill(job.tenant, order, said)
            bulk = self._spool.adopt(job.tenant, target, written)
        except NotRead:
            dropped(job, "it could not be put together", size)
        finally:
            if bulk is None:
                self._spool.discard(target)
        return replace(frame, said=b"", translate=None, bulk=bulk) if bulk is not None else None
