"""Logging ends nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from gateway.telemetry import logs
logs.configure("info", "{style}")
for n in range(2000):
    logs.get("part").error("event", n=n)
print("alive")
"""


def test_a_log_on_a_full_disk_ends_nothing() -> None:
    """Each write to /dev/full fails for want of space."""
    for style in ("json", "console"):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM.format(style=style)], stdout=subprocess.PIPE, stderr=full, text=True
            )
        assert done.stdout == "alive\n"
