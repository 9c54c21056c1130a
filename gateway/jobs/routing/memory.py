"""Models that a backend holds in memory: a belief, from its launch options and from what its runs showed. Pure.

A ComfyUI without cache options keeps the models of the last prompt alone. `execution_cached` of each run shows if its
model was in memory, and that corrects both the belief and the number of models that the backend is thought to keep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

# Upper bounds of a belief, and of the texts that it keeps.
MAX_MODELS = 64
MAX_ARGUMENTS = 256
# Nodes of a usual prompt, so many results of which `--cache-lru` has to keep for one model.
USUAL_NODES = 8
_CACHE_OPTIONS = ("--cache-ram", "--cache-lru", "--cache-classic", "--cache-none", "--high-ram")


class Keeping(StrEnum):
    """Rule by which a backend keeps models: none, the last prompt's, the newest few, or all that fit."""

    NOTHING = "nothing"
    LAST = "last"
    NEWEST = "newest"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Cache options of a ComfyUI's command line. `models` is the number of models that it keeps at most."""

    keeping: Keeping
    models: int
    is_default: bool


def read_options(argv: Sequence[object]) -> CacheOptions:
    """Return the cache options of `system.argv` in /system_stats (comfy/cli_args.py, main.py).

    `--cache-ram` with two values keeps old models while so much RAM is free; with fewer it does as the default.
    """
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for argument in argv[:MAX_ARGUMENTS]:
        if not isinstance(argument, str):
            continue
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            current = found[name] = [value] if value else []
        elif current is not None:
            current.append(argument)
    is_default = not any(name in found for name in _CACHE_OPTIONS)
    if "--cache-none" in found:
        return CacheOptions(Keeping.NOTHING, 0, is_default)
    if "--cache-lru" in found and (nodes := _number(found["--cache-lru"][:1])) >= 1:
        return CacheOptions(Keeping.NEWEST, min(max(int(nodes) // USUAL_NODES, 1), MAX_MODELS), is_default)
    values = found.get("--cache-ram", [])
    if len(values) == 2 and math.isfinite(_number(values[1:])):
        return CacheOptions(Keeping.ALL, MAX_MODELS, is_default)
    return CacheOptions(Keeping.LAST, 1, is_default)


def _number(values: Sequence[str]) -> float:
    try:
        return float(values[0])
    except (IndexError, ValueError):
        return math.nan


class HeldModels:
    """Belief about the models of one backend, the last used one at the end.

    `loads` and `reloads` count what its runs showed: loads, and those of a model that it had before.
    """

    def __init__(self, options: CacheOptions) -> None:
        self.options = options
        self.capacity = options.models
        self.loads = 0
        self.reloads = 0
        # All models by their last use, also those that are not held any more.
        self._used: list[str] = []
        self._held: list[str] = []

    @property
    def held(self) -> frozenset[str]:
        """Return the models that the backend is thought to hold."""
        return frozenset(self._held)

    @property
    def keeps_several(self) -> bool:
        """Return True if a model stays in memory when another one is loaded."""
        return self.capacity > 1

    def after(self, models: Sequence[str]) -> frozenset[str]:
        """Return the models that will be held after runs of `models`, in that order."""
        if not self.capacity:
            return frozenset()
        return frozenset((*self._held, *models)[-1:]) if self.capacity == 1 else frozenset((*self._held, *models))

    def started(self, model: str, was_held: bool | None = None) -> None:
        """Note that a run of a model began. `was_held` is what `execution_cached` showed; None if that is not known."""
        if not model:
            if self.capacity == 1:
                # While any node runs, a ComfyUI that keeps one prompt's models drops those of the prompt before.
                self._held.clear()
            return
        distance = self._used[::-1].index(model) if model in self._used else None
        if was_held is not None:
            self.loads += not was_held
            self.reloads += not was_held and distance is not None
            self._correct(distance, was_held)
        for models in (self._used, self._held):
            if model in models:
                models.remove(model)
            models.append(model)
        del self._used[:-MAX_MODELS]
        del self._held[: max(len(self._held) - self.capacity, 0)]

    def _correct(self, distance: int | None, was_held: bool) -> None:
        """Correct the capacity: `distance` other models ran since this one; None if it never ran."""
        if was_held:
            if distance is not None and distance >= self.capacity:
                self.capacity = min(distance + 1, MAX_MODELS)
        elif distance is not None and 0 < distance < self.capacity:
            self.capacity = distance

    def emptied(self) -> None:
        """Note that the backend freed its memory (/free), or was restarted."""
        self._held.clear()
        self._used.clear()

    def told(self, options: CacheOptions) -> None:
        """Take the options that the backend told. What is in its memory stays there."""
        if options != self.options:
            self.options, self.capacity = options, options.models
            del self._held[: max(len(self._held) - self.capacity, 0)]

    def relaunched(self, options: CacheOptions) -> None:
        """Note that the backend was started anew, maybe with other options."""
        self.emptied()
        self.told(options)
