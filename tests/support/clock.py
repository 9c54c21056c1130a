"""A wall clock that jumps, for the processes that are started with it: Debian's libfaketime.

The monotonic clock goes on as it is, as it does on a machine whose time is set.
"""

from __future__ import annotations

import time
from pathlib import Path

_UNITS = {"s": 1, "h": 3600, "d": 86400}


class Clock:
    """A machine's wall clock. `file` is where libfaketime reads how far it is off."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._steps = [(0.0, 0.0)]
        self.step("+0s")

    @property
    def environment(self) -> dict[str, str]:
        """What a process is started with, so that it goes by this clock.

        Raises:
            FileNotFoundError: libfaketime is not installed.
        """
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
        if library is None:
            raise FileNotFoundError("libfaketime is missing; `make .venv/.clock` installs it")
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Or it replaces glibc's waits with a deadline by waits in turns, and Python's threads starve.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            # Or a file's age would be that by the clock of whoever asks.
            "NO_FAKE_STAT": "1",
        }

    def step(self, by: str) -> None:
        """From now on it is so far off the true time: ``+40d``, ``-2s``, ``+0s``."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(by)
        fresh.replace(self._file)
        self._steps.append((time.time(), int(by[:-1]) * _UNITS[by[-1]]))

    def true_times(self, told: float) -> list[float]:
        """When it may have been `told` o'clock by it (both in seconds since 1970)."""
        ends = [*(since for since, _ in self._steps[1:]), float("inf")]
        return [
            told - off for (since, off), until in zip(self._steps, ends, strict=True) if since <= told - off <= until
        ]

    @staticmethod
    def tidy(pid: int) -> None:
        """Remove the names of what libfaketime shares with the children of a process; it would leave them if killed."""
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            Path("/dev/shm", name).unlink(missing_ok=True)
