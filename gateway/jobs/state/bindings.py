"""Bindings of state that custom nodes keep in their process: which backend has an id of a tenant, and a session.

They are kept in memory alone. A binding whose backend went away since is lost, and stays lost until the id is written
again, because a process that comes back has forgotten it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gateway.jobs.state.named_ids import in_prompt
from gateway.jobs.state.submission import Submission
from gateway.telemetry.tasks import in_turns

MAX_IDS = 1_000
MAX_SESSIONS = 100
# A session is kept on its backend for so long after its last request, in seconds.
SESSION_SECONDS = 1_800.0


@dataclass(frozen=True, slots=True)
class Binding:
    """Backend that keeps an id since `at` (monotonic seconds). If it `pins`, prompts that name the id go there."""

    backend: str
    at: float
    pins: bool


class Bindings:
    """Bindings of all tenants. A tenant has at most `MAX_IDS` ids and `MAX_SESSIONS` sessions, the newest."""

    def __init__(self) -> None:
        self._ids: dict[str, OrderedDict[str, Binding]] = {}
        self._owners: dict[str, set[str]] = {}
        self._sessions: dict[str, OrderedDict[tuple[str, str], tuple[str, float]]] = {}
        self._gone: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._ids.values()))

    def bind(self, tenant: str, ids: Iterable[str], backend: str, now: float, *, pins: bool) -> None:
        """Note that a backend keeps these ids of a tenant."""
        own = self._ids.setdefault(tenant, OrderedDict())
        for each in ids:
            before = own.get(each)
            was_pinned = before is not None and before.backend == backend and before.pins
            own[each] = Binding(backend, now, pins or was_pinned)
            own.move_to_end(each)
            self._owners.setdefault(each, set()).add(tenant)
        while len(own) > MAX_IDS:
            self._disown(tenant, own.popitem(last=False)[0])
        if not own:
            del self._ids[tenant]

    def _disown(self, tenant: str, id_: str) -> None:
        owners = self._owners[id_]
        owners.discard(tenant)
        if not owners:
            del self._owners[id_]

    def of(self, tenant: str, id_: str) -> Binding | None:
        """Return the binding of a tenant's id, also if it is lost."""
        own = self._ids.get(tenant)
        return own.get(id_) if own is not None else None

    def others(self, tenant: str, ids: Iterable[str]) -> set[str]:
        """Return the backends that keep one of these ids for another tenant."""
        return {self._ids[each][id_].backend for id_ in ids for each in self._owners.get(id_, ()) if each != tenant}

    def is_lost(self, backend: str, since: float) -> bool:
        """Return True if a backend went away after a time, so that its process has forgotten what it had then."""
        return self._gone.get(backend, -1.0) >= since

    def lose(self, backend: str, now: float) -> None:
        """Note that a backend went away."""
        self._gone[backend] = now
        for sessions in self._sessions.values():
            for key in [key for key, (name, _) in sessions.items() if name == backend]:
                del sessions[key]

    def session(self, tenant: str, client_id: str, family: str, now: float) -> str | None:
        """Return the backend of a session for a family of paths; None if it has none, or has been silent for long."""
        sessions = self._sessions.get(tenant)
        found = sessions.get((client_id, family)) if sessions is not None else None
        return found[0] if found is not None and now - found[1] < SESSION_SECONDS else None

    def keep_session(self, tenant: str, client_id: str, family: str, backend: str, now: float) -> None:
        """Keep a session on a backend for a family of paths."""
        sessions = self._sessions.setdefault(tenant, OrderedDict())
        sessions[client_id, family] = (backend, now)
        sessions.move_to_end((client_id, family))
        while len(sessions) > MAX_SESSIONS:
            sessions.popitem(last=False)

    def sessions_on(self, backend: str) -> int:
        """Return how many sessions a backend has."""
        return sum(name == backend for sessions in self._sessions.values() for name, _ in sessions.values())

    async def with_bound(self, tenant: str, submission: Submission) -> Submission:
        """Return a submission with the backends whose state it names, each with one of the ids."""
        wanted = {id_: binding for id_, binding in self._ids.get(tenant, {}).items() if binding.pins}
        if not wanted:
            return submission
        named = await in_turns(in_prompt(submission.prompt, wanted))
        bound = {wanted[id_].backend: id_ for id_ in sorted(named, key=lambda each: wanted[each].at, reverse=True)}
        return replace(submission, bound=tuple(sorted(bound.items()))) if bound else submission
