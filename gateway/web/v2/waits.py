"""Requests whose answer waits for the end of a job: bounded in number, and ended by a stop of the gateway."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from gateway.settings import RunSettings
from gateway.telemetry.tasks import pause
from gateway.web.server.parser_feed import INTAKES
from gateway.web.v2.kept_jobs import KeptJobs


class TooManyWaits(Exception):
    """Refusal to wait, because as many answers wait as may. The text tells of which limit."""


class Waits:
    """All answers that wait, of each tenant."""

    def __init__(self, kept: KeptJobs, settings: RunSettings) -> None:
        self._kept = kept
        self._settings = settings
        self._count: Counter[str] = Counter()
        self._events: set[asyncio.Event] = set()
        self._is_closing = False

    @property
    def count(self) -> int:
        """Return the number of answers that wait."""
        return self._count.total()

    def close(self) -> None:
        """End all waits, because the server drains its connections."""
        self._is_closing = True
        for event in self._events:
            event.set()

    @contextmanager
    def place(self, request: web.Request, tenant: str) -> Iterator[asyncio.Event]:
        """Count a request that waits. Yield an event that is set if its client goes away, or the gateway stops.

        Raises:
            TooManyWaits: too many wait.
        """
        settings = self._settings
        if self._count[tenant] >= settings.max_waiting:
            raise TooManyWaits(f"{settings.max_waiting} answers wait for jobs (run.max_waiting)")
        if self._count.total() >= settings.max_total_waiting:
            raise TooManyWaits("as many answers of all tenants wait as may (run.max_total_waiting)")
        event, intake = asyncio.Event(), request.app[INTAKES].get(request.protocol)
        if intake is None or self._is_closing:
            event.set()
        if intake is not None:
            intake.on_lost = event.set
        self._count[tenant] += 1
        self._events.add(event)
        try:
            yield event
        finally:
            self._events.discard(event)
            self._count[tenant] -= 1
            if not self._count[tenant]:
                del self._count[tenant]
            if intake is not None:
                intake.on_lost = None

    async def end_of(
        self, tenant: str, prompt_id: str, seconds: float, event: asyncio.Event, is_open: Callable[[], bool]
    ) -> None:
        """Wait for a job's end for a time, at most until the event of `place` is set.

        Args:
            is_open: returns True while the job has not ended.
        """
        leave = self._kept.wait_for(tenant, prompt_id, event)
        try:
            # An event that is set already is no job's end, but the end of the wait all the same.
            if is_open():
                await pause(seconds, event)
        finally:
            leave()
