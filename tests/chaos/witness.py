"""Somebody who reads the lists all the while: what is accepted is in one of them, and what was told stays so."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from tests.chaos.clients import NO_ANSWER, Accepted, Client
from tests.chaos.v2_client import LIVING, TERMINAL

LOOK_EVERY = 0.25
# Jobs that are looked at in the Comfy API v2 each time.
JOBS_AT_ONCE = 10
MAX_PROBLEMS = 5


class Witness:
    """Reads /queue and /history, over and over, until `leave`."""

    def __init__(self, clients: list[Client], url: str) -> None:
        self.problems: list[str] = []
        self._clients = clients
        self._url = url
        self._ended: dict[str, tuple[str, Any]] = {}
        self._leaving = False
        self._statuses: dict[str, str] = {}
        self._place = 0

    async def look_on(self) -> None:
        """Look, also while the gateway is down."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as http:
            while not self._leaving:
                try:
                    await self._look(http)
                except NO_ANSWER:
                    pass
                await asyncio.sleep(LOOK_EVERY)

    def leave(self) -> None:
        """Look no more."""
        self._leaving = True

    async def _look(self, http: aiohttp.ClientSession) -> None:
        accepted = [a for client in self._clients for a in client.accepted if not a.cancel_asked]
        async with http.get(f"{self._url}/queue") as answer:
            queue = await answer.json()
        # Read after the queue: whatever has left the one is in the other.
        async with http.get(f"{self._url}/history") as answer:
            history: dict[str, dict[str, Any]] = await answer.json()
        open_ids = {item[1] for items in queue.values() for item in items}
        missing = [
            a.prompt_id
            for a in accepted
            if a.prompt_id not in open_ids and a.prompt_id not in history and not a.cancel_asked
        ]
        self._note([f"{prompt_id}: it was in neither list" for prompt_id in missing])
        self._note(self.contradictions(history))
        for prompt_id, entry in history.items():
            self._ended.setdefault(prompt_id, _told(entry))
        await self._look_at_jobs(http, accepted)

    async def _look_at_jobs(self, http: aiohttp.ClientSession, accepted: list[Accepted]) -> None:
        """Look at some jobs in the Comfy API v2, others each time: none is missing, and what has ended stays so."""
        self._place += JOBS_AT_ONCE
        chosen = [
            accepted[place % len(accepted)] for place in range(self._place, self._place + JOBS_AT_ONCE) if accepted
        ]
        for each in {each.prompt_id: each for each in chosen}.values():
            async with http.get(f"{self._url}/api/v2/jobs/{each.prompt_id}") as answer:
                told = await answer.json()
            if answer.status == 503 and "Retry-After" in answer.headers:
                continue
            status = told.get("status", answer.status)
            before = self._statuses.get(each.prompt_id)
            if status not in (*LIVING, *TERMINAL) or (before in TERMINAL and status != before):
                self._note([f"{each.prompt_id}: the Comfy API v2 told {before}, and tells {status} now"])
            self._statuses[each.prompt_id] = status

    def _note(self, problems: list[str]) -> None:
        self.problems += problems[: MAX_PROBLEMS - len(self.problems)]

    def contradictions(self, history: dict[str, dict[str, Any]]) -> list[str]:
        """What was in the history once and is not now, or tells another end or other images."""
        return [
            f"{prompt_id}: the history told {told}, and tells {_told(history.get(prompt_id))} now"
            for prompt_id, told in self._ended.items()
            if _told(history.get(prompt_id)) != told
        ]


def _told(entry: dict[str, Any] | None) -> tuple[str, Any]:
    return ("nothing", None) if entry is None else (entry["status"]["messages"][-1][0], entry["outputs"])
