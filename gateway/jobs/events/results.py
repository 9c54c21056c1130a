"""Frames of nodes' results and previews. Results are told apart from previews, and large ones may go to disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from gateway.comfy import previews
from gateway.comfy.events import KEPT, Frame, Kind
from gateway.comfy.previews import PREVIEW, PREVIEW_WITH_METADATA, Head
from gateway.comfy.results import Sender, is_result, sender_of
from gateway.jobs.state.job import Job
from gateway.store.spool import Spool
from gateway.telemetry import logs
from gateway.tenants.secret_names import holds_secret

_log = logs.get("results")

# Messages of at least this many bytes may go to disk.
LARGE = 32 * 1024
# Bytes that are searched in one step, and the overlap of two steps, because no key or secret name is longer.
LOOK, OVERLAP = 1024 * 1024, 8 * 1024
_PICTURES = (PREVIEW, 2, PREVIEW_WITH_METADATA)


class Results:
    """Maker of frames from nodes' messages.

    Args:
        describe: returns a backend's description of a node class, None if there is none.
    """

    def __init__(self, spool: Spool, describe: Callable[[str, str], Mapping[str, Any] | None]) -> None:
        self.spool = spool
        self._describe = describe

    def kind_of(self, job: Job, backend: str, head: Head) -> Kind:
        """Return the kind of a job's binary message: a result, a preview or another."""
        node_id = head.metadata.get("node_id") if head.type == PREVIEW_WITH_METADATA else job.live.node
        if is_result(head.type, head.image_type, self._sender(job, backend, node_id)):
            return Kind.RESULT
        return Kind.PREVIEW if head.type in _PICTURES else Kind.OTHER

    def _sender(self, job: Job, backend: str, node_id: Any) -> Sender:
        """Return the kind of a node. It is unknown if the node is not in the prompt, because another node made it."""
        if not isinstance(node_id, str):
            return Sender.UNKNOWN
        known = job.live.sender
        if known is None or known[0] != node_id:
            class_type = next((name for each, name in job.submission.nodes if each == node_id), None)
            found = sender_of(self._describe(backend, class_type)) if class_type is not None else Sender.UNKNOWN
            known = job.live.sender = (node_id, found)
        return known[1]

    def binary(self, job: Job, kind: Kind, head: bytes, picture: memoryview | bytes) -> Frame:
        """Return the frame of a binary message: its head, and the picture after it."""
        if kind in KEPT and len(picture) >= LARGE:
            bulk = self.spool.take(job.tenant, picture)
            return Frame(kind, head, job.prompt_id, str(kind), binary=True, bulk=bulk)
        return Frame(kind, b"".join((head, picture)), job.prompt_id, str(kind), binary=True)

    def relieve(self, job: Job, frame: Frame) -> Frame:
        """Return a large text frame with its payload in the spool, if the frame must not be dropped."""
        if frame.kind not in KEPT:
            return frame
        bulk = self.spool.take(job.tenant, frame.payload)
        return Frame(frame.kind, b"", frame.prompt_id, frame.slot, frame.binary, bulk=bulk)


def dropped(job: Job, reason: str, size: int) -> None:
    """Log that a result was dropped."""
    _log.warning("result_dropped", **job.log_ids, tenant=job.tenant, bytes=size, reason=reason)


async def may_be_told(job: Job, data: bytes, head: Head) -> bool:
    """Return False if a large binary message holds a partner key, or is no picture and holds a secret name."""
    censor = job.submission.censor() if job.submission.needs_secrets else None
    looks_for_names = head.type not in _PICTURES
    if censor is None and not looks_for_names:
        return True
    for start in range(0, len(data), LOOK - OVERLAP):
        piece = data[start : start + LOOK]
        if (censor is not None and censor.is_in(piece)) or (looks_for_names and holds_secret(piece)):
            return False
        await asyncio.sleep(0)
    return True


def translated_head(job: Job, data: bytes, head: Head) -> bytes:
    """Return a message's head, before the picture, with the client's ids."""
    told = previews.replace(data[: head.end], job.upstream_id.encode(), job.prompt_id.encode())
    return job.without_added(told) if job.live.added and head.type == PREVIEW_WITH_METADATA else told
