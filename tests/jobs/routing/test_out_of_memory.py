"""What is remembered of jobs that ran out of memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy import json_codec
from gateway.jobs.routing.out_of_memory import (
    MAX_OF_TENANT,
    MAX_SIGNATURES,
    REMEMBER_SECONDS,
    OutOfMemory,
    larger_than,
)

GIB = 2**30
NOTES = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(1, 80), st.integers(1, 10**6))


def noted(memory: OutOfMemory, tenant: str, signature: str, size: int, now: float = 1.0) -> None:
    """Note a shortage."""
    memory.note(tenant, signature, "m.safetensors", "b1", size, now)


@given(st.lists(NOTES, max_size=30))
def test_each_tenant_has_its_own(notes: list[tuple[str, str, int, int]]) -> None:
    """A signature's size is the largest that failed for this tenant, also after a restart."""
    memory, largest = OutOfMemory(), dict[tuple[str, str], int]()
    for tenant, signature, size, now in notes:
        noted(memory, tenant, signature, size, float(now))
        largest[tenant, signature] = max(size, largest.get((tenant, signature), 0))
    again = OutOfMemory()
    again.restore(json_codec.loads(json_codec.dumps(memory.rows())))
    for known in (memory, again):
        assert len(known) == len(largest)
        for tenant in "ab":
            for signature in "xyz":
                assert known.size_of(tenant, signature) == largest.get((tenant, signature), 0)


def test_a_shortage_is_forgotten_in_time() -> None:
    changes: list[None] = []
    memory = OutOfMemory(lambda: changes.append(None))
    noted(memory, "a", "x", 8, 1000.0)
    noted(memory, "a", "y", 8, 2000.0)
    memory.expire(1000.0 + REMEMBER_SECONDS - 1)
    assert len(memory) == 2
    memory.expire(1000.0 + REMEMBER_SECONDS)
    assert (memory.size_of("a", "x"), memory.size_of("a", "y")) == (0, 8)
    memory.expire(2000.0 + REMEMBER_SECONDS)
    assert len(memory) == 0
    assert len(changes) == memory.changes == 4
    noted(OutOfMemory(seconds=0), "a", "x", 8)
    assert len(OutOfMemory(seconds=0)) == 0


def test_one_tenant_pushes_out_no_other() -> None:
    """It may fill its own part, and with others all; then the tenant that has most loses its oldest."""
    memory = OutOfMemory()
    noted(memory, "quiet", "x", 8)
    for n in range(MAX_SIGNATURES):
        noted(memory, f"t{n % 30}", f"s{n}", 8)
    assert len(memory) == MAX_SIGNATURES
    assert memory.size_of("quiet", "x") == 8
    for n in range(2 * MAX_OF_TENANT):
        noted(memory, "loud", f"s{n}", 8)
    assert memory.size_of("loud", "s0") == 0
    assert len(memory) <= MAX_SIGNATURES


def test_an_admin_forgets_signatures() -> None:
    memory = OutOfMemory()
    for tenant, signature in (("a", "x"), ("b", "x"), ("b", "y")):
        noted(memory, tenant, signature, 8)
    assert [memory.forget("z"), memory.forget("x"), memory.forget(), memory.forget()] == [0, 2, 1, 0]


@pytest.mark.parametrize("rows", [None, {}, [None], [["a", "x", "m", "b1", 8, 1]], *(
    [[*row]] for row in (("a", "", "m", "b1", 8, 1, 1), ("a", "x", "m", 1, 8, 1, 1), ("a", "x", "m", "b1", True, 1, 1),
                         ("a", "x", "m", "b1", 8, 1, 2**50), ("a" * 200, "x", "", "b1", 8, 1, 1))
)])  # fmt: skip
def test_damaged_rows_are_left_out(rows: Any) -> None:
    memory = OutOfMemory()
    memory.restore(rows)
    assert len(memory) == 0
    assert memory.describe() == []


def test_equal_cards_are_not_larger() -> None:
    """Of two cards of one kind, one may tell a little more."""
    sizes = {"same": 24 * GIB + 2**28, "small": 16 * GIB, "large": 32 * GIB, "cpu": 0}
    assert larger_than(24 * GIB, sizes.items()) == {"large"}
