"""Belief about the models that a backend holds."""

from __future__ import annotations

import pytest

from gateway.jobs.routing.memory import MAX_MODELS, HeldModels, Keeping, read_options


@pytest.mark.parametrize(
    ("argv", "keeping", "models", "is_default"),
    [
        ([], Keeping.LAST, 1, True),
        (["main.py", "--listen", "0.0.0.0", "--reserve-vram", "2"], Keeping.LAST, 1, True),
        (["main.py", "--cache-ram"], Keeping.LAST, 1, False),
        (["main.py", "--cache-ram", "4"], Keeping.LAST, 1, False),
        (["main.py", "--cache-ram", "4", "8"], Keeping.ALL, MAX_MODELS, False),
        (["main.py", "--cache-ram", "4", "8", "--port", "1"], Keeping.ALL, MAX_MODELS, False),
        (["main.py", "--cache-lru", "100"], Keeping.NEWEST, 12, False),
        (["main.py", "--cache-lru=4"], Keeping.NEWEST, 1, False),
        (["main.py", "--cache-lru", "0"], Keeping.LAST, 1, False),
        (["main.py", "--cache-classic"], Keeping.LAST, 1, False),
        (["main.py", "--high-ram"], Keeping.LAST, 1, False),
        (["main.py", "--cache-none"], Keeping.NOTHING, 0, False),
        (["main.py", 7, None, "--cache-lru", "many"], Keeping.LAST, 1, False),
    ],
)
def test_options(argv: list[object], keeping: Keeping, models: int, is_default: bool) -> None:
    options = read_options(argv)
    assert (options.keeping, options.models, options.is_default) == (keeping, models, is_default)


def held(*argv: str) -> HeldModels:
    return HeldModels(read_options(argv))


def test_by_default_only_the_last_model_is_held() -> None:
    models = held()
    models.started("a", False)
    models.started("b", False)
    assert models.held == {"b"}
    assert models.after(["c", "a"]) == {"a"}
    models.started("a", False)
    assert (models.held, models.loads, models.reloads) == ({"a"}, 3, 1)


def test_a_backend_that_keeps_all() -> None:
    models = held("--cache-ram", "4", "8")
    for model in ("a", "b", "c"):
        models.started(model, False)
    assert models.held == {"a", "b", "c"}
    assert models.after(["d"]) == {"a", "b", "c", "d"}
    assert models.keeps_several


def test_nothing_is_held_with_cache_none() -> None:
    models = held("--cache-none")
    models.started("a", False)
    assert models.held == models.after(["b"]) == frozenset()


def test_runs_correct_the_belief() -> None:
    models = held()
    for model in ("a", "b"):
        models.started(model, False)
    # A default backend that held the model before the last one keeps two at least.
    models.started("a", True)
    assert models.held == {"a", "b"}
    roomy = held("--cache-ram", "4", "8")
    for model in ("a", "b", "c"):
        roomy.started(model, False)
    # Memory was short: two other models pushed this one out.
    roomy.started("a", False)
    assert roomy.held == {"c", "a"}


def test_free_and_restarts_empty_it() -> None:
    models = held("--cache-ram", "4", "8")
    models.started("a", False)
    models.started("b", False)
    models.emptied()
    assert models.held == frozenset()
    # A load after /free says nothing about the room for models.
    models.started("a", False)
    assert models.capacity == MAX_MODELS
    models.relaunched(read_options([]))
    assert (models.held, models.capacity) == (frozenset(), 1)


def test_bounds() -> None:
    models = held("--cache-ram", "4", "8")
    for n in range(1_000):
        models.started(str(n))
    assert len(models.held) == MAX_MODELS
