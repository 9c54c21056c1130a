"""The fuzz targets in the suite: their seeds, all that was ever found, and some hundred inputs more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

FINDINGS = Path(__file__).parent / "findings"
FOUND = sorted(path.relative_to(FINDINGS) for path in FINDINGS.glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("found", FOUND, ids=str)
def test_what_was_found_once(found: Path) -> None:
    TARGETS[found.parent.name].run((FINDINGS / found).read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150)
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)
    for seed in TARGETS[name].seeds[:2]:
        TARGETS[name].run(seed[: len(data)] + data)
