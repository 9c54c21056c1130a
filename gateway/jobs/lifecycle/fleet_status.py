"""The log line of the fleet's state, once a minute, so that alerts need no metrics: `event: fleet_status`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.state.ledger import Ledger
from gateway.settings import LogSettings
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks

_log = logs.get("fleet")


class FleetStatus:
    """Writer of the line, if the settings ask for it.

    Args:
        settings: level of the log, and the seconds between two lines.
    """

    def __init__(self, ledger: Ledger, fleet: Fleet, settings: LogSettings) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._seconds = settings.fleet_status if settings.level in ("debug", "info") else None
        self._tasks = Tasks("fleet status")

    def start(self) -> None:
        """Begin to write lines."""
        if self._seconds is not None:
            self._tasks.repeat(self._write, "write", self._seconds, at_once=False)

    async def close(self) -> None:
        """Stop."""
        await self._tasks.close()

    async def _write(self) -> None:
        backends = list(self._fleet.backends.values())
        loads = [self._ledger.load(backend.name) for backend in backends]
        _log.info("fleet_status", **fleet_status(backends, loads, len(self._ledger.waiting)))


def fleet_status(backends: Iterable[Backend], loads: Iterable[tuple[int, int]], waiting: int) -> Mapping[str, Any]:
    """Return the fields of the line.

    Args:
        loads: of each backend the gateway's own jobs that are queued there, and that run.
        waiting: the number of jobs that wait in the gateway.
    """
    pending, running, up, down, stuck = waiting, 0, 0, 0, 0
    vram: tuple[float, str] | None = None
    ram: tuple[float, str] | None = None
    for backend, (queued, runs) in zip(backends, loads, strict=True):
        if backend.pulse.alive:
            # The queue of a backend that is down is not known.
            queued, runs = queued + backend.foreign_pending, runs + backend.foreign_running
        pending, running = pending + queued, running + runs
        if not backend.able:
            down += 1
            continue
        up, stuck = up + 1, stuck + (queued > 0 and runs == 0)
        if backend.stats is None:
            continue
        cards = [device for device in backend.stats.devices if device.get("type") != "cpu"]
        shares = [_used(device.get("vram_free"), device.get("vram_total")) for device in cards]
        vram = max([vram, *((share, backend.name) for share in shares if share is not None)], key=_share)
        system = backend.stats.system
        share = _used(system.get("ram_free"), system.get("ram_total"))
        ram = max(ram, None if share is None else (share, backend.name), key=_share)
    return {
        "pending": pending,
        "waiting": waiting,
        "running": running,
        "backends_up": up,
        "backends_down": down,
        "backends_stuck": stuck,
        "vram_used": vram and vram[0],
        "vram_backend": vram and vram[1],
        "ram_used": ram and ram[0],
        "ram_backend": ram and ram[1],
    }


def _share(found: tuple[float, str] | None) -> float:
    return -1.0 if found is None else found[0]


def _used(free: Any, total: Any) -> float | None:
    """Return the used share of a memory, 0 to 1; None if it is unknown."""
    if not isinstance(free, int | float) or not isinstance(total, int | float) or total <= 0:
        return None
    return round(min(max(1 - free / total, 0.0), 1.0), 4)
