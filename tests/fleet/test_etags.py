"""What files are known by, beside their names."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from gateway.comfy.client import Answer
from gateway.fleet.etags import GONE, LATE_SECONDS, UNTOLD, etag_of, is_same, seconds_of

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
    assert is_same(known, told) is same


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
    assert etag_of(Answer(200, headers, b""), None if ended is None else int(ended * 1000)) == etag


def test_what_is_not_there_is_gone_and_what_has_no_etag_is_not_compared() -> None:
    assert etag_of(Answer(404, CIMultiDict({"ETag": '"x"'}), b""), None) == GONE
    assert etag_of(Answer(200, CIMultiDict(), b""), AT_NOON * 1000) == UNTOLD


@pytest.mark.parametrize(("date", "seconds"), [(NOON, AT_NOON), ("", None), ("now", None), (None, None)])
def test_dates(date: str | None, seconds: float | None) -> None:
    assert seconds_of(date) == seconds
