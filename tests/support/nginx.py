"""Debian's nginx in front of a gateway, with a port for each way in which people configure it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.support.lab import until

PROGRAM = shutil.which("nginx") or "/usr/sbin/nginx"
# Beside these a location has what its name says.
_USUAL = """
    proxy_http_version 1.1;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
"""
_CONFIGURATION = """
daemon off; master_process off; pid {root}/pid; error_log {root}/error.log info;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi; client_max_body_size 0;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
  upstream gateway {{ server 127.0.0.1:{port}; keepalive 8; }}
{servers}
}}
"""


@contextlib.asynccontextmanager
async def nginx(
    root: Path, port: int, servers: Mapping[str, str], tls: tuple[Path, Path] | None = None
) -> AsyncIterator[dict[str, int]]:
    """Run nginx before a gateway's port; yield the port of each server by its name.

    Args:
        root: a folder of its own.
        port: the gateway's.
        servers: by name, locations; ``USUAL`` in one stands for the directives that all have.
        tls: certificate and key of the servers whose names begin with ``tls``.
    """
    await asyncio.to_thread(root.mkdir)
    # All are open at once, so that no two get the same port.
    with contextlib.ExitStack() as stack:
        probes = {name: stack.enter_context(socket.socket()) for name in servers}
        for probe in probes.values():
            probe.bind(("127.0.0.1", 0))
        ports = {name: int(probe.getsockname()[1]) for name, probe in probes.items()}
    blocks = []
    for name, locations in servers.items():
        secure = f"ssl_certificate {tls[0]}; ssl_certificate_key {tls[1]};" if tls and name.startswith("tls") else ""
        listen = f"listen 127.0.0.1:{ports[name]}{' ssl' if secure else ''};"
        blocks.append(f"server {{ {listen} {secure} {locations.replace('USUAL', _USUAL)} }}")
    configuration = root / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(root=root, port=port, servers="\n".join(blocks)))
    process = await asyncio.create_subprocess_exec(PROGRAM, "-p", str(root), "-c", str(configuration))

    async def listens() -> bool:
        assert process.returncode is None, (root / "error.log").read_text()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", ports[name])
        except ConnectionRefusedError:
            return False
        writer.close()
        return True

    try:
        await until(listens, what="nginx listens")
        yield ports
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
