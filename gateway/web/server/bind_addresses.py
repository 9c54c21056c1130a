"""Bind the addresses to listen on, and explain a failure: the same for ``serve`` and for ``check``."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from typing import Any

# No more than this of an answer waits in the kernel beyond what is under way: memory is bounded, and a pace shows.
UNSENT = 256 * 1024
# An entry of what `getaddrinfo` returns.
Found = tuple[int, int, int, str, tuple[Any, ...]]
_ADVICE = {
    errno.EADDRINUSE: "another program listens there; end it, or choose another port",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE; choose another port, or grant it",
    errno.EADDRNOTAVAIL: "no interface of this machine has this address; choose another server.host",
    errno.EAFNOSUPPORT: "this machine has no IPv6; choose another server.host",
}


class CannotListen(OSError):
    """The gateway can't listen on an address; the text names it, gives the reason, and tells what to do."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        where = f"{f'[{host}]' if ':' in host else host}:{port}"
        advice = _ADVICE.get(error.errno or 0, "")
        if isinstance(error, socket.gaierror):
            advice = "server.host is a name that can't be looked up; give an address"
        super().__init__(error.errno, error.strerror or str(error))
        self._sentence = f"can't listen on {where}: {self.strerror}{f'; {advice}' if advice else ''}"

    def __str__(self) -> str:
        return self._sentence


def bind_all(host: str, port: int, found: Iterable[Found]) -> list[socket.socket]:
    """Bind every address that was found for a host.

    Raises:
        CannotListen: one can't be bound.
    """
    bound: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            bound.append(_bound(family, address))
    except OSError as error:
        for listening in bound:
            listening.close()
        raise CannotListen(host, port, error) from error
    return bound


def try_to_bind(host: str, port: int) -> None:
    """Bind the addresses of a host and give them back at once; nothing listens meanwhile.

    Raises:
        CannotListen: one can't be bound.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(host, port, error) from error
    for bound in bind_all(host, port, found):
        bound.close()


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        listening.setblocking(False)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening
