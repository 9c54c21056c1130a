"""Three seeds that have every kind of fault between them; `make chaos` runs more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.plan import BACKEND_FAULTS, GATEWAY_FAULTS, JOBS, KILLED, plan
from tests.chaos.run import run

SEEDS = (1, 2, 13)


def test_a_seed_is_a_plan() -> None:
    assert plan(17) == plan(17)
    assert plan(17) != plan(18)
    assert sum(len(client.tasks) for client in plan(17).clients) == JOBS


def test_the_seeds_have_every_fault() -> None:
    assert set.union(*(plan(seed).kinds() for seed in SEEDS)) == {*BACKEND_FAULTS, *GATEWAY_FAULTS, KILLED}


# All waits inside are bounded; together they may be longer than what other tests have.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
async def test_no_job_is_lost(seed: int, tmp_path: Path) -> None:
    figures = await run(seed, tmp_path)
    assert figures.refused_for_space
