"""Lists of jobs: their query, and the cursor of the next page. Pure."""

from __future__ import annotations

import base64
import binascii
import heapq
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import TypeVar

from multidict import MultiMapping

from gateway.comfy.errors import is_prompt_id
from gateway.web.http.v2_errors import V2Error
from gateway.web.v2.labels import filters_of
from gateway.web.v2.model import STATUSES

MAX_LIMIT, DEFAULT_LIMIT = 100, 50
MAX_CURSOR = 200
# Jobs that are looked at in one step.
JOBS_AT_ONCE = 1000
T = TypeVar("T")
# Time of creation, tenant and id of a job: the order of a list, the newest first.
Key = tuple[int, str, str]


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Query of a list: maximum number of jobs, statuses (none: all), labels, and the last job of the page before."""

    limit: int
    statuses: frozenset[str]
    labels: Mapping[str, str]
    after: tuple[int, str] | None


def query_of(query: MultiMapping[str]) -> ListQuery:
    """Return the query of a list.

    Raises:
        V2Error: it is malformed.
    """
    given = query.get("limit", str(DEFAULT_LIMIT))
    # `int` reads more than digits: blanks, and underscores between them.
    if not re.fullmatch("-?[0-9]+", given):
        raise V2Error(400, "invalid_request", "'limit' must be an integer.")
    limit = int(given) if len(given) < 10 else MAX_LIMIT + 1
    if not 1 <= limit <= MAX_LIMIT:
        raise V2Error(400, "invalid_request", f"'limit' must be between 1 and {MAX_LIMIT}.")
    statuses = [each.strip() for each in query.get("status", "").split(",") if each.strip()]
    if unknown := [each[:50] for each in statuses if each not in STATUSES]:
        raise V2Error(400, "invalid_request", f"Unknown status filter value(s): {', '.join(unknown[:5])}.")
    cursor = query.get("cursor")
    after = _parsed(cursor) if cursor else None
    return ListQuery(limit, frozenset(statuses), filters_of(query.items()), after)


def newest(jobs: Iterator[tuple[Key, T] | None], count: int) -> Generator[None, None, list[tuple[Key, T]]]:
    """Return the newest of many jobs, in their order, `JOBS_AT_ONCE` a step. None stands for a job to leave out."""
    found: list[tuple[Key, T]] = []
    while some := list(islice(jobs, JOBS_AT_ONCE)):
        found = heapq.nlargest(count, (*found, *filter(None, some)), key=itemgetter(0))
        yield
    return found


def cursor_of(created: int, prompt_id: str) -> str:
    """Return the cursor behind a job."""
    return base64.urlsafe_b64encode(f"{created}.{prompt_id}".encode()).decode().rstrip("=")


def _parsed(cursor: str) -> tuple[int, str]:
    wrong = V2Error(400, "invalid_cursor", "The cursor is none that this API gave.")
    if len(cursor) > MAX_CURSOR:
        raise wrong
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        created, _, prompt_id = raw.partition(".")
        found = int(created), prompt_id
    except (binascii.Error, ValueError) as error:
        raise wrong from error
    if not is_prompt_id(prompt_id):
        raise wrong
    return found
