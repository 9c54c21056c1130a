"""Orders that cost little to keep: they say the same as a look at everything."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.webhooks.orders import ByAge, Tally

NAMES = st.sampled_from("abcd")


@settings(max_examples=50)
@given(st.lists(st.tuples(NAMES, st.booleans())))
def test_a_tally_knows_the_largest(steps: list[tuple[str, bool]]) -> None:
    tally, counts = Tally(), Counter[str]()
    for name, is_added in steps:
        if is_added:
            tally.add(name)
            counts[name] += 1
        elif counts[name]:
            tally.remove(name)
            counts[name] -= 1
        top = max(counts.values(), default=0)
        assert (tally.top, tally.total) == (top, counts.total())
        assert [tally[each] for each in "abcd"] == [counts[each] for each in "abcd"]
        assert not top or counts[tally.largest()] == top
    # Nothing is kept of what counts nothing.
    assert sum(map(len, tally._groups.values())) == len(tally._counts) == len(+counts)


def test_ids_are_taken_by_age_whatever_the_order_in_which_they_came() -> None:
    kept = set("abc")
    ages = ByAge(kept.__contains__)
    for id_, at in (("b", 2.0), ("c", 9.0), ("a", 1.0), ("gone", 0.0)):
        ages.put(id_, at, len(kept))
    assert ages.take(2.0, 1) == ["a"]
    assert ages.take(2.0, 9) == ["b"]
    assert ages.take(2.0, 9) == []
    assert ages.take(9.0, 9) == ["c"]


def test_ids_that_are_gone_take_no_memory() -> None:
    ages = ByAge({"kept"}.__contains__)
    ages.put("kept", 0.0, 1)
    for n in range(1_000):
        ages.put(f"gone{n}", 1.0, 1)
    assert len(ages) < 100
    assert ages.take(1.0, 2_000) == ["kept"]
