"""Is a file still the one that its job left? What tells is its ETag, as the backend that has it gives it.

A ComfyUI serves files with aiohttp's FileResponse: the ETag is made of the time of the last change, in nanoseconds, and
the size. A name says less: where a folder was emptied, the next file of any tenant's job is called as the first was.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping
from email.utils import parsedate_to_datetime

from gateway.comfy.client import Answer
from gateway.comfy.outputs import FileRef, view_path
from gateway.fleet.backend import Backend

# As aiohttp makes it (web_fileresponse.py).
_OF_FILE = re.compile(r'"(?P<nanoseconds>[0-9a-f]{1,16})-(?P<size>[0-9a-f]{1,16})"')
# Instead of an ETag: there is none to compare, or the file was not there any more when its job was over.
UNTOLD, GONE = "", "-"
# How many files of a job are asked for at a time, and how many at all. A video as single pictures has some thousands.
AT_A_TIME = 8
MOST = 20_000
# A file that was found so many seconds after its job was over must not be younger than the job by more than that: as
# much as the clocks of a backend and of the disk that it writes to may go apart.
LATE_SECONDS = 60.0
# A backend that loads a model answers nobody meanwhile.
PATIENCE_SECONDS = 30.0


def is_same(known: str, told: str | None) -> bool:
    """Whether an answer's ETag is the one that is known. Compared weakly (RFC 9110, section 8.8.3.2).

    What lost the fractions of its seconds is still the same: network file systems do that some time after a file was
    written, and so do archives.
    """
    if known == UNTOLD:
        return True
    told = (told or "").removeprefix("W/")
    if told == known:
        return True
    one, other = _OF_FILE.fullmatch(known), _OF_FILE.fullmatch(told)
    if one is None or other is None or one["size"] != other["size"]:
        return False
    times = [divmod(int(each["nanoseconds"], 16), 10**9) for each in (one, other)]
    return times[0][0] == times[1][0] and 0 in (times[0][1], times[1][1])


def etag_of(answer: Answer, ended: int | None) -> str:
    """What to know a file by, from the answer to a HEAD.

    Args:
        ended: when its job was over, in milliseconds since 1970 by the backend's clock; None if that is not known.
    """
    if answer.status != 200:
        return GONE
    written, now = seconds_of(answer.headers.get("Last-Modified")), seconds_of(answer.headers.get("Date"))
    if ended is not None and written is not None and now is not None:
        limit = ended / 1000 + LATE_SECONDS
        if now > limit and written > limit:
            # The gateway was away meanwhile: this is another job's, which may be running.
            return GONE
    return answer.headers.get("ETag", UNTOLD).removeprefix("W/")


def seconds_of(date: str | None) -> float | None:
    """A date as HTTP writes it (RFC 9110, section 5.6.7), in seconds since 1970; None if it is none."""
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


async def _ask(backend: Backend, ref: FileRef) -> Answer:
    return await backend.client.call("HEAD", view_path(ref), timeout=PATIENCE_SECONDS)


async def has(backend: Backend, ref: FileRef, etag: str) -> bool:
    """Whether a backend has the file with this ETag under a name.

    Raises:
        BackendError: it does not say.
    """
    if etag == UNTOLD:
        return True
    answer = await _ask(backend, ref)
    return answer.status == 200 and is_same(etag, answer.headers.get("ETag"))


async def is_older(backend: Backend, ref: FileRef, than: float) -> bool:
    """Whether a file was written before a time, in seconds since 1970; not if there is none, or that is not told.

    Raises:
        BackendError: the backend does not say.
    """
    answer = await _ask(backend, ref)
    written = seconds_of(answer.headers.get("Last-Modified")) if answer.status == 200 else None
    # The header has whole seconds, and a file system's clock ticks more seldom than a processor's.
    return written is not None and written < than - 2


async def learn(backend: Backend, refs: Collection[FileRef], ended: int | None) -> Mapping[FileRef, str]:
    """What to know these files of a backend by, once their job is over; see `etag_of`.

    Raises:
        BackendError: it does not say.
    """
    known: dict[FileRef, str] = {}
    left = iter(list(refs)[:MOST])

    async def look() -> None:
        for ref in left:
            known[ref] = etag_of(await _ask(backend, ref), ended)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_A_TIME, len(refs))):
                group.create_task(look())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return known
