"""A short run with object storage; `make chaos ARGS=--storage` has longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.stored_plan import DESTROY, STORE_FAULTS, short_plan, stored_plan
from tests.chaos.stored_run import run
from tests.chaos.stores import own_store


def test_a_seed_is_a_plan_with_every_fault_of_the_store() -> None:
    assert stored_plan(17) == stored_plan(17)
    for seed in (1, 2, 3):
        assert {fault.kind for fault in stored_plan(seed).store} == set(STORE_FAULTS)
        assert DESTROY in stored_plan(seed).base.kinds()


@pytest.mark.timeout(120)
async def test_each_output_is_there_for_its_owner_alone(tmp_path: Path) -> None:
    figures = await run(short_plan(1), tmp_path, own_store, is_short=True)
    assert figures.outputs
    assert not figures.lost
