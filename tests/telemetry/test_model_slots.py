"""Names of models in metrics."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.model_slots import KEEP_SECONDS, MAX_NAME, NONE, OTHER, ModelSlots

DAY = KEEP_SECONDS


def test_a_model_keeps_its_slot_until_it_was_not_used_for_a_day() -> None:
    slots = ModelSlots(maximum=2)
    assert [slots.use(name, 0.0) for name in ("a", "b", "c", "a", "")] == [
        ("a", None),
        ("b", None),
        (OTHER, None),
        ("a", None),
        (NONE, None),
    ]
    assert slots.use("a", DAY - 1) == ("a", None)
    assert slots.use("c", DAY - 1) == (OTHER, None)
    assert slots.use("c", DAY) == ("c", "b")
    assert slots.use("b", DAY) == (OTHER, None)


def test_a_model_that_is_used_much_more_often_takes_the_slot_of_the_least_used() -> None:
    slots = ModelSlots(maximum=2)
    for at in range(30):
        slots.use("often", float(at))
    for at in range(6):
        slots.use("seldom", 100.0 + at)
    labels = [slots.use("new", 200.0 + at) for at in range(14)]
    # Not at its tenth use, because that is less than twice as often as the six of the other one.
    assert labels == [(OTHER, None)] * 11 + [("new", "seldom"), ("new", None), ("new", None)]
    assert [slots.use("seldom", 300.0 + at)[0] for at in range(3)] == [OTHER] * 3
    assert slots.use("often", 400.0) == ("often", None)


def test_uses_of_the_day_before_count_less() -> None:
    slots = ModelSlots(maximum=1)
    for _ in range(30):
        slots.use("old", 0.0)
    slots.use("old", 2 * DAY)
    assert [slots.use("new", 2 * DAY)[1] for _ in range(11)] == [None] * 10 + ["old"]


def test_slots_outlast_a_restart() -> None:
    before, after = ModelSlots(maximum=2), ModelSlots(maximum=2)
    for at, name in enumerate(("a", "b")):
        before.use(name, float(at))
    after.restore(((name, at, before.uses[name]) for name, at in before.used.items()), 10.0)
    assert [after.use(name, 10.0) for name in ("c", "b", "a")] == [(OTHER, None), ("b", None), ("a", None)]


def test_a_clock_that_was_set_back_keeps_no_slot_for_ever() -> None:
    slots = ModelSlots(maximum=1)
    slots.restore([("a", 1e12, 1.0)], 0.0)
    assert slots.use("b", DAY) == ("b", "a")


def test_fewer_slots_than_before_are_those_used_last() -> None:
    slots = ModelSlots(maximum=2)
    slots.restore([("a", 1.0, 1.0), ("b", 3.0, 1.0), ("c", 2.0, 1.0)], 4.0)
    assert set(slots.used) == {"b", "c"}


def test_names_that_are_odd() -> None:
    slots = ModelSlots()
    assert slots.use("sdxl\\base.safetensors", 0.0)[0] == slots.use("sdxl/base.safetensors", 0.0)[0]
    assert slots.use("\ud800.ckpt", 0.0) == ("?.ckpt", None)
    assert len(slots.use("x" * 5000, 0.0)[0]) == MAX_NAME
    assert [slots.use(name, 0.0) for name in (OTHER, NONE)] == [(OTHER, None)] * 2


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 3 * DAY)), max_size=200))
def test_never_more_names_than_slots(uses: list[tuple[int, float]]) -> None:
    slots, shown = ModelSlots(), set()
    for model, at in sorted(uses, key=lambda each: each[1]):
        label, evicted = slots.use(f"m{model}", at)
        shown.discard(evicted)
        shown.add(label)
        assert shown - {OTHER} == set(slots.used)
        assert len(slots.used) <= 20
