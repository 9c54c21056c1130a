"""Ends of servers in a test's own loop that forget no connection.

If a server is closed between the acceptance of a connection and its first step, Python never closes that connection.
It is collected some tests later, and its warning fails whichever test runs then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from socket import socket

from aiohttp import web

# Turns of the loop in which an accepted connection is taken in, or a closed one is forgotten.
_TURNS = 10


async def accept_no_more(sockets: Iterable[socket]) -> None:
    """Accept no further connections, and let those that were accepted be taken in."""
    for each in sockets:
        asyncio.get_running_loop().remove_reader(each.fileno())
    await settle()


async def settle() -> None:
    """Let the loop do what is due."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


async def cleaned_up(runner: web.AppRunner) -> None:
    """End a runner, its sites and their connections."""
    sockets = [each for site in runner.sites if (server := getattr(site, "_server", None)) for each in server.sockets]
    await accept_no_more(sockets)
    await runner.cleanup()
    await settle()
