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
# Of all tenants together. Past that the tenant that was heard of least recently loses its oldest.
MAX_ALL_IDS = 100_000
MAX_ALL_SESSIONS = 10_000
# A session is kept on its backend for so long after its last request, in seconds.
SESSION_SECONDS = 1_800.0


@dataclass(frozen=True, slots=True)
class Binding:
    """Backend that keeps an id since `at` (monotonic seconds). If it `pins`, prompts that name the id go there."""

    backend: str
    at: float
    pins: bool


class Bindings:
    """Bindings of all tenants. A tenant has at most `MAX_IDS` ids and `MAX_SESSIONS` sessions, the newest.

    Args:
        max_ids: ids of all tenants together.
        max_sessions: sessions of all tenants together.
    """

    def __init__(self, max_ids: int = MAX_ALL_IDS, max_sessions: int = MAX_ALL_SESSIONS) -> None:
        self._max_ids = max_ids
        self._max_sessions = max_sessions
        # The tenant that was heard of least recently comes first. No tenant is here without an entry.
        self._ids: OrderedDict[str, OrderedDict[str, Binding]] = OrderedDict()
        self._sessions: OrderedDict[str, OrderedDict[tuple[str, str], tuple[str, float]]] = OrderedDict()
        self._owners: dict[str, set[str]] = {}
        self._gone: dict[str, float] = {}
        self._count = 0
        self._session_count = 0

    def __len__(self) -> int:
        return self._count

    def bind(self, tenant: str, ids: Iterable[str], backend: str, now: float, *, pins: bool) -> None:
        """Note that a backend keeps these ids of a tenant."""
        own = self._ids.setdefault(tenant, OrderedDict())
        self._ids.move_to_end(tenant)
        for each in ids:
            before = own.get(each)
            self._count += before is None
            was_pinned = before is not None and before.backend == backend and before.pins
            own[each] = Binding(backend, now, pins or was_pinned)
            own.move_to_end(each)
            self._owners.setdefault(each, set()).add(tenant)
        while len(own) > MAX_IDS:
            self._drop_oldest(tenant)
        if not own:
            del self._ids[tenant]
        while self._count > self._max_ids:
            self._drop_oldest(next(iter(self._ids)))

    def _drop_oldest(self, tenant: str) -> None:
        own = self._ids[tenant]
        id_, _ = own.popitem(last=False)
        self._count -= 1
        if not own:
            del self._ids[tenant]
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
        for tenant, sessions in list(self._sessions.items()):
            for key in [key for key, (name, _) in sessions.items() if name == backend]:
                del sessions[key]
                self._session_count -= 1
            if not sessions:
                del self._sessions[tenant]

    def session(self, tenant: str, client_id: str, family: str, now: float) -> str | None:
        """Return the backend of a session for a family of paths; None if it has none, or has been silent for long."""
        sessions = self._sessions.get(tenant)
        found = sessions.get((client_id, family)) if sessions is not None else None
        return found[0] if found is not None and now - found[1] < SESSION_SECONDS else None

    def keep_session(self, tenant: str, client_id: str, family: str, backend: str, now: float) -> None:
        """Keep a session on a backend for a family of paths."""
        sessions = self._sessions.setdefault(tenant, OrderedDict())
        self._sessions.move_to_end(tenant)
        self._session_count += (client_id, family) not in sessions
        sessions[client_id, family] = (backend, now)
        sessions.move_to_end((client_id, family))
        while len(sessions) > MAX_SESSIONS or self._session_count > self._max_sessions:
            first = tenant if len(sessions) > MAX_SESSIONS else next(iter(self._sessions))
            self._sessions[first].popitem(last=False)
            self._session_count -= 1
            if not self._sessions[first]:
                del self._sessions[first]

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
