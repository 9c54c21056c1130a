"""Which of a prompt's files its tenant must not name."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.comfy.graph import survey
from gateway.comfy.outputs import FileRef
from gateway.fleet.files import FileIndex, Upload
from gateway.fleet.placements import Placement, Placements
from gateway.jobs.inputs import Inputs
from gateway.tenants.keys import Sight


@pytest.mark.parametrize("folder", ["annas", "ANNAS/", "./annas", {"__value__": "annas"}, "annas/x", ""])
def test_a_folder_in_which_anothers_upload_lies_is_foreign(folder: object) -> None:
    inputs = _inputs({"anna": FileRef("input", "annas/x", "a.png"), "ben": FileRef("input", "bens", "b.png")})
    node = {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": folder}}
    files = survey({"1": node}).files
    assert inputs.foreign("ben", files) == list(files) != []
    own = survey({"1": {**node, "inputs": {"folder": "bens"}}}).files
    assert inputs.foreign("ben", own) == []


def test_a_name_that_another_node_will_say_is_foreign() -> None:
    """Painter takes a link as its mask, and StringConcatenate can say any name."""
    inputs = _inputs({})
    files = survey({"1": {"class_type": "Painter", "inputs": {"mask": ["2", 0]}}}, {("Painter", "mask")}).files
    assert inputs.foreign("ben", files) == list(files) != []


def _inputs(placed: dict[str, FileRef]) -> Inputs:
    files, placements = FileIndex(), Placements()
    for tenant, name in placed.items():
        files.put_upload(tenant, name, Upload(tenant, 1))
        placements.put("b1", name, tenant, Placement(name, ""))
    unused: Any = None
    return Inputs(unused, files, placements, unused, unused, unused, unused, sight=lambda _: Sight.OWN)
