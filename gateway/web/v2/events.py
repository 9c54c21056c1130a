"""Events of a job in the order of the Comfy API v2: what changed since the stream was told last. Pure.

A stream is told snapshots, not a log: the newest progress and the newest preview, each output once, and the terminal
status last. So a slow reader misses steps, and holds nothing in memory.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import islice
from typing import Any
from weakref import ref

from gateway.comfy import json_codec
from gateway.jobs.state.job import LastPreview
from gateway.web.v2.model import RUNNING, JobView, Links, SizedOutput, output_object

# Bytes of one frame; some clients end a stream at 2 MiB.
MAX_FRAME = 2 * 1024**2 - 1
# Outputs that are told at a time, because a slow reader's stream holds these in memory.
OUTPUTS_AT_ONCE = 200
# Bytes of a preview's event beside its picture, at most: a node's id and a type.
MAX_NAMED = 1024
KEEP_ALIVE = b": keep-alive\n\n"


def frame(name: str, data: Any) -> bytes:
    """Return an event as it goes over the wire."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), json_codec.dumps(data))


class Told:
    """State of a stream: what its reader knows of a job.

    `has_more` is True while the last view had more outputs than were told at a time. The end is told after all of them.
    """

    def __init__(self) -> None:
        self._status: tuple[str, int | None] | None = None
        self._progress: Any = None
        # Weak, because the picture of a slow reader's stream may be one that nobody else has any more.
        self._preview: ref[LastPreview] | None = None
        # Ids of outputs that were told while the job ran. Those of an ended job have an order, so a count is enough.
        self._outputs: set[str] = set()
        self._count = 0
        self.has_more = False

    def news(self, view: JobView, preview: LastPreview | None, links: Links, now: float) -> Iterator[bytes]:
        """Yield the frames that tell the reader of a job's view. The terminal status is the last of all.

        Args:
            preview: the last picture that the job showed; None if there was none.
            now: seconds since 1970.
        """
        status = view.status, view.position
        if not view.is_over and status != self._status:
            self._status = status
            yield frame("status", _status(view))
        if view.progress is not None and view.progress != self._progress:
            self._progress = view.progress
            yield frame("progress", view.progress)
        known = self._preview() if self._preview is not None else None
        if preview is not None and preview is not known and view.status == RUNNING:
            self._preview = ref(preview)
            # Encoded once for all streams of the job.
            preview.encoded = preview.encoded or frame("preview", _preview(preview))
            if len(preview.encoded) <= MAX_FRAME:
                yield preview.encoded
        for each in self._new(view):
            yield frame("output", output_object(each, view.id, links, now))
        if view.is_over and not self.has_more:
            yield frame("status", _status(view))

    def _new(self, view: JobView) -> list[SizedOutput]:
        """Return the next outputs to tell, and note them as told."""
        start = self._count if view.is_over else 0
        untold = (
            place for place in range(start, len(view.outputs)) if view.outputs[place].output.id not in self._outputs
        )
        places = list(islice(untold, OUTPUTS_AT_ONCE + 1))
        self.has_more = len(places) > OUTPUTS_AT_ONCE
        new = [view.outputs[place] for place in places[:OUTPUTS_AT_ONCE]]
        if view.is_over:
            self._count = places[-1] if self.has_more else len(view.outputs)
        else:
            self._outputs.update(each.output.id for each in new)
        return new


def encoded_size(preview: LastPreview) -> int:
    """Return the number of bytes of a preview's event, at most."""
    return len(preview.encoded) or (len(preview.frame) - preview.start + 2) // 3 * 4 + MAX_NAMED


def _status(view: JobView) -> dict[str, Any]:
    more = {} if view.position is None else {"queue_position": view.position}
    return {"status": view.status, **more}


def _preview(preview: LastPreview) -> dict[str, Any]:
    picture = memoryview(preview.frame)[preview.start :]
    return {
        "node_id": preview.node_id,
        "content_type": preview.content_type,
        "data_base64": base64.b64encode(picture).decode(),
    }
