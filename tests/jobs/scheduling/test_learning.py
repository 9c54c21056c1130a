"""Learning from runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.jobs.routing.times import RunKind
from gateway.jobs.scheduling.learning import MANY_RELOADS, Learning
from gateway.jobs.state.job import Job
from gateway.jobs.state.submission import read
from gateway.telemetry.metrics import Metrics
from tests.support.ledgers import new_ledger
from tests.support.workflows import text_to_image

ALL = [str(n) for n in range(1, 8)]
DEFAULT, KEEPS = {"argv": ["main.py"]}, {"argv": ["main.py", "--cache-ram", "4", "8"]}


def running(learning: Learning, model: str = "a", cached: list[str] | None = None, **more: Any) -> Job:
    """Return a job that runs on b1."""
    ledger = new_ledger()
    prompt = text_to_image(model=f"{model}.safetensors")
    job = ledger.admit("t", read(json.dumps({"prompt": prompt, **more}).encode()), ["7"])
    ledger.send(job, "b1")
    ledger.start(job, 5)
    learning.started(job)
    if cached is not None:
        job.live.cached = frozenset(cached)
        learning.cached(job)
    return job


def run(learning: Learning, model: str, seconds: float, cached: list[str] | None = None, **more: Any) -> Job:
    """Return a job that ran on b1."""
    job = running(learning, model, cached, **more)
    learning.succeeded(job, "b1", seconds)
    learning.ended(job)
    return job


def test_runs_are_told_apart() -> None:
    learning = Learning()
    for _ in range(10):
        assert learning.was_load(run(learning, "a", 9.0, [])) is True
        assert learning.was_load(run(learning, "a", 2.0, ["1", "2"])) is False
        assert learning.was_load(run(learning, "a", 0.001, ALL)) is False
    job = running(learning, "a")
    assert learning.was_load(job) is None
    assert learning.times.seconds(job.submission.workload, "b1") == pytest.approx(2.0, rel=0.2)
    assert learning.times.load_seconds("a.safetensors", "b1") == pytest.approx(7.0, rel=0.2)


def test_the_rest_of_a_run() -> None:
    learning = Learning()
    for _ in range(10):
        run(learning, "a", 9.0, [])
        run(learning, "a", 2.0, ["1"])
    started_at = {}
    for cached in (None, [], ["1"]):
        job = running(learning, "a", cached)
        assert job.started_at is not None
        started_at[str(cached)] = [learning.rest(job, job.started_at + after) for after in (0.0, 1.0)]
    assert started_at["[]"] == pytest.approx([9.0, 8.0], rel=0.2)
    assert started_at["['1']"] == pytest.approx([2.0, 1.0], rel=0.3)
    # It is in memory, as the last run showed.
    assert started_at["None"] == started_at["['1']"]
    submission = job.submission
    assert learning.run_seconds(submission, "b1", frozenset({"a.safetensors"})) == pytest.approx(2.0, rel=0.2)
    assert learning.run_seconds(submission, "b1", frozenset()) == pytest.approx(9.0, rel=0.2)


def test_models_in_memory() -> None:
    learning = Learning()
    learning.measured("b1", DEFAULT)
    run(learning, "a", 5.0, [])
    run(learning, "b", 5.0, [])
    assert learning.held("b1").held == {"b.safetensors"}
    # A run whose `execution_cached` was missed.
    run(learning, "a", 5.0)
    assert learning.held("b1").held == {"a.safetensors"}
    learning.measured("b1", DEFAULT)
    assert learning.held("b1").held == {"a.safetensors"}
    learning.emptied("b1")
    assert learning.held("b1").held == set()
    learning.measured("b1", KEEPS)
    for model in "ab":
        run(learning, model, 5.0, [])
    assert learning.held("b1").held == {"a.safetensors", "b.safetensors"}
    learning.relaunched("b1")
    assert learning.held("b1").held == set()


def test_a_prompt_without_a_model_pushes_the_last_one_out() -> None:
    learning = Learning()
    run(learning, "a", 5.0, [])
    prompt = {"1": {"class_type": "EmptyImage", "inputs": {}}, "2": {"class_type": "SaveImage", "inputs": {}}}
    run(learning, "", 5.0, [], prompt=prompt)
    assert learning.held("b1").held == set()


def test_the_order_of_late_ends() -> None:
    """The end of a job is told when the next one runs already, whose model is the last one."""
    learning = Learning()
    first = running(learning, "a")
    running(learning, "b", [])
    learning.ended(first)
    assert learning.held("b1").held == {"b.safetensors"}


def test_reloads_are_counted() -> None:
    metrics = Metrics()
    learning = Learning(metrics)
    learning.measured("b1", DEFAULT)
    for _ in range(MANY_RELOADS + 5):
        for model in "ab":
            run(learning, model, 30.0, [])
            run(learning, model, 10.0, ["1"])
    launch = learning.launch("b1")
    assert launch.is_told
    assert (launch.held.loads, launch.held.reloads) == (2 * MANY_RELOADS + 10, 2 * MANY_RELOADS + 8)
    assert launch.reload_seconds == pytest.approx(20.0 * launch.held.reloads, rel=0.3)
    value = metrics.registry.get_sample_value
    for name, expected in (
        ("model_loads_total", launch.held.loads),
        ("model_reloads_total", launch.held.reloads),
        ("model_reload_seconds_total", launch.reload_seconds),
    ):
        assert value(f"comfyui_gateway_{name}", {"backend": "b1"}) == pytest.approx(expected)
    learning.relaunched("b1")
    assert (launch.held.loads, launch.reload_seconds, launch.is_told) == (0, 0.0, False)


def test_reloads_despite_cache_options_are_not_told() -> None:
    learning = Learning()
    learning.measured("b1", KEEPS)
    for _ in range(50):
        for model in "ab":
            run(learning, model, 30.0, [])
    assert not learning.launch("b1").is_told


@pytest.mark.parametrize("more", [{"partial_execution_targets": ["7"]}, {}])
def test_a_part_of_a_graph_tells_nothing_of_the_whole(more: dict[str, Any]) -> None:
    learning = Learning()
    run(learning, "a", 5.0, ["1"], **more)
    assert bool(learning.times.record()["sizes"]) == (not more)


def test_an_entry_tells_of_the_run() -> None:
    """A job whose events were missed, because the gateway was restarted."""
    learning = Learning()
    job = running(learning, "a")
    job.started_at = None
    messages = [
        ["execution_start", {"timestamp": 1000}],
        ["execution_cached", {"timestamp": 1001, "nodes": ["1"]}],
        ["execution_success", {"timestamp": 5000}],
    ]
    learning.learn_entry(job, "b1", {"messages": messages})
    assert learning.usual_seconds(job.submission) == pytest.approx(4.0, rel=0.2)
    assert learning.times.load_seconds("a.safetensors", "b1") == pytest.approx(5.0)
    learning.learn_entry(job, "b1", {"messages": "none"})
    learning.learn_entry(job, "b1", None)


def test_the_record() -> None:
    learning, restored = Learning(), Learning()
    learning.measured("b1", {"argv": ["main.py", "--cache-lru", "100"]})
    for _ in range(3):
        for model in "abc":
            run(learning, model, 5.0, [])
    capacity = learning.held("b1").capacity
    assert capacity == 2
    parts = json.loads(json.dumps(list(learning.parts())))
    for part in parts:
        restored.restore_part(*part)
    assert json.loads(json.dumps(list(restored.parts()))) == parts
    # The options are those of before.
    restored.measured("b1", {"argv": ["main.py", "--cache-lru", "100"]})
    assert restored.held("b1").capacity == capacity
    restored.relaunched("b1")
    restored.measured("b1", KEEPS)
    assert restored.held("b1").capacity > capacity


@pytest.mark.parametrize(
    "part",
    [
        ("capacities", [["b1", "last", 1, True, 999], ["b1", "odd", 1, True, 2], ["b1", "last", 1, True], 7, None]),
        ("capacities", {"b1": 1}),
        ("calibration", [["x"], 3]),
        (["sizes"], []),
        ("unknown", 4),
        ("sizes", [[None]]),
    ],
)
def test_a_malformed_part_is_skipped(part: Any) -> None:
    learning = Learning()
    learning.restore_part(*part)
    assert list(learning.parts()) == list(Learning().parts())


@pytest.mark.parametrize(
    "system", [{}, {"argv": "--cache-none"}, {"argv": [1, None, "x" * 9_999, "--cache-none"] * 99}]
)
def test_an_odd_command_line(system: dict[str, Any]) -> None:
    learning = Learning()
    for _ in range(2):
        learning.measured("b1", system)
    assert learning.held("b1").capacity == (0 if isinstance(system.get("argv"), list) else 1)


def test_all_is_forgotten() -> None:
    learning = Learning()
    learning.measured("b1", KEEPS)
    for _ in range(3):
        for model in "abc":
            run(learning, model, 5.0, [])
    learning.forget("b2")
    assert learning.times.runs(running(learning).submission.workload) == 3
    before = learning.changes
    learning.forget_all()
    assert learning.changes > before
    assert not learning.times.record()["sizes"]
    assert learning.held("b1").capacity == learning.held("b1").options.models


def test_kinds() -> None:
    learning = Learning()
    assert running(learning, "a", ["6"]).live.run_kind is RunKind.CACHED


def test_a_weight_is_expected_again_after_a_backend_is_forgotten() -> None:
    learning = Learning()
    learning.expect_speeds({"b1": 2.0, "b2": 1.0})
    for everything in (False, True):
        if everything:
            learning.forget_all()
        else:
            learning.forget("b1")
        assert learning.times.speed("b1") == pytest.approx(0.5)
