"""Requirements: what they mean, and that each is read as the settings read it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.routing.requirements import (
    GIB,
    MAX_CONDITIONS,
    MAX_LENGTH,
    MalformedRequirement,
    is_met,
    joined,
    parse_conditions,
    parse_requirement,
)
from gateway.settings.base import checked_condition, is_label

# What ComfyUI tells of cards, in GiB, and the GB by which they are sold.
CARDS = {7.75: 8, 11.76: 12, 14.58: 16, 15.77: 16, 22.03: 24, 23.65: 24, 24.0: 24, 31.36: 32, 44.4: 48, 79.1: 80}
LABELS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", fullmatch=True)
TAGS = st.sampled_from(["fast", "big", "vram", "a"])
VRAM = st.builds("vram{}{}".format, st.sampled_from([">=", ">", "<=", "<", "="]), st.integers(0, 999_999))
AMOUNTS = st.floats(0, 400).map(lambda told: int(told * GIB))


@pytest.mark.parametrize(("told", "sold"), CARDS.items())
def test_a_card_counts_as_it_is_sold(told: float, sold: int) -> None:
    """The driver, and error correction, take some of its memory."""

    def meets(text: str) -> bool | None:
        return is_met(parse_requirement(text), frozenset(), int(told * GIB))

    assert [meets(f"vram{operator}{sold}") for operator in (">=", "=", "<=", ">", "<")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert not meets(f"vram>={sold * 1.25}")
    assert meets(f"vram>{sold / 1.25}")


@given(st.integers(1, 400), AMOUNTS)
def test_operators_agree(asked: int, told: int) -> None:
    """Each of below, equal and above excludes the others, and one holds."""

    def meets(operator: str) -> bool:
        return is_met(parse_requirement(f"vram{operator}{asked}"), frozenset(), told) is True

    assert [meets("<"), meets("="), meets(">")].count(True) == 1
    assert meets(">=") == (meets("=") or meets(">"))
    assert meets("<=") == (meets("=") or meets("<"))


@given(st.lists(TAGS | VRAM, max_size=6), st.sets(TAGS), st.none() | AMOUNTS)
def test_all_conditions_must_hold(texts: list[str], labels: set[str], told: int | None) -> None:
    """What is not known is never taken for met, and one condition that fails is enough."""
    requirement = parse_conditions(texts)
    each = [is_met((condition,), frozenset(labels), told) for condition in requirement]
    expected = False if False in each else None if None in each else True
    assert is_met(requirement, frozenset(labels), told) is expected
    assert parse_conditions(joined(requirement).split(",") if requirement else []) == requirement


@given(LABELS | VRAM | st.text(max_size=12) | st.from_regex(r"vram ?[<>=]{1,2} ?[0-9.]{1,8}", fullmatch=True))
def test_the_settings_read_the_same(text: str) -> None:
    def reads(read: object) -> bool:
        try:
            return bool(read(text) or True)  # type: ignore[operator]
        except ValueError:
            return False

    if text == text.strip(" \t"):
        assert reads(checked_condition) == reads(lambda one: parse_conditions([one]))
    if reads(checked_condition):
        assert is_label(text) == bool(parse_conditions([text])[0].label)


def test_a_requirement_is_read() -> None:
    assert joined(parse_requirement(" vram >= 24 ,fast,vram>=24,fast")) == "vram>=24,fast"
    assert parse_requirement(" ") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vram>=24,", "the condition '' is malformed; give conditions separated by commas"),
        ("vram>=-1", "the condition 'vram>=-1' is malformed"),
        ("ram>=1", "such as vram>=24,fast"),
        ("vram>=1e3", "malformed"),
        ("vram==24", "malformed"),
        ("gpu fast", "malformed"),
        ("vram>=٢٤", r"'vram>=\u0662\u0664'"),
        ("x\udc80", r"'x\udc80'"),
        ("a" * 33, "malformed"),
        (",".join(["a"] * (MAX_CONDITIONS + 1)), f"at most {MAX_CONDITIONS} are taken"),
        ("a," * MAX_LENGTH, f"at most {MAX_LENGTH} are taken"),
    ],
)
def test_malformed_requirements(text: str, said: str) -> None:
    with pytest.raises(MalformedRequirement) as refused:
        parse_requirement(text)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 500
