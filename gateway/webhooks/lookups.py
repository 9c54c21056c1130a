"""Look up the addresses of host names, in threads of their own.

A tenant chooses the names, so its name server may let each lookup wait for half a minute, which is longer than the
attempt that asked. If lookups ran in the event loop's own threads, such a tenant would block those who write files
there. So each tenant has a share of the threads, as it has of the deliveries under way. The threads are daemons, so a
lookup that hangs does not hold up the end of the process.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable

# Find the addresses of a host name for a tenant, as texts; an IPv6 address with a scope has it after a "%".
# It raises OSError if there are none, and NoThread if the gateway can't look them up now.
Lookup = Callable[[str, str], Awaitable[tuple[str, ...]]]


class NoThread(Exception):
    """All threads that the tenant may have are busy. That is no fault of the receiver."""


class Lookups:
    """Lookups by the operating system. Nothing is cached.

    Args:
        max_threads: maximum number of lookups at a time (`webhooks.max_in_flight_total`).
        max_of_tenant: those of one tenant (`webhooks.max_in_flight`); once half of all are taken, each may have one.
        look_up: asks the operating system, in a thread.
    """

    def __init__(
        self,
        max_threads: int,
        max_of_tenant: int,
        look_up: Callable[[str], tuple[str, ...] | OSError] | None = None,
    ) -> None:
        self._max_threads, self._max_of_tenant = max_threads, max_of_tenant
        self._look_up = look_up or _look_up
        # Threads of each tenant. One stays until its lookup ends, though its attempt is over.
        self._taken: Counter[str] = Counter()

    async def __call__(self, host: str, tenant: str) -> tuple[str, ...]:
        """Return the addresses of a host, in the order in which to try them.

        Raises:
            OSError: the name has none, or can't be looked up now.
            NoThread: the tenant has no thread left.
        """
        self._take(tenant)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[str, ...]] = loop.create_future()

        def end(found: tuple[str, ...] | OSError) -> None:
            self._release(tenant)
            if answer.done():
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def run() -> None:
            found = self._look_up(host)
            try:
                loop.call_soon_threadsafe(end, found)
            except RuntimeError:
                # The loop is closed, so nobody waits.
                return

        try:
            threading.Thread(target=run, name="webhook-lookup", daemon=True).start()
        except RuntimeError as error:
            self._release(tenant)
            raise NoThread("no thread can be started") from error
        return await answer

    def _take(self, tenant: str) -> None:
        """Count a thread for a tenant.

        Raises:
            NoThread: it has its share, or there is none left.
        """
        total = self._taken.total()
        share = 1 if 2 * total >= self._max_threads else self._max_of_tenant
        if total >= self._max_threads or self._taken[tenant] >= share:
            raise NoThread(f"{self._taken[tenant]} lookups of the tenant and {total} of all are under way")
        self._taken[tenant] += 1

    def _release(self, tenant: str) -> None:
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]


def _look_up(host: str) -> tuple[str, ...] | OSError:
    """Ask the operating system. Bytes, because Python would encode a text anew by another version of IDNA."""
    try:
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except ValueError:
        return OSError("not a name")
    return tuple(dict.fromkeys(_text_of(address) for *_, address in found))


def _text_of(address: tuple[object, ...]) -> str:
    """Return an address as text, with its scope if it has one."""
    text = str(address[0])
    has_scope = len(address) == 4 and address[3] and "%" not in text
    return f"{text}%{address[3]}" if has_scope else text
