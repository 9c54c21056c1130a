"""The output of log lines: no line is torn, none waits for a reader, and a rotated file gets none of the new ones."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway.telemetry.log_output import MAX_BACKLOG, LogOutput, open_file

# Lines of a disk that is full in the middle of one, and free again.
FULL = """
import resource, sys
from gateway.telemetry.log_output import LogOutput, open_file
output = LogOutput(open_file(sys.argv[1]))
def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
limit(150)
for n in range(5):
    output.write(f"line {n} {'x' * 52}\\n".encode())
output.tell_lost(lambda lost: output.write(b"told on a full disk"))
limit(resource.RLIM_INFINITY)
output.write(b"line 5\\n")
output.tell_lost(print)
output.tell_lost(print)
"""


def lost_lines(output: LogOutput) -> int:
    """The number of lines that it tells as lost."""
    told: list[int] = []
    output.tell_lost(told.append)
    return sum(told)


def file_output(path: Path) -> LogOutput:
    return LogOutput(open_file(path), path)


def test_a_reader_that_does_not_read_holds_nothing_up() -> None:
    read, write = os.pipe()
    output, count = LogOutput(write), 20_000
    for n in range(count):
        output.write(f"line {n} {'x' * 100}\n".encode())
    assert output.has_waiting
    assert lost_lines(output) == 0
    heard = bytearray()

    def hear() -> None:
        while data := os.read(read, 65536):
            heard.extend(data)

    reader = threading.Thread(target=hear)
    reader.start()
    output.finish(10)
    lost = lost_lines(output)
    os.close(write)
    reader.join()
    os.close(read)
    lines = heard.decode().splitlines()
    assert lines == [f"line {n} {'x' * 100}" for n in range(len(lines))]
    assert len(lines) + lost == count
    assert lost
    assert MAX_BACKLOG < len(heard) + 110 < MAX_BACKLOG + 70_000


def test_a_reader_that_is_gone_ends_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    output = LogOutput(write)
    output.write(b"line\n")
    assert not output.has_waiting
    assert lost_lines(output) == 1
    os.close(write)


def test_a_line_longer_than_a_pipe_takes_at_once_stays_whole() -> None:
    read, write = os.pipe()
    output, line = LogOutput(write), b"x" * 200_000 + b"\n"
    output.write(line)
    heard = b""
    while len(heard) < len(line):
        heard += os.read(read, 65536)
        output.write_waiting()
    assert heard == line
    os.close(read)
    os.close(write)


def test_a_full_disk_loses_lines_and_joins_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", FULL, str(log)], capture_output=True, text=True, check=True)
    whole = [f"line {n} {'x' * 52}" for n in range(5)]
    assert log.read_text().splitlines() == [*whole[:2], whole[2][:30], "line 5"]
    assert done.stdout == "3\n"


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    file_output(tmp_path / "log").write(b"line\n")
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


@pytest.mark.parametrize("is_made_anew", [True, False])
def test_a_rotated_file_is_noticed_and_opened_anew(tmp_path: Path, is_made_anew: bool) -> None:
    log, old = tmp_path / "log", tmp_path / "log.1"
    output = file_output(log)
    assert not output.is_rotated()
    output.write(b"first\n")
    log.rename(old)
    if is_made_anew:
        log.touch()
    assert output.is_rotated()
    output.write(b"second\n")
    output.reopen()
    output.write(b"third\n")
    assert not output.is_rotated()
    assert (old.read_text(), log.read_text()) == ("first\nsecond\n", "third\n")


def test_a_file_that_can_not_be_opened_anew_stays_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    output = file_output(folder / "log")
    folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        output.reopen()
    output.write(b"line\n")
    assert (tmp_path / "moved" / "log").read_text() == "line\n"
