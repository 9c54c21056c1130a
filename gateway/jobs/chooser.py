"""Gathers what `routing` decides on: the backends that may take a job, and how busy each is."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.jobs.admission import Submission
from gateway.jobs.inputs import Inputs
from gateway.jobs.job import Job
from gateway.jobs.ledger import Ledger
from gateway.jobs.routing import Candidate, shortest_queue

MAX_REMEMBERED_SESSIONS = 10_000


class Chooser:
    """Chooses a backend for a job, and remembers who went where."""

    def __init__(self, ledger: Ledger, fleet: Fleet, inputs: Inputs) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._inputs = inputs
        self._last_backend: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._uses = 0

    def find(
        self,
        tenant: str,
        submission: Submission,
        able: frozenset[str] | None,
        pinned: frozenset[str] | None = None,
        tried: Collection[str] = (),
        avoid: frozenset[str] = frozenset(),
    ) -> Backend | None:
        """The backend for a prompt; None if each that may take it is full.

        Args:
            able: those that can run it; None for all.
            pinned: those it is tied to; None if to none.
            tried: those that did not take it.
            avoid: those that get it only if no other may, be it later.
        """
        session_id = submission.session_id
        last = self._last_backend.get((tenant, session_id)) if session_id else None
        holders = self._inputs.holders(tenant, submission.files) if submission.files else frozenset()
        possible = [
            candidate
            for candidate in self._candidates(last, submission.models, holders)
            if candidate.name not in tried
            and (able is None or candidate.name in able)
            and (pinned is None or candidate.name in pinned)
        ]
        names = {candidate.name for candidate in possible}
        names -= self._fleet.ejections.out(names, time.monotonic())
        names = names - avoid or names
        choice = shortest_queue(candidate for candidate in possible if candidate.name in names)
        return self._fleet.backends[choice.name] if choice else None

    def has_room(self) -> bool:
        """Whether any backend could take a job."""
        return any(candidate.free > 0 for candidate in self._candidates())

    def used(self, job: Job, backend: Backend) -> None:
        """A job goes to a backend."""
        self._uses += 1
        backend.used_at = self._uses
        backend.models = job.submission.models or backend.models
        if (session_id := job.submission.session_id) is not None:
            self._last_backend[job.tenant, session_id] = backend.name
            self._last_backend.move_to_end((job.tenant, session_id))
            while len(self._last_backend) > MAX_REMEMBERED_SESSIONS:
                self._last_backend.popitem(last=False)

    def _candidates(
        self,
        last: str | None = None,
        models: frozenset[str] = frozenset(),
        holders: frozenset[str] = frozenset(),
    ) -> list[Candidate]:
        found = []
        for backend in self._fleet.backends.values():
            if not backend.eligible:
                continue
            queued, running = self._ledger.load(backend.name)
            warmth = (
                2 * (backend.name == last) + (bool(models) and models <= backend.models) + (backend.name in holders)
            )
            found.append(
                Candidate(
                    backend.name,
                    backend.foreign_pending + queued,
                    backend.foreign_running + running,
                    backend.max_queue - queued - running,
                    backend.health is Health.SLOW,
                    warmth,
                    backend.used_at,
                )
            )
        return found
