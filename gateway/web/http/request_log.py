"""The log line of each HTTP request (`event: http`): its id, its caller, its jobs, and what came of it.

The gate writes the line of each request that a route answers, `connections.py` those of all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import web

from gateway.comfy.errors import is_prompt_id
from gateway.settings import Settings
from gateway.telemetry import logs
from gateway.tenants.keys import Identity
from gateway.web.http.client_address import TrustedProxies, address_of
from gateway.web.http.request_ids import noted

# A request may name ten thousand.
MAX_PROMPT_IDS = 10
# Characters of a method: anybody may send one that no route has.
MAX_METHOD = 20
# aiohttp's word for the method of a request that it can't parse.
_NO_METHOD = "UNKNOWN"
_NO_JOBS: dict[str, str | tuple[str, ...]] = {}


def name_jobs(request: web.Request, prompt_ids: Iterable[str]) -> None:
    """Note jobs that a request makes or names, for its log line. An id that can be no job's is left out."""
    named = noted(request).prompt_ids
    for prompt_id in prompt_ids:
        if len(named) >= MAX_PROMPT_IDS:
            break
        if prompt_id not in named and is_prompt_id(prompt_id):
            named = (*named, prompt_id)
    noted(request).prompt_ids = named


class RequestLog:
    """Writes the lines, if the settings ask for them: look at `is_on` first.

    Args:
        settings: the configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self.is_on = settings.log.requests and settings.log.level in ("debug", "info")
        self._proxies = TrustedProxies(settings.server.trusted_proxies)
        # Bound once, because each request has a line.
        self._log = logs.get("http").bind()

    def write(
        self,
        request: web.BaseRequest,
        status: int,
        seconds: float,
        *,
        route: str | None = None,
        identity: Identity | None = None,
    ) -> None:
        """Write the line of a request that is answered.

        Args:
            route: the template; a raw path holds names.
        """
        own = noted(request)
        own.is_logged = True
        self._log.info(
            "http",
            request_id=own.request_id,
            method=request.method[:MAX_METHOD],
            route=route,
            status=status,
            duration_ms=round(seconds * 1000, 2),
            key=identity.name if identity else None,
            tenant=identity.tenant if identity else None,
            client_address=address_of(request, self._proxies),
            **(_jobs_of(own.prompt_ids) if own.prompt_ids else _NO_JOBS),
        )

    def refused(self, request_id: str, status: int, transport: asyncio.BaseTransport) -> None:
        """Write the line of a refusal that is sent before there is a request."""
        if not self.is_on:
            return
        peer = transport.get_extra_info("peername")
        self._log.info(
            "http",
            request_id=request_id,
            method=_NO_METHOD,
            route=None,
            status=status,
            duration_ms=None,
            key=None,
            tenant=None,
            client_address=str(peer[0]) if peer else None,
        )

    def address_of(self, request: web.BaseRequest) -> str | None:
        """Return the client address of any request, also of one without a route."""
        return address_of(request, self._proxies)


def _jobs_of(named: tuple[str, ...]) -> dict[str, str | tuple[str, ...]]:
    return {"prompt_id": named[0]} if len(named) == 1 else {"prompt_ids": named}
