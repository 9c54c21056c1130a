"""Advice of ``check`` on cache options."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.check_models import cache_advice, read_learned
from gateway.jobs.kept_learning import KeptLearning
from gateway.jobs.routing.times import RunKind
from gateway.jobs.scheduling.learning import Learning
from gateway.store.sqlite import SqliteStore
from tests.support.workloads import workload


def learned(*models: str) -> Learning:
    """Return what was learned of runs of some models on b1."""
    learning = Learning()
    for model in models:
        learning.times.learn(workload(model, 20), "b1", 9.0, RunKind.LOAD)
    return learning


@pytest.mark.parametrize(
    ("argv", "models", "is_advised"),
    [
        (["main.py"], ["a", "b"], True),
        (["main.py", "--cache-ram"], ["a", "b"], True),
        (["main.py"], ["a", "a"], False),
        (["main.py"], [], False),
        (["main.py", "--cache-ram", "4", "8"], ["a", "b"], False),
        (["main.py", "--cache-lru", "100"], ["a", "b"], False),
    ],
)
def test_advice(argv: list[str], models: list[str], is_advised: bool) -> None:
    advice = list(cache_advice(learned(*models), {"b1": argv, "b2": ["main.py"]}))
    assert len(advice) == is_advised
    assert all("backend b1 has run 2 models" in each and "--cache-ram 4 8" in each for each in advice)


async def test_what_is_learned_is_read_while_a_gateway_runs(tmp_path: Path) -> None:
    assert read_learned(tmp_path).times.signatures == 0
    learning = learned("a", "b")
    learning.changes = 1
    store = SqliteStore(tmp_path)
    await store.open()
    assert read_learned(tmp_path).times.signatures == 0
    await KeptLearning(store, learning).write()
    assert read_learned(tmp_path).times.models_by_backend() == {"b1": ["a", "b"]}
    await store.close()


def test_a_folder_that_cannot_be_looked_at_gives_no_advice(tmp_path: Path) -> None:
    """``check`` may run as another user than the gateway, who can't look into its folder. Root can look anywhere."""
    assert read_learned(tmp_path / (300 * "x")).times.signatures == 0
