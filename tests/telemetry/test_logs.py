"""Logging ends nothing."""

from __future__ import annotations

import re
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
LOCALS = """
from gateway.telemetry import logs
logs.configure("info", "{style}")
def fail():
    secret = "can" + "ary"
    raise ValueError("failed")
try:
    fail()
except ValueError as error:
    logs.get("part").error("task_failed", exc_info=error)
"""


def test_a_traceback_shows_no_local_variables() -> None:
    """Some of them are keys; and structlog shows all where rich is installed, as it is for the tests."""
    for style in ("json", "console"):
        program = LOCALS.format(style=style)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert "ValueError: failed" in done.stderr
        assert "canary" not in done.stderr


def test_a_log_on_a_full_disk_ends_nothing() -> None:
    """Each write to /dev/full fails for want of space."""
    for style in ("json", "console"):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM.format(style=style)], stdout=subprocess.PIPE, stderr=full, text=True
            )
        assert done.stdout == "alive\n"


def test_lines_for_people_have_a_date() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOCALS.format(style="console")], capture_output=True, text=True, check=True
    )
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", done.stderr), done.stderr
