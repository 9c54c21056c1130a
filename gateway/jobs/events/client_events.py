"""Events for a job's session, in the order that a single ComfyUI would give.

Nothing is told of a job before the answer to its POST /prompt is written: clients listen for an id once they know it.
What a backend says of its next job waits until the end of the one before is told, which waits for the history entry.
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

# Frames that wait for an answer or an end are few; of more than so many, only the newest progress and preview is kept.
MAX_WHOLE = 256
# Bytes in memory that may so wait of one job, beside what has a place on disk.
MAX_HELD_BYTES = 64 * 2**20
# Bytes that a frame takes beside its text.
FRAME_BYTES = 512
# Between an answer and the first event of its prompt.
HEAD_START_SECONDS = 0.02


@dataclass(slots=True)
class _Held:
    """Why a job's frames wait, and what waits."""

    unanswered: bool = False
    after: set[Job] = field(default_factory=set)
    backlog: Backlog = field(default_factory=lambda: Backlog(MAX_WHOLE))

    def has_room(self, frame: Frame) -> bool:
        """Return True if a frame may wait, too. What ends its prompt always may."""
        is_end = frame.kind is Kind.END or frame.slot == events.TERMINAL_SLOT
        return is_end or self.backlog.bytes + FRAME_BYTES * len(self.backlog.frames) + frame.held <= MAX_HELD_BYTES


class ClientEvents:
    """Publishes frames for jobs' sessions.

    Args:
        began: called with a job once its client may know that it runs.
    """

    def __init__(self, bus: Bus, began: Callable[[Job], None]) -> None:
        self._bus = bus
        self._began = began
        self._held: dict[Job, _Held] = {}
        self._followers: dict[Job, list[Job]] = {}

    def tell(self, job: Job, frame: Frame) -> None:
        """Tell a job's session, if it has one, when its turn comes."""
        if job.submission.session_id is None:
            return
        held = self._held.get(job) if self._held else None
        if held is not None and frame.if_told and job.live.turn is None:
            held.backlog = Backlog(MAX_WHOLE)
        elif held is not None:
            if held.has_room(frame):
                held.backlog.add(frame)
            elif frame.bulk is not None:
                dropped(job, "too much waits for the end of the job before it", frame.size)
        else:
            self._publish(job, frame)

    def start(self, job: Job, timestamp: int) -> None:
        """Tell that it started, unless that was told: the backend's own word of it went by unheard."""
        if not job.live.start_told:
            job.live.start_told = True
            data = {"prompt_id": job.prompt_id, "timestamp": timestamp}
            payload = events.encode("execution_start", data)
            self.tell(job, Frame(Kind.LIFECYCLE, payload, job.prompt_id, events.START_SLOT))

    def _publish(self, job: Job, frame: Frame) -> None:
        self._bus.publish(session_topic(job.tenant, job.submission.session_id or ""), frame)

    def hold_until_answered(self, job: Job) -> None:
        """Its client does not know of it yet. `answered` ends that."""
        if job.submission.session_id is not None:
            self._hold(job).unanswered = True

    def answered_soon(self, job: Job) -> None:
        """The answer is on its way: `answered` in a moment."""
        asyncio.get_running_loop().call_later(HEAD_START_SECONDS, self.answered, job)

    def answered(self, job: Job) -> None:
        """The answer to its POST /prompt is written, or never will be."""
        held = self._held.get(job)
        if held is not None:
            held.unanswered = False
            self._release(job, held)

    def follow(self, job: Job, before: Job) -> None:
        """The job began where another one has come to its end, which is still to be told. `over` ends that."""
        self._hold(job).after.add(before)
        self._followers.setdefault(before, []).append(job)

    def begin(self, job: Job) -> None:
        """Note that a job runs. Its client knows once nothing holds its frames."""
        if not job.live.held:
            self._began(job)

    def _hold(self, job: Job) -> _Held:
        job.live.held = True
        return self._held.setdefault(job, _Held())

    def over(self, job: Job) -> None:
        """All is told of a job's run that there is to tell."""
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
