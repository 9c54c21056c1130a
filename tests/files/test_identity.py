"""What files are known by, beside their names."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import test_utils, web
from multidict import CIMultiDict

from gateway.comfy.client import Answer, ComfyClient, TimedOut
from gateway.comfy.file_refs import FileRef
from gateway.files.identity import (
    GONE,
    LATE_SECONDS,
    UNTOLD,
    Found,
    Fresh,
    Times,
    examine,
    is_same,
    learn,
    seconds_of,
    size_in,
    told_by,
    written_at,
)

NOON = "Wed, 25 Nov 2026 12:00:00 GMT"
NEXT_DAY = "Thu, 26 Nov 2026 12:00:00 GMT"
AT_NOON = 1795608000
FILE, FILE_IN_SECONDS = f'"{AT_NOON * 10**9 + 1:x}-5"', f'"{AT_NOON * 10**9:x}-5"'


@pytest.mark.parametrize(
    ("known", "told", "same"),
    [
        ('"a-1"', '"a-1"', True),
        ('"a-1"', 'W/"a-1"', True),
        ('"a-1"', '"a-2"', False),
        ('"a-1"', "", False),
        ('"a-1"', None, False),
        (UNTOLD, None, True),
        (UNTOLD, '"a-1"', True),
        (GONE, None, False),
        (GONE, '"a-1"', False),
        (FILE, FILE_IN_SECONDS, True),
        (FILE_IN_SECONDS, FILE, True),
        (FILE, f'"{AT_NOON * 10**9 + 10**9:x}-5"', False),
        (FILE, f'"{AT_NOON * 10**9 + 2:x}-5"', False),
        (FILE, f'"{AT_NOON * 10**9:x}-6"', False),
    ],
)
def test_etags_are_compared_weakly(known: str, told: str | None, same: bool) -> None:
    assert is_same(known, CIMultiDict({} if told is None else {"ETag": told})) is same


@pytest.mark.parametrize(
    ("etag", "size"), [(FILE, 5), ('"18a-1f"', 31), (UNTOLD, None), (GONE, None), (None, None), ('"of-a-proxy"', None)]
)
def test_an_etag_of_a_file_tells_its_size(etag: str | None, size: int | None) -> None:
    assert size_in(etag) == size


@pytest.mark.parametrize(
    ("ended", "written", "asked", "etag"),
    [
        (AT_NOON, NOON, NOON, '"a-1"'),
        (AT_NOON, NOON, NEXT_DAY, '"a-1"'),
        # The disk's clock is a day ahead: it was asked in time.
        (AT_NOON, NEXT_DAY, NOON, '"a-1"'),
        # It was asked late, and the file is younger than its job.
        (AT_NOON, NEXT_DAY, NEXT_DAY, GONE),
        (AT_NOON - LATE_SECONDS + 1, NOON, NOON, '"a-1"'),
        (None, NEXT_DAY, NEXT_DAY, '"a-1"'),
        (AT_NOON, "yesterday", NEXT_DAY, '"a-1"'),
    ],
)
def test_a_file_that_is_found_late_and_is_younger_than_its_job_is_anothers(
    ended: float | None, written: str, asked: str, etag: str
) -> None:
    headers = CIMultiDict({"ETag": 'W/"a-1"', "Last-Modified": written, "Date": asked})
    assert examine(Answer(200, headers, b""), Times(ended=ended), wrote=True).etag == etag


@pytest.mark.parametrize(
    ("followed", "asked", "etag"),
    [
        (AT_NOON - 1, NOON, '"a-1"'),
        (AT_NOON - 1.5, NOON, GONE),
        (AT_NOON - 0.9, NOON, '"a-1"'),
        (AT_NOON - 2, NEXT_DAY, GONE),
        # The disk's clock is ahead.
        (AT_NOON - 2, "Wed, 25 Nov 2026 11:59:58 GMT", '"a-1"'),
    ],
)
def test_a_file_that_is_younger_than_anothers_job_is_not_of_the_one_before(
    followed: float, asked: str, etag: str
) -> None:
    headers = CIMultiDict({"ETag": '"a-1"', "Last-Modified": NOON, "Date": asked})
    assert examine(Answer(200, headers, b""), Times(ended=followed, followed=followed), wrote=True).etag == etag


@pytest.mark.parametrize(
    ("started", "before", "etag"),
    [
        (AT_NOON, "", '"a-1"'),
        (AT_NOON + LATE_SECONDS, "", '"a-1"'),
        (AT_NOON + LATE_SECONDS + 1, "", GONE),
        (AT_NOON + LATE_SECONDS + 1, '"a-0"', GONE),
        (AT_NOON + LATE_SECONDS + 1, '"a-1"', '"a-1"'),
        (None, "", '"a-1"'),
    ],
)
def test_a_file_that_is_older_than_its_job_is_nothing_that_it_wrote(
    started: float | None, before: str, etag: str
) -> None:
    headers = CIMultiDict({"ETag": '"a-1"', "Last-Modified": NOON, "Date": NEXT_DAY})
    answer = Answer(200, headers, b"")
    assert examine(answer, Times(began=started), wrote=True, before=before).etag == etag
    assert examine(answer, Times(began=started), wrote=False).etag == '"a-1"'
    assert examine(answer, Times(began=started), wrote=True, read={'"b-1"', '"a-1"'}).etag == '"a-1"', "a copy"


@pytest.mark.parametrize(
    ("fresh", "is_met"),
    [
        (Fresh(), True),
        (Fresh(since=AT_NOON + LATE_SECONDS), True),
        (Fresh(since=AT_NOON + LATE_SECONDS + 1), False),
        (Fresh(since=AT_NOON + LATE_SECONDS + 1, before='"a-1"'), True),
        (Fresh(until=AT_NOON - 1), True),
        (Fresh(until=AT_NOON - 2), False),
        (Fresh(besides=frozenset({'"a-0"'})), True),
        (Fresh(besides=frozenset({'"a-1"'})), False),
    ],
)
def test_what_a_job_writes_is_told_from_what_others_have_there(fresh: Fresh, is_met: bool) -> None:
    assert is_same(fresh, CIMultiDict({"ETag": 'W/"a-1"', "Last-Modified": NOON})) is is_met
    if fresh != Fresh():
        assert not is_same(fresh, CIMultiDict()), "a preview tells nothing: the file itself is asked"


def test_what_is_not_there_is_gone_and_what_has_no_etag_is_not_compared() -> None:
    assert examine(Answer(404, CIMultiDict({"ETag": '"x"'}), b""), Times(), wrote=True) == Found(GONE)
    assert examine(Answer(200, CIMultiDict(), b""), Times(AT_NOON, AT_NOON), wrote=True) == Found(UNTOLD)


@pytest.mark.parametrize(
    ("etag", "seconds"),
    [
        (f'"{AT_NOON * 10**9 - 5 * 10**8:x}-5f"', AT_NOON - 0.5),
        (f'W/"{AT_NOON * 10**9 - 5 * 10**8:x}-5f"', AT_NOON - 0.5),
        # Not aiohttp's: what looks like its time is another one.
        (f'"{AT_NOON * 10**9 - 3 * 10**9:x}-5f"', AT_NOON),
        ('"abcdefab-1"', AT_NOON),
        ('"a-1"', AT_NOON),
        ("", AT_NOON),
    ],
)
def test_a_files_time_is_told_by_its_etag(etag: str, seconds: float) -> None:
    headers = {"ETag": etag, "Last-Modified": NOON}
    assert written_at(headers) == pytest.approx(seconds, abs=1e-6)
    answer = Answer(200, CIMultiDict(headers), b"")
    assert [examine(answer, Times(began=seconds + more), wrote=True).is_new for more in (-0.1, 0.1)] == [True, False]


@pytest.mark.parametrize(("date", "seconds"), [(NOON, AT_NOON), ("", None), ("now", None), (None, None)])
def test_dates(date: str | None, seconds: float | None) -> None:
    assert seconds_of(date) == seconds


async def test_a_file_of_which_nothing_is_said_is_left_out_if_it_may_be() -> None:
    """The others are known all the same."""
    refs = [FileRef("output", "", name) for name in ("a.png", "stuck.png", "b.png")]
    stuck = asyncio.Event()

    async def view(request: web.Request) -> web.Response:
        if request.query["filename"] == "stuck.png":
            await stuck.wait()
        return web.Response(headers={"ETag": request.query["filename"]})

    app = web.Application()
    app.router.add_get("/view", view)
    async with test_utils.TestServer(app) as server, aiohttp.ClientSession() as session:
        backend: Any = SimpleNamespace(client=ComfyClient(str(server.make_url("")).rstrip("/"), session))

        async def known(must: bool) -> list[str]:
            found = await learn(
                backend, refs, lambda _, answer: Found(told_by(answer.headers)), must=must, patience=0.2
            )
            return sorted(each.etag for each in found.values())

        assert await known(must=False) == ["a.png", "b.png"]
        with pytest.raises(TimedOut):
            await known(must=True)
        stuck.set()
        assert await known(must=True) == ["a.png", "b.png", "stuck.png"]
