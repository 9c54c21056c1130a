"""Processes that need not read their modules again: forks of one that has imported everything and has done nothing.

An interpreter takes longer to import the gateway than most tests take for what they show. A fork is a process as any
other, with its own arguments, environment, output and end; what it runs is what ``python -m`` would run.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Bytes; a Unix socket's own limit for a message is lower.
_MAX = 2**20


@dataclass(frozen=True)
class Order:
    """What a fork is to be: a module, the arguments after it, and all that a process inherits."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    directory: str
    open_files: tuple[int, int]


class Forked:
    """A fork, seen from the test; the part of `asyncio.subprocess.Process` that is used here."""

    def __init__(self, pid: int, stdout: asyncio.StreamReader, report: socket.socket) -> None:
        self.pid = pid
        self.stdout = stdout
        self.stderr = None
        self.returncode: int | None = None
        self._ended = asyncio.create_task(self._end(report))

    async def _end(self, report: socket.socket) -> int:
        with report:
            self.returncode = int(await asyncio.get_running_loop().sock_recv(report, 64))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is there still."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self) -> int:
        """Its exit code, when it has ended; of a signal that ended it, the negative number."""
        return await asyncio.shield(self._ended)


class Zygote:
    """The process that forks. It is started when it is first needed; it ends with `close`, or with this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-X", "utf8", "-m", "tests.support.zygote", str(theirs.fileno())]
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()]
            )
        return ours

    async def fork(
        self, module: str, arguments: list[str], environment: dict[str, str], stderr: int, cwd: Path | None = None
    ) -> Forked:
        """Start a process that runs a module; `stderr` is the file descriptor that it writes errors to."""
        if self._channel is None:
            self._channel = self._start()
        order = Order(
            module, arguments, environment, str(cwd or Path.cwd()), resource.getrlimit(resource.RLIMIT_NOFILE)
        )
        report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        report.setblocking(False)
        read, write = os.pipe()
        try:
            socket.send_fds(self._channel, [json.dumps(asdict(order)).encode()], [theirs.fileno(), write, stderr])
        finally:
            theirs.close()
            os.close(write)
        loop, stdout = asyncio.get_running_loop(), asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdout), os.fdopen(read, "rb", 0))
        return Forked(int(await loop.sock_recv(report, 64)), stdout, report)

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._channel is not None:
            self._channel.close()
            self._process.wait()
        self._process = self._channel = None


class _Nursery:
    """In the zygote: forks what is ordered, and reports how it ended."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ)
        self._reports: dict[int, tuple[int, socket.socket]] = {}

    def serve(self) -> Order | None:
        """Fork until nobody orders any more; in a fork, return what it is to be."""
        while True:
            for key, _ in self._selector.select():
                if key.fd in self._reports:
                    self._bury(key.fd)
                    continue
                message, files, _, _ = socket.recv_fds(self._channel, _MAX, 3)
                if not message:
                    return None
                order = Order(**json.loads(message))
                if self._fork(*files):
                    return order

    def _fork(self, report: int, stdout: int, stderr: int) -> bool:
        pid = os.fork()
        if not pid:
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            self._forget()
        os.close(stdout)
        os.close(stderr)
        if not pid:
            os.close(report)
            return True
        file = os.pidfd_open(pid)
        self._reports[file] = pid, socket.socket(fileno=report)
        self._selector.register(file, selectors.EVENT_READ)
        self._reports[file][1].send(str(pid).encode())
        return False

    def _forget(self) -> None:
        """In a fork: close what is the zygote's."""
        self._selector.close()
        self._channel.close()
        for file, (_, report) in self._reports.items():
            os.close(file)
            report.close()

    def _bury(self, file: int) -> None:
        pid, report = self._reports.pop(file)
        self._selector.unregister(file)
        os.close(file)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with report, contextlib.suppress(BrokenPipeError):
            report.send(str(code).encode())


def _become(order: Order) -> None:
    """Be what was ordered. It ends as a script does, so that the interpreter complains of what is left open."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_NOFILE, order.open_files)
    os.chdir(order.directory)
    os.environ.clear()
    os.environ.update(order.environment)
    sys.argv = [order.module, *order.arguments]
    runpy.run_module(order.module, run_name="__main__", alter_sys=True)


def main(channel: int) -> None:
    """Import, then fork."""
    # Ctrl-C is for the tests, which end what they have started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in ("uvloop", "gateway.cli.main", "gateway.simulator.command"):
        __import__(module)
    gc.collect()
    gc.freeze()
    order = _Nursery(socket.socket(fileno=channel)).serve()
    if order is not None:
        _become(order)


if __name__ == "__main__":
    main(int(sys.argv[1]))
