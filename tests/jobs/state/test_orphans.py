"""What is remembered of copies that must not run."""

from __future__ import annotations

from gateway.jobs.state.orphans import MOST, Copies


def test_one_on_its_way_is_remembered_though_it_is_not_there() -> None:
    copies = Copies()
    copies.add("b1", "x", on_its_way=True)
    copies.add("b1", "y")
    copies.absent("b1", ["x", "y"])
    assert copies.on("b1") == ["x"]
    assert copies.has_id("x")
    assert not copies.has_id("y")
    copies.arrived("b1", "x")
    copies.absent("b1", ["x"])
    assert copies.on("b1") == []
    assert not copies.has_id("x")


def test_each_backend_has_its_own() -> None:
    copies = Copies()
    for backend in ("b1", "b2"):
        copies.add(backend, "x")
        copies.add(backend, "x", on_its_way=True)
    copies.remove("b1", "x")
    assert copies.has_id("x")
    assert copies.among("b2", ["w", "x"]) == ["x"]
    assert copies.among("b1", ["w", "x"]) == []
    copies.absent("b2", ["x"])
    assert not copies.has_id("x")


def test_what_is_being_stopped_is_known_until_it_is_gone() -> None:
    copies = Copies()
    copies.add("b1", "x")
    copies.told("b1", ["x", "y"])
    assert copies.is_told("b1", "x")
    assert not copies.is_told("b1", "y")
    copies.remove("b1", "x")
    copies.add("b1", "x")
    assert not copies.is_told("b1", "x")


def test_what_was_dealt_with_is_remembered_and_what_is_wanted_again_is_not() -> None:
    copies = Copies()
    copies.add("b1", "x")
    copies.add("b1", "y")
    copies.remove("b1", "x")
    copies.take_back("b1", "y")
    copies.ended("z")
    assert [copies.has_ended(each) for each in "xyz"] == [True, False, True]
    assert copies.on("b1") == []


def test_the_oldest_is_forgotten() -> None:
    copies = Copies()
    for n in range(MOST + 2):
        copies.ended(str(n))
    assert [copies.has_ended(str(n)) for n in (1, 2, MOST + 1)] == [False, True, True]
