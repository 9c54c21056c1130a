"""Times that a real GPU took (gpu-times.jsonl): runs are told apart, and half of them predict the other half.

One object a line, one run each: `launch` are the cache options of that ComfyUI, `held_nodes` is the number of nodes
that `execution_cached` named, `held` are their ids where these were noted. Node 1 loads the model. A graph of
SD1.5 has seven nodes, one of SDXL nine.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from gateway.jobs.routing.signature import CALLS, Workload
from gateway.jobs.routing.times import RunKind, Times, kind_of_run
from tests.support.workloads import workload

RUNS = [json.loads(line) for line in (Path(__file__).parent / "gpu-times.jsonl").read_text().splitlines()]


def work_of(run: dict[str, Any]) -> Workload:
    ev = float(run["steps"] * CALLS.get(run["sampler"], 1))
    px = run["width"] * run["height"] * run["batch"] / 2**20
    return workload(run["model"], run["steps"], px, run["sampler"], ev)


def kind_of(run: dict[str, Any]) -> RunKind:
    nodes = 7 if run["model"].startswith("sd15") else 9
    held = run.get("held")
    if held is None:
        # Of these runs only the count is known: some nodes and the loader, or none, or all.
        held = ["1", *(f"text-{n}" for n in range(run["held_nodes"] - 1))] if run["held_nodes"] else []
    return kind_of_run(work_of(run), nodes, held)


def test_runs_are_told_apart_without_a_mistake() -> None:
    for run in RUNS:
        kind, is_sdxl = kind_of(run), run["model"].startswith("sdxl")
        if run["what"] == "same prompt again" and run["round"]:
            assert kind is RunKind.CACHED, run
        elif run["what"] in ("noise", "grid", "warm pair", "free in mid-job") and run["held_nodes"]:
            assert kind is RunKind.WARM, run
        elif run["steps"] == 4:
            # Of jobs of four steps the seconds tell, too.
            assert (kind is RunKind.LOAD) == (run["seconds"] > (3.0 if is_sdxl else 2.0)), run
    counts = statistics.multimode(kind_of(run) for run in RUNS)
    assert counts == [RunKind.WARM]


@pytest.mark.parametrize("half", [0, 1])
def test_every_other_run_predicts_the_rest(half: int) -> None:
    """Every other run of each model and kind, because the runs came in turns: else a half would lack models."""
    times, rest = Times(), []
    seen: dict[tuple[str, RunKind], int] = {}
    for run in RUNS:
        group = (run["model"], kind_of(run))
        seen[group] = seen.get(group, -1) + 1
        if seen[group] % 2 == half:
            times.learn(work_of(run), "gpu", run["seconds"], kind_of(run))
        elif kind_of(run) is not RunKind.CACHED:
            rest.append(run)
    errors = []
    for run in rest:
        predicted = times.estimate(work_of(run), "gpu").median
        if kind_of(run) is RunKind.LOAD:
            predicted += times.load_seconds(run["model"], "gpu")
        errors.append(abs(predicted / run["seconds"] - 1))
    assert len(errors) > 50
    assert statistics.median(errors) <= 0.15
