"""Restarts of backends, as their settings say: a supervised loop that runs one restart at a time.

The intent is in the journal before a restart begins, and its outcome after it. So the maximum an hour holds over
restarts of the gateway, and a restart during which the gateway ended is tried once more.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from gateway.comfy import json_codec
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.fleet.restart_actions import Result, restart
from gateway.fleet.restart_policy import Outcome, Patient, Reason, Rules, choose, next_allowed, recent
from gateway.settings import BackendSettings
from gateway.settings.healing import RestartSettings
from gateway.store.backend_records import RestartRecord
from gateway.store.protocol import Store, StoreError
from gateway.telemetry import logs
from gateway.telemetry.audit import NOBODY, Action, Audit
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Failures, Tasks
from gateway.telemetry.times import iso

_log = logs.get("restarts")

LOOK_SECONDS = 0.25
# Maximum wait for the journal to take an intent, in seconds.
# Pause after the journal took no intent, so that the log has no line each look.
POSTPONED_SECONDS = 10.0
WRITTEN_WITHIN_SECONDS = 10.0


class _Watched:
    """A backend with its settings, and the restarts that the journal knows."""

    def __init__(self, settings: BackendSettings, how: RestartSettings) -> None:
        self.name = settings.name
        self.how = how
        self.rules = Rules(how.after, how.backoff, how.max_per_hour)
        auth = settings.auth
        self.secrets = [*how.headers.values(), *((auth.password, auth.bearer) if auth is not None else ())]
        self.attempts: tuple[float, ...] = ()
        self.reason = ""
        # Empty while a restart is under way, or if the gateway ended during it.
        self.outcome = ""
        self.dead_since: float | None = None
        self.is_running = False
        self.is_limited = False

    @property
    def is_unfinished(self) -> bool:
        """Return True if an earlier run of the gateway ended during the last restart."""
        return bool(self.attempts) and not self.outcome and not self.is_running

    def record(self) -> RestartRecord:
        """Return the record for the journal."""
        times = json_codec.dumps([round(each * 1000) for each in self.attempts])
        return RestartRecord(self.name, times, self.reason, self.outcome)

    def patient(self, backend: Backend, now: float) -> Patient:
        """Return the values that the policy decides by. `now` is the monotonic clock."""
        return Patient(
            self.name,
            self.rules,
            poisoned=backend.poisoned is not None,
            drained=backend.drained,
            dead_for=None if self.dead_since is None else now - self.dead_since,
            is_well=backend.able,
            attempts=self.attempts,
            is_unfinished=self.is_unfinished,
        )


class Restarts:
    """Restarts of those backends that have `restart` in their settings. `restore`, then `start`, at the end `close`."""

    def __init__(self, fleet: Fleet, store: Store, metrics: Metrics, audit: Audit) -> None:
        self._fleet = fleet
        self._store = store
        self._metrics = metrics
        self._audit = audit
        self._tasks = Tasks("restarts")
        self._failures = Failures()
        self._watched = {each.name: _Watched(each, each.restart) for each in fleet.configured if each.restart}
        self._is_most_dead = False

    async def restore(self) -> None:
        """Read the restarts of earlier runs."""
        for record in await self._store.restarts():
            watched = self._watched.get(record.backend)
            if watched is not None:
                watched.attempts = tuple(each / 1000 for each in json_codec.loads(record.attempts))
                watched.reason, watched.outcome = record.reason, record.outcome

    def start(self) -> None:
        """Begin to look at the backends, once the fleet has started."""
        if self._watched:
            self._tasks.repeat(self._look, "look", LOOK_SECONDS)

    async def close(self) -> None:
        """Stop. A command that runs is ended; the next start runs it once more, if it is still needed."""
        await self._tasks.close()

    def describe(self, name: str) -> dict[str, Any] | None:
        """Return a backend's restarts for the admin API: never how it is restarted. None if it can't be."""
        watched = self._watched.get(name)
        if watched is None:
            return None
        now = time.time()
        patient = watched.patient(self._fleet.backends[name], time.monotonic())
        last, allowed = recent(watched.attempts, now), next_allowed(patient, now)
        return {
            "last": iso(watched.attempts[-1]) if watched.attempts else None,
            "reason": watched.reason or None,
            "outcome": "running" if watched.is_running else watched.outcome or None,
            "last_hour": len(last),
            "max_per_hour": watched.rules.max_per_hour,
            "next_allowed": iso(allowed) if allowed > now else None,
        }

    async def _look(self) -> None:
        backends, now, wall = self._fleet.backends, time.monotonic(), time.time()
        for watched in self._watched.values():
            # If the clock was set back, let attempts in the future count as now, because else they would never be over.
            watched.attempts = tuple(min(each, wall) for each in watched.attempts)
            if not _is_dead(backends[watched.name]):
                watched.dead_since = None
            elif watched.dead_since is None:
                watched.dead_since = now
        patients = [watched.patient(backends[name], now) for name, watched in self._watched.items()]
        for patient in patients:
            if patient.is_unfinished and patient.is_well:
                self._settle(self._watched[patient.name], Outcome.UNKNOWN)
        dead = sum(_is_dead(backend) for backend in backends.values())
        decision = choose(patients, dead, len(backends), wall)
        self._tell_most_dead(decision.is_most_dead, dead)
        for name, watched in self._watched.items():
            if name in decision.limited and not watched.is_limited:
                self._note_limited(watched)
            watched.is_limited = name in decision.limited
        if decision.name is not None:
            await self._restart(self._watched[decision.name], decision.reason)

    def _tell_most_dead(self, is_most_dead: bool, dead: int) -> None:
        if is_most_dead and not self._is_most_dead and len(self._fleet.backends) > 1:
            hint = "the network may be at fault; backends are restarted one after the other, each once the last is back"
            _log.error("fleet_mostly_dead", dead=dead, backends=len(self._fleet.backends), hint=hint)
        self._is_most_dead = is_most_dead

    def _note_limited(self, watched: _Watched) -> None:
        maximum = watched.rules.max_per_hour
        self._metrics.backend_restarts.labels(watched.name, Outcome.LIMITED).inc()
        _log.error("backend_restart_limited", backend=watched.name, max_per_hour=maximum)

    async def _restart(self, watched: _Watched, reason: Reason) -> None:
        before = watched.attempts, watched.reason, watched.outcome
        watched.attempts = (*recent(watched.attempts, time.time()), time.time())
        watched.reason, watched.outcome, watched.is_running = str(reason), "", True
        about = {"backend": watched.name, "reason": str(reason)}
        try:
            try:
                async with asyncio.timeout(WRITTEN_WITHIN_SECONDS):
                    await self._store.try_write([watched.record()])
            except (StoreError, TimeoutError) as error:
                # Without the intent in the journal, a gateway that crashes again and again would pass the maximum.
                watched.attempts, watched.reason, watched.outcome = before
                _log.warning("backend_restart_postponed", **about, error=str(error) or "the journal takes too long")
                await asyncio.sleep(POSTPONED_SECONDS)
                return
            _log.warning("backend_restart_begun", **about, attempt=len(watched.attempts))
            result = await self._act(watched, reason)
        finally:
            watched.is_running = False
        if watched.dead_since is not None:
            # From now on it may be starting.
            watched.dead_since = time.monotonic()
        self._settle(watched, result.outcome)
        log = _log.info if result.outcome is Outcome.STARTED else _log.error
        output = {"output": result.output} if result.output else {}
        log("backend_restart_ended", **about, outcome=str(result.outcome), detail=result.detail, **output)

    async def _act(self, watched: _Watched, reason: Reason) -> Result:
        try:
            return await restart(watched.how, watched.name, reason, watched.secrets)
        except Exception as error:  # noqa: BLE001
            # If this breaks the gateway's own code, count it as failed, because else it would be tried without a pause.
            self._failures.report("restarts", error, f"restarts:{watched.name}")
            return Result(Outcome.FAILED, f"the gateway failed over it: {type(error).__name__}")

    def _settle(self, watched: _Watched, outcome: Outcome) -> None:
        watched.outcome = str(outcome)
        self._store.write([watched.record()])
        self._metrics.backend_restarts.labels(watched.name, str(outcome)).inc()
        self._audit.note(Action.BACKEND_RESTARTED, NOBODY, None, watched.name, str(outcome), reason=watched.reason)


def _is_dead(backend: Backend) -> bool:
    return backend.health in (Health.GONE, Health.LOST)
