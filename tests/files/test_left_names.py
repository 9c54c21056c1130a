"""Names on backends that mean another file by now."""

from __future__ import annotations

from gateway.comfy.file_refs import FileRef
from gateway.files.left_names import LeftNames


def name(n: int) -> tuple[str, str, FileRef]:
    """A tenant's file on a backend."""
    return "anna", "b1", FileRef("output", "", f"ComfyUI_{n:05}_.png")


def test_past_its_maximum_it_holds_every_name() -> None:
    left = LeftNames(2)
    left.add(name(1))
    left.add(name(2))
    assert (name(1) in left, name(2) in left, name(3) in left) == (True, True, False)
    left.add(name(4))
    assert all(name(n) in left for n in range(6))
    left.add(name(5))
    assert len(left._names) == 0
