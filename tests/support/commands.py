"""Runs of the command line."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path

from tests.support.lab import Server


async def command(
    *arguments: str, cwd: Path, limit: float = 60, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Run one; (exit code, standard output, standard error)."""
    # Port 0: `check` tries the address, and the usual one may be taken on this machine.
    environment = {"PATH": "/usr/bin:/bin", "PYTHONUTF8": "1", "COMFYUI_GATEWAY_PORT": "0", **(environment or {})}
    zygote = Server.zygote
    assert zygote is not None
    with tempfile.TemporaryFile() as errors:
        process = await zygote.fork("gateway", list(arguments), environment, errors.fileno(), cwd)
        try:
            async with asyncio.timeout(limit):
                out, code = await process.stdout.read(), await process.wait()
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            await process.wait()
            raise
        errors.seek(0)
        return code, out.decode(), errors.read().decode()
