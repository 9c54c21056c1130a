"""Part of the command ``check`` that says which backends would gain from ComfyUI's cache options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from gateway.jobs.kept_learning import restoring
from gateway.jobs.routing.memory import read_options
from gateway.jobs.scheduling.learning import CACHE_HINT, Learning
from gateway.store.version_check import look_at_learned


def read_learned(data_dir: Path) -> Learning:
    """Return what the gateway on a data directory has learned of runs."""
    learning = Learning()
    for _ in restoring(learning, look_at_learned(data_dir)):
        pass
    return learning


def cache_advice(learning: Learning, command_lines: Mapping[str, Sequence[object]]) -> Iterator[str]:
    """Yield a sentence for each backend that has run several models, and whose options keep one prompt's at most.

    Args:
        command_lines: those of the backends, by name.
    """
    times, ran = learning.times, learning.times.models_by_backend()
    for name, argv in command_lines.items():
        models = ran.get(name, [])
        if len(models) < 2 or read_options(argv).models > 1:
            continue
        loads = [times.load_seconds(model, name) for model in models if times.knows_load(model, name)]
        cost = f" of about {fmean(loads):.1f} s" if loads else ""
        yield (
            f"backend {name} has run {len(models)} models and keeps those of one prompt in memory, so each change is a"
            f" load{cost}; {CACHE_HINT} (docs/routing.md)"
        )
