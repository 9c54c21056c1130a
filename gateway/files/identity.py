"""Identity of files: is a file on a backend still the one that its job wrote? Its ETag tells.

A ComfyUI serves files with aiohttp's FileResponse: the ETag is made of the time of the last change, in nanoseconds, and
the size. A name says less: if a folder was emptied, the next file of any tenant's job gets the first file's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime

from gateway.comfy.client import Answer, Unanswered
from gateway.comfy.file_refs import FileRef, view_path
from gateway.fleet.backend import Backend
from gateway.telemetry.tasks import together

# As aiohttp makes it (web_fileresponse.py).
_OF_FILE = re.compile(r'"(?P<nanoseconds>[0-9a-f]{1,16})-(?P<size>[0-9a-f]{1,16})"')
# Stored in place of an ETag. UNTOLD: the backend sends none. GONE: after the job the file was missing, or not its own.
# CACHED: from an earlier job (ComfyUI's cache), not checked yet.
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
    """Return True if two ETags are of the same file.

    A file whose time lost the fractions of its seconds is still the same. Network file systems drop them some time
    after a file was written, and so do archives.
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
    """Stored in place of an ETag: a file of a job not over yet. Times are seconds since 1970 by the backend's clock.

    The job wrote the file after `since`, and before `until` if another tenant's job has begun meanwhile. `besides` are
    the ETags of other tenants' files of that name: it is none of these. `before` is the ETag that the job's tenant knew
    by that name before.
    """

    since: float | None = None
    until: float | None = None
    besides: frozenset[str] = frozenset()
    before: str = UNTOLD

    def is_met(self, headers: Mapping[str, str]) -> bool:
        """Return True if a response with these headers shows the file."""
        told, written = told_by(headers), written_at(headers)
        if told != UNTOLD and are_same(told, self.before):
            return True
        if any(are_same(told, each) for each in self.besides) or (told == UNTOLD and self.besides):
            return False
        is_young = self.since is None or (written is not None and written >= self.since - LATE_SECONDS)
        return is_young and (self.until is None or (written is not None and written <= self.until + 1))


# The ETag of a file, or what stands in its place.
Known = str | Fresh


def told_by(headers: Mapping[str, str]) -> str:
    """Return a response's ETag, to be compared weakly (RFC 9110, section 8.8.3.2); UNTOLD if there is none."""
    return headers.get("ETag", UNTOLD).removeprefix("W/")


def size_in(etag: str | None) -> int | None:
    """Return the size of a file by its ETag, in bytes; None if the ETag does not tell it."""
    match = _OF_FILE.fullmatch(etag or "")
    return None if match is None else int(match["size"], 16)


def is_same(known: Known, headers: Mapping[str, str]) -> bool:
    """Return True if a response with these headers shows the `known` file."""
    if isinstance(known, Fresh):
        return known.is_met(headers)
    return known == UNTOLD or are_same(known, told_by(headers))


@dataclass(frozen=True, slots=True)
class Times:
    """The times of a job, in seconds since 1970 by its backend's clock; None for an unknown time.

    Attributes:
        began: the job's start.
        ended: the job's end.
        followed: the start of another tenant's job that came after it there.
    """

    began: float | None = None
    ended: float | None = None
    followed: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Identity of a file after its job. `is_new`: written since the job began. `is_old`: written long before it."""

    etag: str
    is_new: bool = False
    is_old: bool = False


def examine(answer: Answer, times: Times, *, wrote: bool, before: str = UNTOLD, read: Collection[str] = ()) -> Found:
    """Judge a file that a job reported, from the response to a HEAD.

    Args:
        wrote: True if the job says that it made the file.
        before: the ETag that the tenant knew by that name before the job, which may have reported that file again.
        read: the ETags of the job's inputs. ComfyUI copies a 3D model with the time of its last change
            (comfy_api/latest/_util/geometry_types.py, File3D.save_to).
    """
    if answer.status != 200:
        return Found(GONE)
    told, written, now = told_by(answer.headers), written_at(answer.headers), seconds_of(answer.headers.get("Date"))
    if written is None or (told != UNTOLD and are_same(told, before)):
        return Found(told)
    if wrote and times.began is not None and written < times.began - LATE_SECONDS:
        # The file was there before, so the job only named it, unless it is a copy of an input with the input's time.
        return Found(told if any(are_same(told, each) for each in read) else GONE, is_old=True)
    if now is not None and _is_late(written, now, times):
        return Found(GONE)
    return Found(told, is_new=times.began is not None and written > times.began)


def _is_late(written: float, now: float, times: Times) -> bool:
    """Return True if another tenant's job wrote the file, because the file's own job was over by then.

    The other job may still run. If the file is asked for at once, return False, because its disk's clock may be ahead.
    """
    if times.ended is None or now < times.ended + SOON_SECONDS:
        return False
    if now > times.ended + LATE_SECONDS and written > times.ended + LATE_SECONDS:
        return True
    return times.followed is not None and times.followed + 1 < written <= now + 1


def seconds_of(date: str | None) -> float | None:
    """Return a date of HTTP's (RFC 9110, section 5.6.7) in seconds since 1970; None if it is no date."""
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def written_at(headers: Mapping[str, str]) -> float | None:
    """Return the time of the last change of a response's file, in seconds since 1970; None if no header says it.

    The ETag of aiohttp's FileResponse has the time in nanoseconds, Last-Modified has it rounded up.
    """
    rounded = seconds_of(headers.get("Last-Modified"))
    match = _OF_FILE.fullmatch(told_by(headers))
    exact = int(match["nanoseconds"], 16) / 1e9 if match else None
    return exact if exact is not None and rounded is not None and abs(exact - rounded) <= 1 else rounded


async def _ask(backend: Backend, ref: FileRef, patience: float = PATIENCE_SECONDS) -> Answer:
    return await backend.client.call("HEAD", view_path(ref), timeout=patience)


async def has(backend: Backend, ref: FileRef, known: Known) -> bool:
    """Return True if a backend has the `known` file under a name.

    Raises:
        BackendError: the backend does not say.
    """
    if known == UNTOLD:
        return True
    answer = await _ask(backend, ref)
    if isinstance(known, Fresh) and "Last-Modified" not in answer.headers:
        # If a proxy leaves the header out, compare no times, as after the end of the job.
        known = replace(known, since=None, until=None)
    return answer.status == 200 and is_same(known, answer.headers)


async def is_older(backend: Backend, ref: FileRef, than: float) -> bool:
    """Return True if a file was written before a time, in seconds since 1970; False if no file or time is known.

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
    """Return the identities of a backend's files after their job. `judge` makes each from the response to a HEAD.

    Without `must`, leave out each file about which the backend is silent for `patience` seconds. Such a file is a pipe,
    for example, or lies on a network that hangs.

    Raises:
        BackendError: the backend does not say, or can't be reached.
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

    await together(look() for _ in range(min(AT_A_TIME, len(refs))))
    return known
