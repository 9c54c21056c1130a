"""Rules that hold for all policies, on fleets and jobs at random."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.jobs.routing.policies.registry import POLICIES
from gateway.jobs.routing.snapshot import BackendView, Head
from tests.support.routing import head, snapshot

_names = st.sampled_from("abcd")
_views = st.lists(
    st.builds(
        BackendView,
        _names,
        st.integers(0, 2),
        st.floats(0, 100),
        st.frozensets(st.sampled_from("xy")),
        st.booleans(),
        st.integers(0, 5),
        st.integers(0, 1),
        st.booleans(),
        used_at=st.floats(0, 9),
        factor=st.sampled_from([0.5, 1.0]),
        weight=st.sampled_from([0.5, 1.0]),
    ),
    unique_by=lambda view: view.name,
    max_size=4,
)
_heads = st.lists(
    st.builds(
        head,
        st.sampled_from("xyz"),
        st.integers(0, 300),
        tenant=st.sampled_from(["one", "two"]),
        number=st.floats(0, 9),
        lead=st.floats(0, 100),
        since=st.floats(-500, 0),
        count=st.integers(1, 40),
        able=st.none() | st.frozensets(_names),
    ),
    max_size=6,
)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=40, deadline=None)
@given(views=_views, heads=_heads)
def test_only_eligible_backends_are_chosen(name: str, views: list[BackendView], heads: list[Head]) -> None:
    policy = POLICIES[name]()
    choice = policy.choose(snapshot(views, heads))
    open_names = {view.name for view in views if view.slots > 0}
    possible = [each for each in heads if each.able is None or each.able & open_names] if open_names else []
    if choice is not None:
        assert any(choice.head is each for each in possible)
        assert choice.backend in open_names
        assert choice.head.able is None or choice.backend in choice.head.able
    elif not policy.binds_late and name != "pinned":
        assert not possible


@pytest.mark.parametrize("name", POLICIES)
def test_no_job_is_overtaken_for_ever(name: str) -> None:
    """Short jobs of a warm model come for ever; a long one of another model gets its turn all the same."""
    policy, random = POLICIES[name](), Random(7)
    now, ends = 0.0, {"a": 0.0, "b": 0.0}
    held = {"a": frozenset({"x"}), "b": frozenset({"x"})}
    for n in range(5_000):
        late = head("x", 10, number=n + 1, since=max(now - 20.0, 0.0), count=50)
        views = [BackendView(each, int(end <= now), end, held[each]) for each, end in ends.items()]
        choice = policy.choose(snapshot(views, [head("y", 300), late], now=now))
        if choice is None:
            now = max(now + 0.5, min(ends.values()))
        elif choice.head is not late:
            return
        else:
            ends[choice.backend] = now + random.uniform(5, 15)
    pytest.fail("the long job never started")
