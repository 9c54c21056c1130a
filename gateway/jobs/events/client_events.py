"""Events for a job's session, in the order that a single ComfyUI would give.

A job's events wait until the response to its POST /prompt is written, because clients listen for an id once they know
it. Events of a backend's next job wait until the end of the job before is told, which waits for the history entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.bus import Bus, session_topic
from gateway.comfy import events
from gateway.comfy.backlog import Backlog
from gateway.comfy.events import Frame, Kind
from gateway.jobs.events.results import dropped
from gateway.jobs.state.job import Job

# Past this many waiting frames of a job, only the newest progress and preview is kept. Usually few frames wait.
MAX_WHOLE = 256
# Maximum bytes of a job's waiting frames in memory. Frames on disk don't count.
MAX_HELD_BYTES = 64 * 2**20
# Bytes of memory that a frame takes beside its payload.
FRAME_BYTES = 512
# Pause between a response and the first event of its prompt.
HEAD_START_SECONDS = 0.02


@dataclass(slots=True)
class _Held:
    """Waiting frames of a job, with the reasons why they wait."""

    unanswered: bool = False
    after: set[Job] = field(default_factory=set)
    backlog: Backlog = field(default_factory=lambda: Backlog(MAX_WHOLE))

    def has_room(self, frame: Frame) -> bool:
        """Return True if there is room for one more frame. A frame that ends its prompt always has room."""
        is_end = frame.kind is Kind.END or frame.slot == events.TERMINAL_SLOT
        return is_end or self.backlog.bytes + FRAME_BYTES * len(self.backlog.frames) + frame.held <= MAX_HELD_BYTES


class ClientEvents:
    """Publisher of frames for jobs' sessions.

    Args:
        began: called with a job once its client may know that it runs.
    """

    def __init__(self, bus: Bus, began: Callable[[Job], None]) -> None:
        self._bus = bus
        self._began = began
        self._held: dict[Job, _Held] = {}
        self._followers: dict[Job, list[Job]] = {}

    def tell(self, job: Job, frame: Frame) -> None:
        """Publish a frame for a job's session, if it has one, or hold the frame until its turn comes."""
        if job.submission.session_id is None:
            return
        held = self._held.get(job) if self._held else None
        if held is not None and frame.if_told and job.live.turn is None:
            held.backlog = Backlog(MAX_WHOLE)
        elif held is not None:
            frame.heard_at = 0.0
            if held.has_room(frame):
                held.backlog.add(frame)
            elif frame.bulk is not None:
                dropped(job, "too much waits for the end of the job before it", frame.size)
        else:
            self._publish(job, frame)

    def start(self, job: Job, timestamp: int) -> None:
        """Publish ``execution_start``, unless that was done. The backend's own event may have been missed."""
        if not job.live.start_told:
            job.live.start_told = True
            data = {"prompt_id": job.prompt_id, "timestamp": timestamp}
            payload = events.encode("execution_start", data)
            self.tell(job, Frame(Kind.LIFECYCLE, payload, job.prompt_id, events.START_SLOT))

    def _publish(self, job: Job, frame: Frame) -> None:
        self._bus.publish(session_topic(job.tenant, job.submission.session_id or ""), frame)

    def hold_until_answered(self, job: Job) -> None:
        """Hold a job's frames until `answered`, because its client does not know its id yet."""
        if job.submission.session_id is not None:
            self._hold(job).unanswered = True

    def answered_soon(self, job: Job) -> None:
        """Call `answered` after a short pause, because the response is on its way."""
        asyncio.get_running_loop().call_later(HEAD_START_SECONDS, self.answered, job)

    def answered(self, job: Job) -> None:
        """Release a job's frames as far as they wait for the response to its POST /prompt."""
        held = self._held.get(job)
        if held is not None:
            held.unanswered = False
            self._release(job, held)

    def follow(self, job: Job, before: Job) -> None:
        """Hold a job's frames until `over` for the job before it on its backend, whose end is not told yet."""
        self._hold(job).after.add(before)
        self._followers.setdefault(before, []).append(job)

    def begin(self, job: Job) -> None:
        """Report that a job runs, unless its frames are held, so that its client can't know yet."""
        if not job.live.held:
            self._began(job)

    def _hold(self, job: Job) -> _Held:
        job.live.held = True
        return self._held.setdefault(job, _Held())

    def release_followers(self, job: Job) -> None:
        """Release the jobs that wait for the end of this one, because all its events are published."""
        for follower in self._followers.pop(job, ()):
            held = self._held.get(follower)
            if held is not None:
                held.after.discard(job)
                self._release(follower, held)

    def _release(self, job: Job, held: _Held) -> None:
        if held.unanswered or held.after:
            return
        del self._held[job]
        job.live.held = False
        if job.live.start_told or job.start_time is not None:
            self._began(job)
        for frame in held.backlog.frames:
            self._publish(job, frame)
