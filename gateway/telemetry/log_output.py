"""Destination of log lines: a standard stream or a file. No line holds up the event loop for a slow reader."""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

STDERR, STDOUT = "stderr", "stdout"
# Maximum bytes that wait for a slow reader; further lines are lost, and counted.
MAX_BACKLOG = 1024**2
# Bytes that a pipe takes at once if it can be written to at all.
_PIECE = getattr(select, "PIPE_BUF", 512)
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def open_file(path: Path) -> int:
    """Open a log file to append to it, with mode 0600 if it is new. Return its descriptor.

    Raises:
        OSError: the file can't be opened.
    """
    return os.open(path, _FLAGS, 0o600)


class LogOutput:
    """Output of log lines. Each line is written whole and at once, or waits, or is lost and counted.

    If a pipe, a socket or a terminal takes no more, up to `MAX_BACKLOG` bytes wait. If a disk is full, lines are lost.

    Args:
        descriptor: an open descriptor.
        path: the path of the file, if it is one that may be rotated.
    """

    def __init__(self, descriptor: int, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._lost = 0
        self._use(descriptor)

    def _use(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_torn = False
        self._poll: select.poll | None = None
        if _may_block(descriptor):
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLOUT)

    @property
    def has_waiting(self) -> bool:
        """Return True if lines wait for a reader."""
        return bool(self._waiting)

    def isatty(self) -> bool:
        """Return True if the output is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: bytes) -> None:
        """Write a line, or let it wait."""
        with self._lock:
            if self._waiting:
                self.write_waiting()
            rest = data if self._waiting else self._write(data)
            is_begun = len(rest) < len(data)
            if rest and not is_begun and self._waiting_bytes + len(rest) > MAX_BACKLOG:
                self._lost += 1
            elif rest:
                self._waiting.append(rest)
                self._waiting_bytes += len(rest)

    def write_waiting(self) -> None:
        """Write lines that wait, as many as the reader takes."""
        with self._lock:
            while self._waiting:
                data = self._waiting.popleft()
                rest = self._write(data)
                self._waiting_bytes += len(rest) - len(data)
                if rest:
                    self._waiting.appendleft(rest)
                    return

    def finish(self, seconds: float) -> None:
        """Write lines that wait, for so many seconds at most, because the process ends."""
        end = time.monotonic() + seconds
        while self._waiting and time.monotonic() < end:
            self.write_waiting()
            time.sleep(0.01)

    def tell_lost(self, tell: Callable[[int], None]) -> None:
        """Call `tell`, which writes a line, with the number of lines lost since it was told last, if there are any."""
        with self._lock:
            if self._waiting or not self._lost:
                return
            lost, self._lost = self._lost, 0
            tell(lost)
            if self._lost:
                # If that line was lost itself, tell the number later.
                self._lost = lost

    def is_rotated(self) -> bool:
        """Return True if the path names another file, or none any more."""
        if self._path is None:
            return False
        own = os.fstat(self._descriptor)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return (own.st_dev, own.st_ino) != (there.st_dev, there.st_ino)

    def reopen(self) -> None:
        """Open the file anew, so that further lines go to the file that has the path now.

        Raises:
            OSError: the file can't be opened; lines go where they went before.
        """
        if self._path is None:
            return
        new = open_file(self._path)
        with self._lock:
            old = self._descriptor
            self._use(new)
        os.close(old)

    def _write(self, data: bytes) -> bytes:
        """Write bytes, and return those that must wait. If the write fails, the line is lost."""
        if self._is_torn:
            # End the line of which the disk took a part, because a reader would take this one for the rest of it.
            data = b"\n" + data
        try:
            if self._poll is None:
                while data:
                    data = data[os.write(self._descriptor, data) :]
                    self._is_torn = bool(data)
            else:
                while data and self._poll.poll(0):
                    data = data[os.write(self._descriptor, data[:_PIECE]) :]
        except BlockingIOError:
            pass
        except OSError:
            self._lost += 1
            return b""
        return data


def _may_block(descriptor: int) -> bool:
    """Return True if a write may have to wait for a reader: a pipe, a socket or a terminal, but no file or device."""
    mode = os.fstat(descriptor).st_mode
    return hasattr(select, "poll") and not stat.S_ISREG(mode) and (not stat.S_ISCHR(mode) or os.isatty(descriptor))
