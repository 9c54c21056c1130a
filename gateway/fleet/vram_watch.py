"""Watch over the backends' VRAM: take the readings of the probes to the guard (`vram_guard.py`), and act as it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from gateway.comfy.client import BackendError
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.vram_guard import Action, Guard, Reading, Rules, decide, may_act, used_share
from gateway.settings import ProbeSettings
from gateway.settings.healing import VramGuardSettings
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks

_log = logs.get("vram")

MAX_LOOK_SECONDS = 0.5
# An idle ComfyUI frees its memory within 0.3 seconds.
FREE_SECONDS = 0.5


class VramWatch:
    """Watch over the VRAM of all backends, if `vram_guard.enabled`.

    Args:
        is_idle: returns True if a backend has nothing to run.
        is_needed: returns True if a job waits that no other eligible backend can run.
        available: called when a backend may take work again.
        freed: called with the name of a backend that has freed its memory.
    """

    def __init__(
        self,
        fleet: Fleet,
        settings: VramGuardSettings,
        probe: ProbeSettings,
        metrics: Metrics,
        is_idle: Callable[[Backend], bool],
        is_needed: Callable[[Backend], bool],
        available: Callable[[], None],
        freed: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._enabled = settings.enabled
        self._rules = Rules(settings.above, settings.after, settings.free_every, 2 * probe.interval + FREE_SECONDS)
        self._pause = min(probe.interval, MAX_LOOK_SECONDS)
        self._metrics = metrics
        self._is_idle = is_idle
        self._is_needed = is_needed
        self._available = available
        self._freed = freed
        self._guards: dict[str, Guard] = {}
        self._tasks = Tasks("vram")

    def start(self) -> None:
        """Begin to watch, once the fleet has started."""
        if self._enabled:
            for backend in self._fleet.backends.values():
                self._metrics.backend_guarded.labels(backend.name).set_function(partial(_is_guarded, backend))
            self._tasks.repeat(self._look, "look", self._pause)

    async def close(self) -> None:
        """Stop watching."""
        await self._tasks.close()

    async def _look(self) -> None:
        for backend in self._fleet.backends.values():
            # Skip a backend that can run nothing, because its last reading may be old, and a drained one, because it is
            # in its operator's hands.
            if backend.able and not backend.drained and backend.stats is not None:
                self._look_at(backend, used_share(backend.stats.devices), time.monotonic())

    def _look_at(self, backend: Backend, used: float | None, now: float) -> None:
        guard = self._guards.get(backend.name, Guard())
        is_above = used is not None and used >= self._rules.above
        # Ask only if that decides something, because the answer takes a look at all waiting jobs.
        is_needed = is_above and may_act(guard, now, self._rules) and self._is_needed(backend)
        reading = Reading(used, self._is_idle(backend), is_needed)
        self._guards[backend.name], action = decide(guard, reading, now, self._rules)
        about = {"backend": backend.name, "used": round(used or 0.0, 3)}
        match action:
            case Action.GUARD:
                backend.guarded = True
                _log.warning("backend_vram_guarded", **about, above=self._rules.above)
            case Action.RELEASE:
                backend.guarded = False
                _log.info("backend_vram_released", **about, is_needed=reading.is_needed)
                self._available()
            case Action.FREE:
                # In a task of its own, because a backend that hangs must not keep the guard from the others.
                self._tasks.start(self._free(backend), f"free:{backend.name}")
            case Action.TELL:
                _log.error("backend_vram_still_full", **about)
            case Action.NONE:
                pass

    async def _free(self, backend: Backend) -> None:
        try:
            await backend.client.free()
        except BackendError as error:
            _log.warning("memory_not_freed", backend=backend.name, error=str(error))
            return
        self._freed(backend.name)
        self._metrics.vram_frees.labels(backend.name).inc()
        _log.info("backend_vram_freed", backend=backend.name)


def _is_guarded(backend: Backend) -> int:
    return int(backend.guarded)
