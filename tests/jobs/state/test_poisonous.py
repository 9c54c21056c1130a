"""Poisonous graphs: the key is a tenant and the exact graph, and the memory has bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.jobs.state import poisonous
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.poisonous import MAX_GRAPHS, MAX_SORTED, PoisonousGraphs
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import Submission, read
from gateway.store.sqlite import SqliteStore
from tests.support.ledgers import Paper, admit, new_ledger
from tests.support.workflows import slow

NOW = 1_000_000_000.0
DAY = 86_400.0


def submission(graph: dict[str, Any], **more: Any) -> Submission:
    """A prompt with a graph."""
    return read(json.dumps({"prompt": graph, **more}).encode())


def memory(store: Any = None, seconds: float = DAY) -> tuple[PoisonousGraphs, Ledger]:
    """A memory, and the ledger that it asks for open jobs."""
    ledger = new_ledger()
    graphs = PoisonousGraphs(store or Paper(), seconds, lambda tenant, id_: ledger.find(tenant, id_) is not None)
    return graphs, ledger


def poison(graphs: PoisonousGraphs, job: Job, backend: str, now: float = NOW, *, has_other: bool = True) -> None:
    """A job costs a backend."""
    graphs.poisoned(job, backend, "CUDA error", "1", now, has_other=has_other)


def refused(graphs: PoisonousGraphs, tenant: str, graph: dict[str, Any], now: float = NOW, **more: Any) -> str:
    """The details of the refusal of a prompt; empty if it is accepted."""
    try:
        graphs.check(tenant, submission(graph, **more), now)
    except Rejection as rejection:
        error = rejection.body["error"]
        return str(error["details"]) if (rejection.status, error["type"]) == (400, "graph_refused") else ""
    return ""


def test_the_key_is_the_tenant_and_the_exact_graph() -> None:
    graphs, ledger = memory()
    poison(graphs, admit(ledger), "b1", has_other=False)
    turned = {key: dict(reversed(node.items())) for key, node in reversed(slow().items())}
    assert refused(graphs, "t", slow())
    assert refused(graphs, "t", turned, client_id="x", extra_data={"a": 1}, number=3)
    assert not refused(graphs, "t", slow(seed=2))
    assert not refused(graphs, "t", {"9": slow()["1"], "2": slow()["2"]})
    assert not refused(graphs, "other", slow())
    renamed = {"1": slow()["1"], "7": {**slow()["2"], "inputs": {"images": ["1", 0], "filename_prefix": "ComfyUI"}}}
    assert not refused(graphs, "t", renamed)


def test_a_large_graph_is_compared_as_it_was_sent() -> None:
    graphs, ledger = memory()
    large = {**slow(), "9": {"class_type": "Note", "inputs": {"text": '"' * MAX_SORTED, "b": 1}}}
    poison(graphs, admit(ledger, prompt=large), "b1", has_other=False)
    assert refused(graphs, "t", large)
    assert not refused(graphs, "t", {**large, "2": {**large["2"], "inputs": {"filename_prefix": "x"}}})


def test_no_digest_is_computed_while_the_tenant_has_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, ledger = memory()
    other, suspect = admit(ledger, "other"), admit(ledger)
    poison(graphs, suspect, "b1")

    def digest_of(_: Submission) -> bytes:
        raise AssertionError

    monkeypatch.setattr(poisonous, "digest_of", digest_of)
    assert not refused(graphs, "other", slow())
    assert not graphs.is_held(other)
    assert graphs.look_cost(other) == 0
    # A graph of another shape has no digest to make, however often it is looked at.
    assert graphs.look_cost(admit(ledger, prompt={**slow(), "9": {"class_type": "Note", "inputs": {}}})) == 0
    with pytest.raises(AssertionError):
        refused(graphs, "t", slow())


def test_a_suspect_runs_once_more_while_its_twins_wait() -> None:
    graphs, ledger = memory()
    suspect, twin, third, changed = (admit(ledger), admit(ledger), admit(ledger), admit(ledger, prompt=slow(seed=2)))
    poison(graphs, suspect, "b1")
    assert [graphs.is_held(job) for job in (suspect, twin, third, changed)] == [False, True, True, False]
    assert graphs.end_of(twin) is None
    assert "runs once more" in refused(graphs, "t", slow())
    # If the suspect ends without an answer, one of the others decides.
    ledger.cancel(suspect)
    assert not graphs.is_held(twin)
    graphs.sent(twin)
    assert [graphs.is_held(job) for job in (twin, third)] == [False, True]
    graphs.succeeded(twin)
    assert not graphs.is_held(third)
    assert not refused(graphs, "t", slow())
    assert len(graphs) == 0


def test_the_second_backend_makes_it_remembered() -> None:
    graphs, ledger = memory()
    suspect, twin = admit(ledger), admit(ledger)
    poison(graphs, suspect, "b1")
    poison(graphs, suspect, "b2")
    graphs.succeeded(twin)
    told, type_ = graphs.end_of(twin) or ("", "")
    assert type_ == "GraphRefused"
    for part in (
        suspect.prompt_id,
        "node #1 (SlowSampler)",
        "until 2001-09-10T01:46:40Z",
        "DELETE /gateway/poisonous/",
    ):
        assert part in told
    [graph] = graphs.all(NOW)
    assert graph.describe()["backends"] == ["b1", "b2"]
    assert graphs.has_news
    assert not refused(graphs, "t", slow(), now=NOW + DAY)


def test_the_oldest_of_too_many_go() -> None:
    graphs, ledger = memory()
    jobs = [admit(ledger, prompt=slow(seed=n)) for n in range(MAX_GRAPHS + 2)]
    for n, job in enumerate(jobs):
        poison(graphs, job, "b1", NOW + n / 1000)
    assert len(graphs) == MAX_GRAPHS
    assert [graphs.find(job) is None for job in (jobs[0], jobs[1], jobs[2], jobs[-1])] == [True, True, False, False]


async def test_it_outlives_the_process_unless_it_is_forgotten_or_over(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    graphs, ledger = memory(store)
    jobs = [admit(ledger, prompt=slow(seed=n)) for n in range(3)]
    for n, job in enumerate(jobs):
        poison(graphs, job, "b1", NOW + n)
    poison(graphs, jobs[2], "b2", NOW + 3)
    graphs.forget(graphs.all(NOW)[1].record.id)
    await store.write([])
    again, ledger = memory(store)
    await again.restore(NOW + DAY + 1)
    [left] = again.all(NOW + DAY + 1)
    assert left.is_remembered
    assert left.backends == ("b1", "b2")
    assert refused(again, "t", slow(seed=2), NOW + DAY)
    job = admit(ledger, prompt=slow(seed=2))
    again.restore_job(job)
    assert job.avoid == {"b1", "b2"}
    off, _ = memory(store, seconds=0)
    await off.restore(NOW)
    poison(off, job, "b1")
    assert len(off) == 0
    await store.write([])
    assert await store.poisonous() == []
    await store.close()
