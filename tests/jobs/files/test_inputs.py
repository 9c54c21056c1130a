"""Which of a prompt's files its tenant must not name."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.comfy.file_refs import FileRef
from gateway.comfy.graph import survey
from gateway.files.index import FileIndex, Upload
from gateway.files.placements import Placement, Placements
from gateway.jobs.files.inputs import Inputs
from gateway.tenants.keys import FileVisibility


@pytest.mark.parametrize("visibility", [FileVisibility.OWN, FileVisibility.UNCLAIMED])
@pytest.mark.parametrize("folder", ["annas", "ANNAS/", "./annas", {"__value__": "annas"}, "annas/x", ""])
def test_a_folder_in_which_anothers_upload_lies_is_foreign(folder: object, visibility: FileVisibility) -> None:
    placed = {"anna": [FileRef("input", "annas/x", "a.png")], "ben": [FileRef("input", "bens", "b.png")]}
    inputs = _inputs(placed, visibility)
    node = {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": folder}}
    files = survey({"1": node}).files
    assert inputs.foreign("ben", files) == list(files) != []
    own = survey({"1": {**node, "inputs": {"folder": "bens"}}}).files
    assert inputs.foreign("ben", own) == []


def test_ten_thousand_folders_and_ten_thousand_uploads() -> None:
    """Each folder is looked into once, however often and in whatever spelling it is named: else this takes minutes."""
    bens = [FileRef("input", "bens", f"{n}.png") for n in range(10_000)]
    inputs = _inputs({"anna": [FileRef("input", "annas", f"{n}.png") for n in range(10_000)], "ben": bens})
    spellings = ["".join(letters) for letters in product(*((c, c.upper()) for c in "bens"))]
    names = [*(f"nowhere{n}" for n in range(5_000)), *(spellings[n % len(spellings)] for n in range(5_000))]
    node = {"class_type": "LoadImageDataSetFromFolder"}
    files = survey({str(n): {**node, "inputs": {"folder": name}} for n, name in enumerate([*names, "annas"])}).files
    assert inputs.foreign("ben", files) == [files[-1]]


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "x.png [output]", "x~b2.png [output]"])
def test_what_a_guest_made_is_foreign_to_a_team(name: str) -> None:
    """By what the guest calls it, and by what a backend does."""
    inputs = _inputs({"guest": [FileRef("input", "", "a.png")]}, FileVisibility.UNCLAIMED)
    for backend in ("b1", "b2"):
        inputs.files.claim("guest", backend, FileRef("output", "", "x.png"))
    files = survey({"1": {"class_type": "LoadImage", "inputs": {"image": name}}}).files
    assert inputs.foreign("team", files) == list(files) != []
    byhand = survey({"1": {"class_type": "LoadImage", "inputs": {"image": "y.png [output]"}}}).files
    assert inputs.foreign("team", byhand) == []
    inputs.files.claim("team", "b2", FileRef("output", "", "y.png"))
    assert inputs.foreign("guest", byhand) == list(byhand)


def test_a_name_that_another_node_will_say_is_foreign() -> None:
    """Painter takes a link as its mask, and StringConcatenate can say any name."""
    inputs = _inputs({})
    files = survey({"1": {"class_type": "Painter", "inputs": {"mask": ["2", 0]}}}, {("Painter", "mask")}).files
    assert inputs.foreign("ben", files) == list(files) != []


def _inputs(placed: dict[str, list[FileRef]], visibility: FileVisibility = FileVisibility.OWN) -> Inputs:
    files, placements = FileIndex(), Placements()
    for tenant, names in placed.items():
        for name in names:
            files.put_upload(tenant, name, Upload(tenant, 1))
            placements.put("b1", name, tenant, Placement(name, ""))
    unused: Any = None
    fleet: Any = SimpleNamespace(backends={"b1": None, "b2": None})
    return Inputs(
        fleet,
        files,
        unused,
        placements,
        unused,
        unused,
        unused,
        unused,
        visibility=lambda _: visibility,
        judged=lambda _: True,
        places=unused,
        is_reviewed=lambda _: True,
    )
