"""Restart a backend: run a command, or make an HTTP call. Each has a time limit, and its output a bound.

A command has no shell, no input, a process group of its own, and an environment without the gateway's secrets. If it
takes too long, its whole group is ended. A process that left the group may live on, because so a command starts a
server. Its output is read until the command itself ends, because such a server may hold the pipe for ever.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from gateway.fleet.restart_policy import Outcome, Reason
from gateway.settings.healing import RestartSettings

# Seconds between SIGTERM and SIGKILL, and the maximum wait for a killed process.
GRACE_SECONDS = 2.0
# Characters of the output that are logged, the last ones.
MAX_OUTPUT = 2_000
_READ = 64 * 1024
# After so many bytes the output is read slowly, so that a command which prints endlessly costs the event loop little.
_FAST_BYTES = 256 * 1024
_SLOW_SECONDS = 0.05
_PASSED_ON = ("PATH", "HOME", "LANG")
_SECRET = re.compile(
    r"((?:authorization|api[_-]?key|token|password|passwd|secret)[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic)\s+)?|bearer\s+)[^\s\"',;&]+",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a restart: its outcome, a sentence about it, and the end of the command's output, redacted."""

    outcome: Outcome
    detail: str
    output: str = ""


async def restart(settings: RestartSettings, backend: str, reason: Reason, secrets: Sequence[str] = ()) -> Result:
    """Restart a backend as its settings say. This raises nothing, and takes `timeout` and a few seconds at most.

    Args:
        secrets: texts that must not be logged.
    """
    if settings.url:
        return await call(settings)
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"COMFYUI_GATEWAY_BACKEND": backend, "COMFYUI_GATEWAY_REASON": str(reason)}
    return await run(settings.command, environment, settings.timeout, secrets)


async def call(settings: RestartSettings) -> Result:
    """Make the HTTP call. No redirect is followed, and no cookie kept; only 2xx is a success."""
    limit = aiohttp.ClientTimeout(total=settings.timeout)
    try:
        async with (
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), timeout=limit) as session,
            session.request(settings.method, settings.url, headers=settings.headers, allow_redirects=False) as answer,
        ):
            outcome = Outcome.STARTED if 200 <= answer.status < 300 else Outcome.FAILED
            return Result(outcome, f"answered {answer.status}")
    except TimeoutError:
        return Result(Outcome.TIMEOUT, f"not answered within {settings.timeout:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # The text of such an error may repeat the URL.
        return Result(Outcome.FAILED, f"not answered: {type(error).__name__}")


async def run(command: Sequence[str], environment: dict[str, str], timeout: float, secrets: Sequence[str]) -> Result:
    """Run a command to its end, or for `timeout` seconds."""
    try:
        output, writing = _Output.open()
    except OSError as error:
        return Result(Outcome.FAILED, f"can't be started: {error.strerror}")
    process: asyncio.subprocess.Process | None = None
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return Result(Outcome.FAILED, f"can't be started: {getattr(error, 'strerror', None) or 'invalid'}")
        finally:
            os.close(writing)
        async with asyncio.timeout(timeout):
            code = await process.wait()
        detail = f"ended by signal {-code}" if code < 0 else f"ended with {code}"
        return Result(Outcome.FAILED if code else Outcome.STARTED, detail, redacted(output.read_rest(), secrets))
    except TimeoutError:
        told = redacted(output.read_rest(), secrets)
        return Result(Outcome.TIMEOUT, f"did not end within {timeout:g} s, and was killed", told)
    finally:
        output.close()
        if process is not None and process.returncode is None:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process and its group: SIGTERM, then SIGKILL for all that is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await process.wait()


class _Output:
    """The output of a command: all of it is read, and the end is kept."""

    def __init__(self, reading: int) -> None:
        self._reading = reading
        self._loop = asyncio.get_running_loop()
        self._kept = b""
        self._count = 0
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(reading, self._read)

    @classmethod
    def open(cls) -> tuple[_Output, int]:
        """Return an output, and the descriptor that a command writes to."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        return cls(reading), writing

    def _read(self) -> None:
        data = self._take()
        if not data or self._count > _FAST_BYTES:
            self._loop.remove_reader(self._reading)
        if data and self._count > _FAST_BYTES:
            self._pause = self._loop.call_later(_SLOW_SECONDS, self._read_on)

    def _read_on(self) -> None:
        self._loop.add_reader(self._reading, self._read)

    def _take(self) -> bytes:
        try:
            data = os.read(self._reading, _READ)
        except BlockingIOError:
            return b""
        self._count += len(data)
        # Keep more than is logged, because control characters and secrets are left out.
        self._kept = (self._kept + data)[-4 * MAX_OUTPUT :]
        return data

    def read_rest(self) -> str:
        """Return the end of the output, with that which is in the pipe now."""
        self._take()
        text = self._kept.decode("utf-8", "replace")
        if self._count > len(self._kept):
            # Leave out the first line, because a part of it is gone, and the rest of a secret could not be recognized.
            _, _, text = text.replace("\r", "\n").partition("\n")
        return text

    def close(self) -> None:
        """Stop reading. If something still writes, its write fails."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._reading)
        os.close(self._reading)


def redacted(text: str, secrets: Sequence[str]) -> str:
    """Return the end of a text without control characters and without what looks like a secret, or is one."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "…")
    text = _SECRET.sub(r"\1…", _CONTROL.sub("", text)).strip()
    return text if len(text) <= MAX_OUTPUT else f"…{text[-MAX_OUTPUT:]}"
