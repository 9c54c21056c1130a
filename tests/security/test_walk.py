"""The walk's short form, over a simulated ComfyUI: nothing of another tenant's or of the host's comes back.

The long form walks a real one: `make walk`.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from tests.lab import Lab
from tests.security.walk.__main__ import told, walk
from tests.security.walk.run import Figures, Walk


async def walked(lab: Lab, **options: Any) -> tuple[Figures, Walk]:
    base = lab.directory / "comfyui"
    simulator = await lab.simulator("--base-dir", str(base))
    chosen: dict[str, Any] = {
        "base_directory": base,
        "classes": None,
        "ways": "*",
        "limit": None,
        "seed": 1,
        "trust": [],
        "environment_word": "",
    }
    figures, walking, _ = await walk(lab, simulator.url, Namespace(**{**chosen, **options}), lambda _: None)
    return figures, walking


async def test_a_sample_of_all_ways_into_all_inputs(lab: Lab) -> None:
    figures, walking = await walked(lab, limit=200)
    assert walking.hits == {}, "\n".join(told(figures, walking, 0))
    assert figures.classes >= 50
    assert figures.counts["sent"] == 200
    assert figures.counts["run"] >= 10
    assert sum(figures.refused.values()) >= 50


async def test_the_walk_finds_what_is_open(lab: Lab) -> None:
    """With everything trusted, as it was before there was a review, the same ways lead to another's secrets."""
    _, walking = await walked(lab, ways="*history*", trust=["*"], classes=["StringFormat"])
    assert {hit.case.input_name for hit in walking.hits.values() if hit.case} == {"f_string"}
