"""What is remembered of copies that must not run."""

from __future__ import annotations

from gateway.jobs.state.orphans import MAX_ORPHANS, Orphans


def test_one_on_its_way_is_remembered_though_it_is_not_there() -> None:
    orphans = Orphans()
    orphans.add("b1", "x", on_its_way=True)
    orphans.add("b1", "y")
    orphans.absent("b1", ["x", "y"])
    assert orphans.on("b1") == ["x"]
    assert orphans.has_id("x")
    assert not orphans.has_id("y")
    orphans.arrived("b1", "x")
    orphans.absent("b1", ["x"])
    assert orphans.on("b1") == []
    assert not orphans.has_id("x")


def test_each_backend_has_its_own() -> None:
    orphans = Orphans()
    for backend in ("b1", "b2"):
        orphans.add(backend, "x")
        orphans.add(backend, "x", on_its_way=True)
    orphans.remove("b1", "x")
    assert orphans.has_id("x")
    assert orphans.among("b2", ["w", "x"]) == ["x"]
    assert orphans.among("b1", ["w", "x"]) == []
    orphans.absent("b2", ["x"])
    assert not orphans.has_id("x")


def test_what_is_being_stopped_is_known_until_it_is_gone() -> None:
    orphans = Orphans()
    orphans.add("b1", "x")
    orphans.told("b1", ["x", "y"])
    assert orphans.is_told("b1", "x")
    assert not orphans.is_told("b1", "y")
    orphans.remove("b1", "x")
    orphans.add("b1", "x")
    assert not orphans.is_told("b1", "x")


def test_what_was_dealt_with_is_remembered_and_what_is_wanted_again_is_not() -> None:
    orphans = Orphans()
    orphans.add("b1", "x")
    orphans.add("b1", "y")
    orphans.remove("b1", "x")
    orphans.take_back("b1", "y")
    orphans.ended("z")
    assert [orphans.has_ended(each) for each in "xyz"] == [True, False, True]
    assert orphans.on("b1") == []


def test_the_oldest_is_forgotten() -> None:
    orphans = Orphans()
    for n in range(MAX_ORPHANS + 2):
        orphans.ended(str(n))
    assert [orphans.has_ended(str(n)) for n in (1, 2, MAX_ORPHANS + 1)] == [False, True, True]
