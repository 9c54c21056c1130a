"""Debian's HAProxy in front of a gateway, with a port for each way in which people configure it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

PROGRAM = shutil.which("haproxy") or "/usr/sbin/haproxy"
# One thread, so that all requests share the idle connections to the gateway.
_CONFIGURATION = """
global
    maxconn 512
    nbthread 1
    stats socket fd@{admin} level admin
defaults
    mode http
    timeout connect 3s
    timeout client 1m
    timeout server 1m
    timeout tunnel 1h
{servers}
"""


class Haproxy:
    """A running HAProxy.

    Args:
        ports: the port of each server, by its name.
        admin: the port for commands.
    """

    def __init__(self, ports: Mapping[str, int], admin: int) -> None:
        self.ports = ports
        self._admin = admin

    async def connections(self, name: str) -> int:
        """Return the number of a server's connections to the gateway, idle ones included."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._admin)
        writer.write(b"show servers conn\n")
        answer = (await reader.read()).decode()
        writer.close()
        header, *rows = answer.strip().splitlines()
        names = header.removeprefix("# ").split()
        (found,) = (dict(zip(names, row.split(), strict=False)) for row in rows if row.startswith(f"{name}/"))
        return int(found["used_cur"]) + int(found["idle_cur"])


@contextlib.asynccontextmanager
async def haproxy(root: Path, port: int, servers: Mapping[str, str], tls: Path | None = None) -> AsyncIterator[Haproxy]:
    """Run HAProxy before a gateway's port.

    Args:
        root: a folder of its own.
        port: the gateway's.
        servers: by name, the lines of a ``listen`` section. A section's own ``server`` line counts in place of the
            usual one.
        tls: certificate and key, in one file, of the servers whose names begin with ``tls``.
    """
    await asyncio.to_thread(root.mkdir)
    with contextlib.ExitStack() as stack:
        # HAProxy inherits sockets that listen, so no other process gets their ports and nothing has to wait.
        sockets = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in ("", *servers)}
        ports = {name: int(each.getsockname()[1]) for name, each in sockets.items()}
        blocks = []
        for name, lines in servers.items():
            secure = f" ssl crt {tls} alpn h2,http/1.1" if tls and name.startswith("tls") else ""
            server = "" if "server gateway" in lines else f"\n    server gateway 127.0.0.1:{port}"
            blocks.append(f"listen {name}\n    bind fd@{sockets[name].fileno()}{secure}\n    {lines.strip()}{server}")
        configuration = root / "haproxy.cfg"
        configuration.write_text(_CONFIGURATION.format(admin=sockets[""].fileno(), servers="\n".join(blocks)))
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "-q", "-db", "-f", str(configuration), pass_fds=[each.fileno() for each in sockets.values()]
        )
    try:
        yield Haproxy(ports, ports.pop(""))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
