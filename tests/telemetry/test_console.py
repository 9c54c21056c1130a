"""Log lines for people."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from gateway.telemetry.console import ConsoleRenderer, shows_colors

PROGRAM = """
from gateway.telemetry import logs
logs.configure("info", "console")
logs.get("part").warning("something_happened", reason="no room")
"""
JOB = {
    "event": "job",
    "level": "info",
    "part": "jobs",
    "prompt_id": "8fe1",
    "model": "sd.safetensors",
    "error": None,
    "tenant": "anna",
    "request_id": "r1",
    "upstream_id": "u1",
    "outcome": None,
    "attempt": 1,
}
RUNNING = {"status": "running", "duration_ms": 312, "wait_ms": 312, "backend": "gpu0"}
DONE = {"status": "done", "duration_ms": 8149, "wait_ms": 312, "backend": "gpu0"}
FAILED = {"status": "failed", "duration_ms": 1000, "wait_ms": None, "backend": None, "error": "E: a\nb", "attempt": 2}


def text(line: dict[str, object], *, has_colors: bool = False) -> str:
    """The text without its time."""
    return re.sub(r"^\S+ \S+ ", "", ConsoleRenderer(has_colors=has_colors)(None, "info", line))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (RUNNING, "info    job running            8fe1 on gpu0, waited 0.3 s model=sd.safetensors tenant=anna"),
        (DONE, "info    job done               8fe1 on gpu0, ran 8.1 s, waited 0.3 s model=sd.safetensors tenant=anna"),
        (
            FAILED,
            "info    job failed             8fe1, took 1.0 s model=sd.safetensors error='E: a\\nb' "
            "tenant=anna attempt=2",
        ),
    ],
)
def test_a_jobs_line_is_a_sentence(fields: dict[str, object], expected: str) -> None:
    assert text({**JOB, **fields}) == expected


def test_texts_of_others_command_no_terminal() -> None:
    shown = text(
        {**JOB, **DONE, "prompt_id": "\x1b[2J", "tenant": "\x9b31m", "error": "a\r\u202eb", "exception": "\x07"}
    )
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown), shown


def test_an_errors_text_forges_no_line() -> None:
    line = {"event": "task_failed", "level": "error", "exception": "ValueError: a\n2026-01-01 00:00:00 error   forged"}
    assert text(line).split("\n")[1:] == ["    ValueError: a", "    2026-01-01 00:00:00 error   forged"]


def test_lines_are_coloured_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "NO_COLOR": "", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        shown = terminal.read(65536).decode()
    assert re.match(r"\x1b\[2m\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\x1b\[0m \x1b\[33mwarning", shown), shown


def test_lines_are_plain_elsewhere_and_if_that_is_wanted() -> None:
    line = {"event": "something_happened", "level": "warning", "part": "p", "reason": "no room"}
    assert text(line) == "warning something_happened     reason='no room'"
    assert shows_colors(True, {})
    assert not shows_colors(False, {})
    assert not shows_colors(True, {"NO_COLOR": "1"})
    assert not shows_colors(True, {"TERM": "dumb"})
