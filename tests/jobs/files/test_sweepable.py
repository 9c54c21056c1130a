"""The rule of the sweep: which files of a backend's folder may be deleted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.comfy.file_refs import FileRef
from gateway.files.deleted import Deleted
from gateway.files.forgotten import Forgotten
from gateway.files.identity import CACHED, GONE, UNTOLD, are_same
from gateway.jobs.files.sweepable import Claim, Delays, Facts, Placed, Seen, Verdict, judge

SEEN = Seen(FileRef("output", "", "ComfyUI_00001_.png"), 16, 1_700_000_000_123_456_789)
OTHER = replace(SEEN, mtime_ns=SEEN.mtime_ns + 1).etag
NOW, WEEK, HOUR = 1_800_000_000_000, 7 * 86_400.0, 3600.0
DELAYS = Delays(WEEK, HOUR)
LONG_AGO, LATELY = NOW - int(WEEK * 1000), NOW - int(WEEK * 1000) + 1


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        (Facts(), Verdict.UNKNOWN),
        (Facts([Claim(SEEN.etag, is_stored=True)]), Verdict.STORED),
        (Facts([Claim(SEEN.etag, is_stored=True)], is_named=True), Verdict.IN_USE),
        (Facts([Claim(SEEN.etag)]), Verdict.NOT_STORED),
        (Facts([Claim(SEEN.etag, is_stored=True), Claim(SEEN.etag)]), Verdict.NOT_STORED),
        (Facts([Claim(SEEN.etag, is_stored=True), Claim(None)]), Verdict.IN_USE),
        (Facts([Claim(SEEN.etag, is_stored=True), Claim(CACHED)]), Verdict.IN_USE),
        (Facts([Claim(SEEN.etag, is_stored=True), Claim(UNTOLD, is_stored=True)]), Verdict.UNKNOWN),
        (Facts([Claim(SEEN.etag, is_stored=True), Claim(GONE)]), Verdict.STORED),
        (Facts([Claim(OTHER, is_stored=True)]), Verdict.CHANGED),
        (Facts([Claim(GONE, is_stored=True)]), Verdict.CHANGED),
        (Facts(deleted=Deleted("t", SEEN.etag)), Verdict.DELETED),
        (Facts(deleted=Deleted("t", OTHER)), Verdict.CHANGED),
        (Facts(deleted=Deleted("t", UNTOLD)), Verdict.CHANGED),
        (Facts([Claim(SEEN.etag)], deleted=Deleted("t", SEEN.etag)), Verdict.NOT_STORED),
        (Facts(forgotten=Forgotten(SEEN.etag, LONG_AGO)), Verdict.FORGOTTEN),
        (Facts(forgotten=Forgotten(SEEN.etag, LATELY)), Verdict.RECENT),
        (Facts(forgotten=Forgotten(OTHER, LONG_AGO)), Verdict.CHANGED),
        (Facts([Claim(SEEN.etag)], forgotten=Forgotten(SEEN.etag, LONG_AGO)), Verdict.NOT_STORED),
        (Facts([Claim(OTHER)], forgotten=Forgotten(SEEN.etag, LONG_AGO)), Verdict.FORGOTTEN),
        (Facts(placed=Placed(SEEN.etag, HOUR)), Verdict.UNUSED),
        (Facts(placed=Placed(SEEN.etag, HOUR - 1)), Verdict.RECENT),
        (Facts(placed=Placed(SEEN.etag, HOUR, is_read=True)), Verdict.IN_USE),
        (Facts(placed=Placed(OTHER, HOUR)), Verdict.CHANGED),
        (Facts(placed=Placed(UNTOLD, HOUR)), Verdict.CHANGED),
    ],
)
def test_a_file_is_deletable_only_for_a_reason(facts: Facts, verdict: Verdict) -> None:
    assert judge(SEEN, facts, NOW, DELAYS) is verdict


def test_a_time_without_fractions_is_the_same() -> None:
    """Network file systems drop them some time after a file was written."""
    later = replace(SEEN, mtime_ns=SEEN.mtime_ns // 10**9 * 10**9)
    assert judge(later, Facts([Claim(SEEN.etag, is_stored=True)]), NOW, DELAYS) is Verdict.STORED


etags = st.sampled_from([SEEN.etag, OTHER, UNTOLD, GONE, CACHED, '"1-10"', '"etag of another server"'])
ages = st.sampled_from([NOW, LATELY, LONG_AGO, 0])
all_facts = st.builds(
    Facts,
    claims=st.lists(st.builds(Claim, st.none() | etags, st.booleans()), max_size=3),
    deleted=st.none() | st.builds(Deleted, st.just("t"), etags),
    forgotten=st.none() | st.builds(Forgotten, etags, ages),
    placed=st.none() | st.builds(Placed, etags, st.sampled_from([0.0, HOUR]), st.booleans()),
    is_named=st.booleans(),
)
seen_files = st.builds(
    Seen,
    st.just(SEEN.ref),
    st.sampled_from([0, 16, 17]),
    st.sampled_from([SEEN.mtime_ns, SEEN.mtime_ns + 1, SEEN.mtime_ns + 10**9, 0, 1]),
)


@given(seen_files, all_facts)
def test_no_other_file_is_ever_deletable(seen: Seen, facts: Facts) -> None:
    """Not one that an open job names, of another size or time, or that is neither stored nor anybody's no more."""
    if not judge(seen, facts, NOW, DELAYS).is_deletable:
        return
    assert not facts.is_named
    own = [claim for claim in facts.claims if claim.etag and are_same(claim.etag, seen.etag)]
    assert all(claim.is_stored for claim in own)
    assert all(claim.etag not in (None, CACHED, UNTOLD) for claim in facts.claims)
    reasons = [
        bool(own),
        facts.deleted is not None and facts.deleted.etag == seen.etag,
        facts.forgotten is not None and facts.forgotten.etag == seen.etag and facts.forgotten.forgotten_at <= LONG_AGO,
        facts.placed is not None and facts.placed.etag == seen.etag and facts.placed.idle_seconds >= HOUR,
    ]
    assert any(reasons)


@given(seen_files, all_facts)
def test_a_name_alone_makes_no_file_deletable(seen: Seen, facts: Facts) -> None:
    known = [claim.etag for claim in facts.claims]
    known += [each.etag for each in (facts.deleted, facts.forgotten, facts.placed) if each is not None]
    assume(not any(etag and are_same(etag, seen.etag) for etag in known))
    assert not judge(seen, facts, NOW, DELAYS).is_deletable
