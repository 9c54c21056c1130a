"""Events ``gateway_eta`` for sockets that asked for them (``/ws?events=eta``): place and ETA of a session's open jobs.

A client counts an ETA down by itself. So a job is told again if its place or the load changed, or if it will be done
sooner or later than told.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.comfy import events
from gateway.comfy.events import Frame, Kind
from gateway.jobs.events.shown_eta import eta_fields
from gateway.jobs.routing.eta import Shown
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.sessions.statuses import Receiver
from gateway.telemetry.tasks import Tasks

TYPE = "gateway_eta"
ROUND_SECONDS = 2.0
# Jobs of a session that are told of, and estimates of one round. The tenants that are left out are first in the next.
MAX_JOBS, MAX_ESTIMATES = 20, 500
# Estimates in one turn of the event loop.
AT_ONCE = 50
# An end is told again if it moved by so many seconds, and by this part of the time until then.
MIN_MOVED, MIN_PART = 2.0, 0.1


@dataclass(slots=True)
class _Session:
    """Sockets of a session that asked, each with what it was told of each job."""

    receivers: dict[Receiver, dict[str, Shown]]


def is_news(told: Shown | None, shown: Shown) -> bool:
    """Return True if a client has to know what is shown now, given what it was told before."""
    if told is None or (told.place, told.load) != (shown.place, shown.load):
        return True
    if told.eta is None or shown.eta is None:
        return told.eta is not shown.eta
    moved = abs(shown.at + shown.eta.seconds - told.at - told.eta.seconds)
    return moved > max(MIN_MOVED, MIN_PART * shown.eta.seconds)


class EtaEvents:
    """Sender of the events.

    Args:
        shown: returns what the tenant of a job is shown of it.
    """

    def __init__(self, ledger: Ledger, shown: Callable[[Job], Shown]) -> None:
        self._ledger = ledger
        self._shown = shown
        self._tenants: OrderedDict[str, dict[str, _Session]] = OrderedDict()
        self._tasks = Tasks("etas")

    def start(self) -> None:
        """Begin the rounds."""
        self._tasks.repeat(self.tell, "tell", ROUND_SECONDS, at_once=False)

    async def close(self) -> None:
        """Stop the rounds."""
        await self._tasks.close()

    def join(self, tenant: str, session_id: str, receiver: Receiver) -> None:
        """Add an open socket, and tell it of its session's jobs."""
        session = self._tenants.setdefault(tenant, {}).setdefault(session_id, _Session({}))
        told = session.receivers[receiver] = dict[str, Shown]()
        for job in self._jobs(tenant, {session_id: session}):
            shown = told[job.prompt_id] = self._shown(job)
            receiver.send(_frame(job, shown))

    def leave(self, tenant: str, session_id: str, receiver: Receiver) -> None:
        """Remove a closed socket."""
        sessions = self._tenants[tenant]
        del sessions[session_id].receivers[receiver]
        if not sessions[session_id].receivers:
            del sessions[session_id]
            if not sessions:
                del self._tenants[tenant]

    async def tell(self) -> None:
        """Tell each socket what it does not know yet of its jobs."""
        estimates = 0
        for tenant in list(self._tenants):
            if estimates >= MAX_ESTIMATES:
                return
            sessions = self._tenants.get(tenant)
            if sessions is None:
                continue
            self._tenants.move_to_end(tenant)
            told = self._jobs(tenant, sessions)
            for n, job in enumerate(told, 1):
                self._tell(job, sessions.get(job.submission.session_id or ""))
                if n % AT_ONCE == 0:
                    await asyncio.sleep(0)
            estimates += len(told)
            _forget(sessions, {job.prompt_id for job in told})
            await asyncio.sleep(0)

    def _jobs(self, tenant: str, sessions: Mapping[str, _Session]) -> list[Job]:
        """Return the jobs of some sessions, of each the first ones, and at most the estimates of a round."""
        counts, found = Counter[str](), list[Job]()
        for job in self._ledger.jobs(tenant):
            session_id = job.submission.session_id or ""
            if session_id in sessions and not job.live.held and counts[session_id] < MAX_JOBS:
                counts[session_id] += 1
                found.append(job)
                if len(found) == MAX_ESTIMATES:
                    break
        return found

    def _tell(self, job: Job, session: _Session | None) -> None:
        if session is None or self._ledger.find(*job.key) is not job:
            return
        shown, frame = self._shown(job), None
        for receiver, told in tuple(session.receivers.items()):
            if is_news(told.get(job.prompt_id), shown):
                told[job.prompt_id] = shown
                frame = frame or _frame(job, shown)
                receiver.send(frame)


def _frame(job: Job, shown: Shown) -> Frame:
    """Return the event, without a prompt of its own for the sequencer, because it must not wait for that one's turn."""
    payload = events.encode(
        TYPE, {"prompt_id": job.prompt_id, **eta_fields(shown), "timestamp": int(time.time() * 1000)}
    )
    return Frame(Kind.OTHER, payload, None, f"{TYPE}:{job.prompt_id}")


def _forget(sessions: Mapping[str, _Session], is_open: set[str]) -> None:
    """Forget jobs that are told of no more."""
    for session in sessions.values():
        for told in session.receivers.values():
            for prompt_id in [each for each in told if each not in is_open]:
                del told[prompt_id]
