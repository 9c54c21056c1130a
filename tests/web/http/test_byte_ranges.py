"""Answers to conditional and range requests are those of aiohttp's FileResponse, which answers for all other files."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.web.http.byte_ranges import select
from tests.support.listening import cleaned_up

MODIFIED = 1_700_000_000.25
SIZES = (0, 10)
ETAGS = {size: f"{int(MODIFIED * 1e9):x}-{size:x}" for size in SIZES}
COMPARED = ("ETag", "Last-Modified", "Content-Range", "Accept-Ranges")


def date(seconds: float) -> str:
    """A date of HTTP's."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))


DATES = [
    *(date(MODIFIED + each) for each in (-86400, -1, 0, 1, 86400)),
    "Tuesday, 14-Nov-23 22:13:21 GMT",
    "Tue Nov 14 22:13:21 2023",
    "14 Nov 2023",
    "Tue, 99 Nov 2023 22:13:21 GMT",
    "yesterday",
    "0",
]
MINE = '"MINE"'
# MINE stands for the file's own ETag.
LISTS = [
    "*",
    MINE,
    f"W/{MINE}",
    '"other"',
    f'"other", {MINE}',
    f'"other" ,{MINE},',
    f'"other" {MINE}',
    f"other, {MINE}",
    f'{MINE}, "x',
    MINE.strip('"'),
    '""',
    '" "',
    ",",
    f"w/{MINE}",
    f'W/"other", W/{MINE}',
    "*, *",
]
RANGES = [
    *("bytes=0-", "bytes=0-0", "bytes=3-5", "bytes=9-9", "bytes=10-", "bytes=-1", "bytes=-0", "bytes=-10"),
    *("bytes=-999", "bytes=0-999", "bytes=5-3", "bytes=999-", "bytes=", "bytes=-", "bytes", "", "items=0-1"),
    *("bytes=0-1,3-4", "bytes=0-1, 3-4", "BYTES=1-2", "bytes =1-2", "bytes= 1-2", "bytes=1-2 ", "bytes=1 - 2"),
    *("bytes=+1-2", "bytes=1-2-3", "bytes=0x1-2", "bytes=00-01", "bytes=-00", "bytes=--1", "bytes=1-2;q=1"),
    *(f"bytes=0-{'9' * 30}", f"bytes={'9' * 30}-", f"bytes=-{'9' * 30}", f"bytes={'9' * 5000}-"),
]
HEADERS = {
    "Range": RANGES,
    "If-Match": LISTS,
    "If-None-Match": LISTS,
    "If-Modified-Since": DATES,
    "If-Unmodified-Since": DATES,
    "If-Range": DATES[:7],
}
# Each value alone, each range with each If-Range, and the pairs of which one header takes the other's part.
TABLE = [
    *({name: value} for name, values in HEADERS.items() for value in values),
    *({"Range": value, "If-Range": condition} for value in RANGES[:6] for condition in HEADERS["If-Range"]),
    *({"If-Match": value, "If-Unmodified-Since": each} for value in LISTS[:6] for each in DATES[:5]),
    *({"If-None-Match": value, "If-Modified-Since": each} for value in LISTS[:6] for each in DATES[:5]),
    *({"If-Match": one, "If-None-Match": other} for one in LISTS[:5] for other in LISTS[:5]),
    *({"If-None-Match": value, "Range": each} for value in LISTS[:5] for each in RANGES[:6]),
]


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[int]:
    """Serve a file of each size with a FileResponse."""
    for size in SIZES:
        path = folder / str(size)
        path.write_bytes(bytes(range(size)))
        os.utime(path, ns=(0, int(MODIFIED * 1e9)))

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(folder / request.match_info["size"])

    app = web.Application()
    app.router.add_get("/{size}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await cleaned_up(runner)


async def ask(port: int, method: str, size: int, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
    """Ask the oracle, with each byte as it stands: (status, headers, body)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} /{size} HTTP/1.1", "Host: x", "Connection: close", *(f"{k}: {v}" for k, v in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status, *rest = head.decode().split("\r\n")
    told: CIMultiDict[str] = CIMultiDict((line.split(": ", 1)[0], line.split(": ", 1)[1]) for line in rest)
    return int(status.split()[1]), told, b"" if "Transfer-Encoding" in told else body


@pytest.mark.parametrize("size", SIZES)
async def test_answers_are_those_of_other_files(tmp_path: Path, size: int) -> None:
    etag = ETAGS[size]
    async with served(tmp_path) as port:
        for method in ("GET", "HEAD"):
            for each in TABLE if method == "GET" else TABLE[::3]:
                headers = {name: value.replace("MINE", etag) for name, value in each.items()}
                status, told, body = await ask(port, method, size, headers)
                mine = select(CIMultiDict((k, v.strip()) for k, v in headers.items()), size, etag, MODIFIED)
                about: Any = (method, each, status, dict(told), mine)
                assert mine.status == status, about
                assert {k: mine.headers.get(k) for k in COMPARED} == {k: told.get(k) for k in COMPARED}, about
                if "Content-Length" in told:
                    assert mine.headers.get("Content-Length") == told["Content-Length"], about
                if method == "GET":
                    assert bytes(range(size))[mine.start : mine.end] == body, about


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-Range": '"tag"'}, 206),
        ({"If-Range": 'W/"tag"'}, 200),
        ({"If-Range": '"other"'}, 200),
        ({"If-Range": "yesterday"}, 200),
        # No FileResponse is asked for such a date (`without_bad_dates`).
        ({"If-Range": "1 Jan 99999999999"}, 200),
        ({"If-None-Match": '"*"'}, 206),
        ({"If-Match": '"*"'}, 412),
    ],
)
def test_answers_that_differ_from_those_of_other_files(headers: dict[str, str], status: int) -> None:
    assert select(CIMultiDict({"Range": "bytes=1-2", **headers}), 10, "tag", MODIFIED).status == status


VALUES = st.one_of(
    st.text(max_size=20),
    *map(st.sampled_from, HEADERS.values()),
    st.builds("bytes={}-{}".format, st.integers(0, 30), st.integers(0, 30)),
)


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(sorted(HEADERS)), VALUES), st.integers(0, 20))
def test_no_header_makes_a_wrong_answer(headers: dict[str, str], size: int) -> None:
    found = select(CIMultiDict(headers), size, "MINE", MODIFIED)
    assert 0 <= found.start <= found.end <= size
    length = int(found.headers.get("Content-Length", 0))
    assert length == found.end - found.start
    match found.status:
        case 200:
            assert length == size
        case 206:
            assert length > 0
            assert found.headers["Content-Range"] == f"bytes {found.start}-{found.end - 1}/{size}"
        case _:
            assert found.status in (304, 412, 416)
            assert length == 0
