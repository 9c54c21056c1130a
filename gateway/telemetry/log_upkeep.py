"""Upkeep of the log's output: rotated files are opened anew, waiting lines are written, lost lines are told."""

from __future__ import annotations

from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks

SECONDS = 1.0
# If lines wait for a slow reader, look more often.
BUSY_SECONDS = 0.05

_log = logs.get("log")


class LogUpkeep:
    """Upkeep of the output that `logs.configure` chose."""

    def __init__(self) -> None:
        self._tasks = Tasks("log")
        self._is_failing = False

    def start(self) -> None:
        """Begin to look after the output."""
        self._tasks.repeat(self._look, "upkeep", _rest, at_once=False)

    async def close(self) -> None:
        """Stop looking after the output."""
        await self._tasks.close()

    def reopen(self) -> None:
        """Open the log file anew. If that fails, log the reason once, and write to the former file."""
        if logs.output is None:
            return
        try:
            logs.output.reopen()
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                self._is_failing = True
                _log.error("log_file_unopened", error=str(error), hint="lines go to the former file")

    async def _look(self) -> None:
        if logs.output is None:
            return
        logs.output.write_waiting()
        if logs.output.is_rotated():
            self.reopen()
        logs.output.tell_lost(_tell_lost)


def _tell_lost(lines: int) -> None:
    _log.warning("log_lines_lost", lines=lines, hint="a full disk, or a reader that is too slow")


def _rest() -> float:
    return BUSY_SECONDS if logs.output is not None and logs.output.has_waiting else SECONDS
