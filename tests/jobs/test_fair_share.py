"""Whose turn it is."""

from __future__ import annotations

from gateway.jobs.fair_share import FairShare


def order(tags: dict[str, float]) -> list[str]:
    """The jobs by their tags."""
    return sorted(tags, key=lambda job: tags[job])


def test_two_tenants_take_turns() -> None:
    """A queue of ten is not in the way of another tenant's one."""
    share = FairShare()
    tags = {f"a{n}": share.tag("a") for n in range(10)}
    tags["b0"] = share.tag("b")
    assert order(tags).index("b0") <= 1


def test_a_weight_of_two_gets_two_thirds() -> None:
    share = FairShare()
    tags = {f"a{n}": share.tag("a", 2.0) for n in range(20)} | {f"b{n}": share.tag("b") for n in range(20)}
    first = order(tags)[:15]
    assert 9 <= sum(job.startswith("a") for job in first) <= 11


def test_idleness_earns_no_credit() -> None:
    share = FairShare()
    for _ in range(100):
        share.left(share.tag("a"))
    tags = {"a": share.tag("a"), "b0": share.tag("b"), "b1": share.tag("b")}
    assert order(tags)[:2] in (["b0", "a"], ["a", "b0"])


def test_front_goes_before_the_tenants_own_and_not_before_others() -> None:
    share = FairShare()
    other = share.tag("b")
    own = [share.tag("a") for _ in range(3)]
    front = share.front_tag("a", min(own))
    assert front < own[0]
    assert share.tag("a") == own[-1] + 2
    assert abs(other - own[0]) < 1


def test_restored_tags_go_on() -> None:
    share = FairShare()
    share.restore("a", 41.0)
    assert share.tag("a") == 42.0
    share.left(42.0)
    share.forget_idle(set())
    assert share.tag("a") == 43.0
