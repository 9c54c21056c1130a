"""Which backends have lost their names."""

from __future__ import annotations

import pytest

from gateway.fleet.renames import MAX_NAMED, lost_names, urls_to_note
from gateway.store.known_backends import KnownBackends

A, B, C = "http://a:1", "http://b:1", "http://c:1"
KNOWN = KnownBackends({"gpu0": 5, "gpu1": 7}, {"gpu0": A, "gpu1": B, "gpu2": C})


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"gpu0": A, "gpu1": B, "gpu2": C}, []),
        ({"gpu0": A, "gpu1": B}, []),
        ({"gpu0": A, "gpu1": "http://moved:1"}, []),
        ({"gpu0": A}, ["7 files are known on gpu1, which is not configured", "give the backend its former name"]),
        (
            {"gpu0": A, "gpu-1": B},
            ["7 files are known on gpu1", "give gpu-1, which is where gpu1 was, its former"],
        ),
        (
            {"gpu0": B, "gpu1": A},
            ["gpu0 is at http://b:1, where gpu1 was, and 5 files", "gpu1 is at http://a:1"],
        ),
        # gpu2 has no files that could be lost.
        ({"gpu0": A, "gpu1": B, "gpu2": A}, []),
    ],
)
def test_what_is_said(now: dict[str, str], said: list[str]) -> None:
    found = lost_names(now, KNOWN)
    assert bool(found) == bool(said), found
    assert all(text in " ".join(found) for text in said), found


def test_a_journal_of_an_earlier_version_has_no_urls() -> None:
    assert lost_names({"gpu0": B, "gpu1": A}, KnownBackends({"gpu0": 5, "gpu1": 7})) == []


def test_few_are_named() -> None:
    found = lost_names({}, KnownBackends({f"gpu{n}": 1 for n in range(100)}))
    assert len(found) == MAX_NAMED + 1
    assert found[-1] == "90 more warnings of this kind"


def test_the_urls_of_removed_backends_are_kept_while_files_are_known_there() -> None:
    assert urls_to_note({"gpu0": "http://new:1"}, KNOWN) == {"gpu0": "http://new:1", "gpu1": B}


def test_a_swap_that_is_taken_back_is_well() -> None:
    swapped = {"gpu0": B, "gpu1": A, "gpu3": C}
    noted = KnownBackends(KNOWN.files, urls_to_note(swapped, KNOWN))
    assert noted.urls == {"gpu0": A, "gpu1": B, "gpu3": C}
    assert len(lost_names(swapped, noted)) == 2
    assert lost_names({"gpu0": A, "gpu1": B}, noted) == []
