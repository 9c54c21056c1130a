"""Lists of names that backends answer with (/models/…, /embeddings), and answers of any one backend."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from gateway.catalogue import merging
from gateway.comfy.client import Answer, BackendError, BadAnswer
from gateway.comfy.json_stream import Unreadable, parse
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.telemetry import logs
from gateway.telemetry.tasks import together
from gateway.tenants.policy import Policy

_log = logs.get("catalogue")

MAX_LISTS = 512
# Of a backend's list of models: ten thousand, with six fields each.
MAX_LIST_VALUES = 60_000
MAX_KEPT_ANSWER = 256 * 1024


class NobodyKnows(Exception):
    """No backend can be asked, and nothing is known from before."""


@dataclass(slots=True)
class _Listing:
    read_at: float
    value: list[Any]


class Listings:
    """Union of the backends' lists, kept for a time.

    Args:
        keep: seconds for which an answer is kept, unless the lists change.
    """

    def __init__(self, fleet: Fleet, keep: float) -> None:
        self._fleet = fleet
        self._keep = keep
        self._lists: dict[tuple[str, frozenset[str] | None], _Listing] = {}
        # Each is held while its list is asked for, so that many clients cause one request to each backend.
        self._asking: WeakValueDictionary[tuple[str, frozenset[str] | None], asyncio.Lock] = WeakValueDictionary()
        self._answers: OrderedDict[tuple[str, frozenset[str] | None], tuple[float, Answer]] = OrderedDict()

    def forget(self) -> None:
        """Ask for each list again, because one of them has changed, or may have."""
        for listing in self._lists.values():
            listing.read_at = float("-inf")

    async def listing(self, path: str, policy: Policy) -> list[Any]:
        """Return the union of a route that lists names (/models/…, /embeddings), or the last one that could be made.

        A policy limits it to the backends that it allows, and leaves out the models that it refuses.

        Raises:
            BadAnswer: no backend has such a list; its status is theirs.
            NobodyKnows: no backend can be asked, and none was before.
        """
        listed = await self._listing(path, policy.allowed)
        is_folder = path.rstrip("/").rpartition("/")[2] == "models"
        if is_folder or not policy.models:
            return listed
        return [item for item in listed if not policy.denies_model(str(_identity(item)))]

    async def _listing(self, path: str, allowed: frozenset[str] | None) -> list[Any]:
        key = path, allowed
        lock = self._asking.get(key)
        if lock is None:
            lock = self._asking[key] = asyncio.Lock()
        async with lock:
            return await self._ask_for(path, allowed)

    async def _ask_for(self, path: str, allowed: frozenset[str] | None) -> list[Any]:
        known = self._lists.get((path, allowed))
        if known is not None and time.monotonic() - known.read_at < self._keep:
            return known.value
        answers = await together(_ask(b, path) for b in self._fleet.alive(allowed))
        lists = [listed for answer in answers if answer is not None and (listed := list_of(answer)) is not None]
        if not lists:
            if known is not None:
                return known.value
            statuses = [answer.status for answer in answers if answer is not None]
            if not statuses:
                raise NobodyKnows
            raise BadAnswer(f"no backend has {path}", statuses[0] if statuses[0] != 200 else 502)
        if len(self._lists) >= MAX_LISTS:
            self._lists.clear()
        listing = self._lists[path, allowed] = _Listing(time.monotonic(), merging.union(lists, _identity))
        return listing.value

    async def from_any(self, path: str, allowed: frozenset[str] | None = None) -> Answer:
        """Return the first backend's answer that is no error (a model's metadata, its preview), else the last one.

        A backend answers 500 about a model that it can't read. This is the answer if no other one is known.
        `allowed` are the names of the backends to ask; None for all.

        Raises:
            NobodyKnows: no backend can be asked, and none was before.
        """
        known = self._answers.get((path, allowed))
        if known is not None and time.monotonic() - known[0] < self._keep:
            return known[1]
        found: Answer | None = None
        failure: Answer | None = None
        for backend in self._fleet.alive(allowed):
            answer = await _ask(backend, path)
            if answer is not None and answer.status == 500:
                failure = answer
            elif answer is not None and answer.status < 500:
                found = answer
                if answer.status < 400:
                    break
        if found is None:
            found = known[1] if known is not None else failure
            if found is None:
                raise NobodyKnows
            return found
        if found.status == 200 and len(found.body) <= MAX_KEPT_ANSWER:
            self._answers[path, allowed] = (time.monotonic(), found)
            while len(self._answers) > MAX_LISTS:
                self._answers.popitem(last=False)
        return found


async def _ask(backend: Backend, path: str) -> Answer | None:
    try:
        return await backend.client.call("GET", path)
    except BackendError as error:
        _log.info("listing_not_read", backend=backend.name, path=path, error=str(error))
        return None


def list_of(answer: Answer) -> list[Any] | None:
    """Return the list that an answer holds; None if it holds none."""
    try:
        value = parse(answer.body, MAX_LIST_VALUES) if answer.status == 200 else None
    except Unreadable:
        return None
    return value if isinstance(value, list) else None


def _identity(item: Any) -> Any:
    """Return the key of a list's item: its name, if the item tells more (sizes, times, its own folders)."""
    return item.get("name", item) if isinstance(item, dict) else item
