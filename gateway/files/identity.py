"""Identity of files: is a file on a backend still the one that its job wrote? Its ETag tells.

A ComfyUI serves files with aiohttp's FileResponse: the ETag is made of the time of the last change, in nanoseconds, and
the size. A name says less: where a folder was emptied, the next file of any tenant's job is called as the first was.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime

from gateway.comfy.client import Answer, Unanswered
from gateway.comfy.file_refs import FileRef, view_path
from gateway.fleet.backend import Backend

# As aiohttp makes it (web_fileresponse.py).
_OF_FILE = re.compile(r'"(?P<nanoseconds>[0-9a-f]{1,16})-(?P<size>[0-9a-f]{1,16})"')
# Instead of an ETag: there is none to compare; what the job told of was not there when it was over, or not its own; the
# file is an earlier job's (ComfyUI's cache), and not looked at yet.
UNTOLD, GONE, CACHED = "", "-", "*"
# How many files of a job are asked for at a time, and how many at all. A video as single pictures has some thousands.
AT_A_TIME = 8
MAX_FILES = 8_000
# A file must not be older than its job by more than that, nor younger if it was found so long after: as many seconds
# as the clocks of a backend and of the disk that it writes to may go apart.
LATE_SECONDS = 60.0
# So soon after its job a file is looked at that nobody else will have written it meanwhile.
SOON_SECONDS = 1.0
# A backend that loads a model answers nobody meanwhile.
PATIENCE_SECONDS = 30.0


def are_same(one: str, other: str) -> bool:
    """Whether two ETags are of the same file.

    What lost the fractions of its seconds is still the same: network file systems do that some time after a file was
    written, and so do archives.
    """
    if one == other:
        return True
    first, second = _OF_FILE.fullmatch(one), _OF_FILE.fullmatch(other)
    if first is None or second is None or first["size"] != second["size"]:
        return False
    times = [divmod(int(each["nanoseconds"], 16), 10**9) for each in (first, second)]
    return times[0][0] == times[1][0] and 0 in (times[0][1], times[1][1])


@dataclass(frozen=True, slots=True)
class Fresh:
    """Instead of an ETag: what a job has written that goes on. Times are seconds since 1970 by the backend's clock.

    It was written `since` then, and `until` then, where another's job has begun meanwhile; it is none of the files that
    others know by that name (`besides`). `before` is what the job's tenant knew there before.
    """

    since: float | None = None
    until: float | None = None
    besides: frozenset[str] = frozenset()
    before: str = UNTOLD

    def is_met(self, headers: Mapping[str, str]) -> bool:
        """Whether an answer with these headers shows it."""
        told, written = told_by(headers), written_at(headers)
        if told != UNTOLD and are_same(told, self.before):
            return True
        if any(are_same(told, each) for each in self.besides) or (told == UNTOLD and self.besides):
            return False
        is_young = self.since is None or (written is not None and written >= self.since - LATE_SECONDS)
        return is_young and (self.until is None or (written is not None and written <= self.until + 1))


# What a file is known by.
Known = str | Fresh


def told_by(headers: Mapping[str, str]) -> str:
    """The ETag of an answer, to be compared weakly (RFC 9110, section 8.8.3.2); UNTOLD if there is none."""
    return headers.get("ETag", UNTOLD).removeprefix("W/")


def is_same(known: Known, headers: Mapping[str, str]) -> bool:
    """Whether an answer with these headers shows the file that is known so."""
    if isinstance(known, Fresh):
        return known.is_met(headers)
    return known == UNTOLD or are_same(known, told_by(headers))


@dataclass(frozen=True, slots=True)
class Times:
    """Of a job, in seconds since 1970 by its backend's clock; None for what is not known.

    Attributes:
        began: when that was.
        ended: when it was over.
        followed: when another tenant's job began there that came after it.
    """

    began: float | None = None
    ended: float | None = None
    followed: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a file is known by, once its job is over, and whether it was written since the job began, or long before."""

    etag: str
    is_new: bool = False
    is_old: bool = False


def examine(answer: Answer, times: Times, *, wrote: bool, before: str = UNTOLD, read: Collection[str] = ()) -> Found:
    """What an answer to a HEAD says of a file that a job told of.

    Args:
        wrote: whether the job says that it made it.
        before: what the tenant knew the name by before that job: it may have told of that file again.
        read: what the job's inputs are known by. ComfyUI copies a 3D model with the time at which that was written
            (comfy_api/latest/_util/geometry_types.py, File3D.save_to).
    """
    if answer.status != 200:
        return Found(GONE)
    told, written, now = told_by(answer.headers), written_at(answer.headers), seconds_of(answer.headers.get("Date"))
    if written is None or (told != UNTOLD and are_same(told, before)):
        return Found(told)
    if wrote and times.began is not None and written < times.began - LATE_SECONDS:
        # It was there before: the job has only named it. Unless it is a copy of what the job has read, with its time.
        return Found(told if any(are_same(told, each) for each in read) else GONE, is_old=True)
    if now is not None and _is_late(written, now, times):
        return Found(GONE)
    return Found(told, is_new=times.began is not None and written > times.began)


def _is_late(written: float, now: float, times: Times) -> bool:
    """Whether a file is another's job's, which may be running: its own was over when it was written.

    It is hard to say of one that was asked for at once: its disk's clock may be ahead.
    """
    if times.ended is None or now < times.ended + SOON_SECONDS:
        return False
    if now > times.ended + LATE_SECONDS and written > times.ended + LATE_SECONDS:
        return True
    return times.followed is not None and times.followed + 1 < written <= now + 1


def seconds_of(date: str | None) -> float | None:
    """A date as HTTP writes it (RFC 9110, section 5.6.7), in seconds since 1970; None if it is none."""
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def written_at(headers: Mapping[str, str]) -> float | None:
    """When the file of an answer was last changed, in seconds since 1970; None if it does not say.

    The ETag of aiohttp's FileResponse has that in nanoseconds, where Last-Modified has it rounded up.
    """
    rounded = seconds_of(headers.get("Last-Modified"))
    match = _OF_FILE.fullmatch(told_by(headers))
    exact = int(match["nanoseconds"], 16) / 1e9 if match else None
    return exact if exact is not None and rounded is not None and abs(exact - rounded) <= 1 else rounded


async def _ask(backend: Backend, ref: FileRef, patience: float = PATIENCE_SECONDS) -> Answer:
    return await backend.client.call("HEAD", view_path(ref), timeout=patience)


async def has(backend: Backend, ref: FileRef, known: Known) -> bool:
    """Whether a backend has the file that is known so under a name.

    Raises:
        BackendError: it does not say.
    """
    if known == UNTOLD:
        return True
    answer = await _ask(backend, ref)
    if isinstance(known, Fresh) and "Last-Modified" not in answer.headers:
        # A proxy may leave it out: then there is no time to be compared, as once the job is over.
        known = replace(known, since=None, until=None)
    return answer.status == 200 and is_same(known, answer.headers)


async def is_older(backend: Backend, ref: FileRef, than: float) -> bool:
    """Whether a file was written before a time, in seconds since 1970; not if there is none, or that is not told.

    Raises:
        BackendError: the backend does not say.
    """
    answer = await _ask(backend, ref)
    written = seconds_of(answer.headers.get("Last-Modified")) if answer.status == 200 else None
    # The header has whole seconds, and a file system's clock ticks more seldom than a processor's.
    return written is not None and written < than - 2


async def learn(
    backend: Backend,
    refs: Collection[FileRef],
    judge: Callable[[FileRef, Answer], Found],
    *,
    must: bool = True,
    patience: float = PATIENCE_SECONDS,
) -> Mapping[FileRef, Found]:
    """What to know these files of a backend by, once their job is over; `judge` tells that from the answer to a HEAD.

    Unless it `must`, a file of which the backend does not say anything within `patience` seconds is left out: a pipe,
    say, or what lies on a network that hangs.

    Raises:
        BackendError: it does not say, or can't be reached.
    """
    known: dict[FileRef, Found] = {}
    left = iter(list(refs)[:MAX_FILES])

    async def look() -> None:
        for ref in left:
            try:
                known[ref] = judge(ref, await _ask(backend, ref, patience))
            except Unanswered:
                if must:
                    raise

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_A_TIME, len(refs))):
                group.create_task(look())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return known
