"""Logging ends nothing."""

from __future__ import annotations

import json
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


SURROGATE = """
from gateway.telemetry import logs
logs.configure("info", "json")
logs.get("p").info("something_happened", text=chr(0xD800))
"""


def test_half_a_surrogate_pair_changes_no_form() -> None:
    """A search finds a line by the text of its fields, so nobody may hide one by a name."""
    done = subprocess.run([sys.executable, "-c", SURROGATE], capture_output=True, text=True, check=True)
    assert '"event":"something_happened"' in done.stderr
    assert json.loads(done.stderr)["text"] == "\ud800"


FIELDS = """
import logging, time
from gateway.telemetry import logs
logs.configure("info", "json")
print(time.time())
logs.get("jobs").info("job", request_id="r", backend="b", error=None, model=None, duration_ms=1, status="done",
    prompt_id="p")
logs.get("fleet").warning("backend_changed", backend="b", error="x")
logging.getLogger("aiohttp.server").error("odd %s", "thing")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("asyncio").exception("failed")
logging.getLogger("odd").warning("%d", "no number")
"""


def test_each_line_begins_with_its_time_and_a_jobs_line_with_the_guides_fields() -> None:
    done = subprocess.run([sys.executable, "-c", FIELDS], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    common = ["event", "level", "part"]
    assert [list(line) for line in lines[:2]] == [
        ["ts", "prompt_id", "status", "duration_ms", "model", "error", *common, "request_id", "backend"],
        ["ts", *common, "backend", "error"],
    ]
    assert all(isinstance(line["ts"], float) and 0 <= line["ts"] - float(done.stdout) < 60 for line in lines)
    libraries = [(line["library"], line["level"], line["message"]) for line in lines[2:]]
    assert libraries == [
        ("aiohttp.server", "error", "odd thing"),
        ("asyncio", "error", "failed"),
        ("odd", "warning", "%d"),
    ]
    assert "ZeroDivisionError" in lines[3]["exception"]
