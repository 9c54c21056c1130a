"""The short chaos run with object storage, with a SeaweedFS that is killed and filled up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.stored_plan import short_plan
from tests.chaos.stored_run import run
from tests.chaos.stores import seaweed_store


@pytest.mark.timeout(180)
async def test_each_output_is_in_seaweedfs_for_its_owner_alone(tmp_path: Path) -> None:
    figures = await run(short_plan(1), tmp_path, seaweed_store, is_short=True)
    assert figures.outputs
    assert not figures.lost
