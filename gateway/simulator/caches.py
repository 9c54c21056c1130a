"""Caches of node results (comfy_execution/caching.py): which results stay, and which go.

Subgraphs that a node makes while it runs have no cache of their own here, because no simulated class makes any.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from gateway.simulator.cache_options import CacheKind, CacheRule
from gateway.simulator.values import ModelPart, Result, models_of, pictures_of

# Returns the free RAM, given the bytes of pictures and the names of models that are held.
FreeBytes = Callable[[float, Iterable[str]], float]

# Weights of ComfyUI's choice of results that go first (comfy_execution/caching.py).
_BASE_BYTES = 0.05
_OLD_WORKFLOW = 1.3
_MODEL_FIRST = 1e30
_LARGE_BYTES = 512 * 1024**2


class Cache(Protocol):
    """Results of nodes by signature, as long as they are kept."""

    def begin(self, signatures: Mapping[str, str]) -> None:
        """Begin a prompt whose nodes have these signatures."""

    def get(self, signature: str) -> Result | None:
        """Return a result; None if it is not held."""

    def set(self, signature: str, result: Result) -> None:
        """Hold a result."""

    def node_done(self) -> None:
        """Let go of results after a node of the running prompt."""

    def results(self) -> Iterable[Result]:
        """Return all results that are held."""


class NoCache:
    """Cache that holds nothing (``--cache-none``)."""

    def begin(self, signatures: Mapping[str, str]) -> None:
        """Begin a prompt."""

    def get(self, signature: str) -> Result | None:  # noqa: ARG002
        """Return None."""
        return None

    def set(self, signature: str, result: Result) -> None:
        """Hold nothing."""

    def node_done(self) -> None:
        """Have nothing to let go of."""

    def results(self) -> Iterable[Result]:
        """Return no results."""
        return ()


class ClassicCache:
    """Cache of the results that the last prompt has, too (``--cache-classic``)."""

    def __init__(self) -> None:
        self._results: dict[str, Result] = {}

    def begin(self, signatures: Mapping[str, str]) -> None:
        """Begin a prompt, and let go of all that is not part of it."""
        used = set(signatures.values())
        self._results = {key: result for key, result in self._results.items() if key in used}

    def get(self, signature: str) -> Result | None:
        """Return a result; None if it is not held."""
        return self._results.get(signature)

    def set(self, signature: str, result: Result) -> None:
        """Hold a result."""
        self._results[signature] = result

    def node_done(self) -> None:
        """Keep everything while a prompt runs."""

    def results(self) -> Iterable[Result]:
        """Return all results that are held."""
        return self._results.values()


class LruCache:
    """Cache of the most recently used results (``--cache-lru N``).

    It is looked over when a prompt begins, and then lets go of all results that were last used with the same prompt.
    """

    def __init__(self, max_results: int) -> None:
        self._max_results = max_results
        self._results: dict[str, Result] = {}
        self._used: dict[str, int] = {}
        self._generation = 0
        self._oldest = 0

    def begin(self, signatures: Mapping[str, str]) -> None:
        """Begin a prompt, and let go of the oldest results if there are too many."""
        self._begin(signatures)
        while len(self._results) > self._max_results and self._oldest < self._generation:
            self._oldest += 1
            for key in [key for key in self._results if self._used[key] < self._oldest]:
                self._drop(key)

    def _begin(self, signatures: Mapping[str, str]) -> None:
        self._generation += 1
        # ComfyUI remembers for ever when a result was used that is gone.
        self._used = {key: used for key, used in self._used.items() if key in self._results}
        self._used.update(dict.fromkeys(signatures.values(), self._generation))

    def _drop(self, key: str) -> None:
        del self._results[key]
        del self._used[key]

    def get(self, signature: str) -> Result | None:
        """Return a result, which counts as used now; None if it is not held."""
        self._used[signature] = self._generation
        return self._results.get(signature)

    def set(self, signature: str, result: Result) -> None:
        """Hold a result, which counts as used now."""
        self._used[signature] = self._generation
        self._results[signature] = result

    def node_done(self) -> None:
        """Keep everything while a prompt runs."""

    def results(self) -> Iterable[Result]:
        """Return all results that are held."""
        return self._results.values()


class RamCache(LruCache):
    """Cache of all results while there is free RAM (``--cache-ram``, and without any option).

    It is looked over after each node. Without a second value ComfyUI wants all of the RAM free, so that only results
    of the running prompt stay.

    Args:
        free_bytes: returns the free RAM.
        has_gpu: True if models are read as they are needed, so that those in use take no RAM that could be freed.
    """

    def __init__(self, rule: CacheRule, free_bytes: FreeBytes, *, has_gpu: bool) -> None:
        super().__init__(0)
        self._has_gpu = has_gpu
        self._rule = rule
        self._free_bytes = free_bytes
        self._pictures: Counter[int] = Counter()
        self._picture_bytes = 0.0
        self._models: Counter[str] = Counter()
        self._clock = itertools.count()
        self._touched: dict[str, int] = {}

    def begin(self, signatures: Mapping[str, str]) -> None:
        """Begin a prompt."""
        self._begin(signatures)
        self._touched = {key: at for key, at in self._touched.items() if key in self._results}

    def _drop(self, key: str) -> None:
        self._count(self._results[key], -1)
        super()._drop(key)
        self._touched.pop(key, None)

    def _count(self, result: Result, times: int) -> None:
        """Count what a result holds in RAM, a picture or model of several results once."""
        for picture, size in pictures_of(result.outputs).items():
            before = self._pictures[picture]
            self._pictures[picture] += times
            if not self._pictures[picture]:
                del self._pictures[picture]
            self._picture_bytes += size * (bool(before + times) - bool(before))
        for name in {part.name for part in models_of(result.outputs)}:
            self._models[name] += times
            if not self._models[name]:
                del self._models[name]

    def _free(self) -> float:
        return self._free_bytes(self._picture_bytes, self._models)

    def get(self, signature: str) -> Result | None:
        """Return a result, which counts as used now; None if it is not held."""
        self._touched[signature] = next(self._clock)
        return super().get(signature)

    def set(self, signature: str, result: Result) -> None:
        """Hold a result, which counts as used now."""
        self._touched[signature] = next(self._clock)
        if signature not in self._results:
            self._count(result, 1)
            super().set(signature, result)
        else:
            self._used[signature] = self._generation

    def node_done(self) -> None:
        """Let go of results while there is too little free RAM (execution.py, execute_async)."""
        active = self._rule.active_bytes
        self._release(self._rule.inactive_bytes)
        if self._free() < active:
            self._release(active, frees_active=True, min_bytes=_LARGE_BYTES)
            self._release(active, frees_active=True)

    def _release(self, target: float, *, frees_active: bool = False, min_bytes: float = 0.0) -> None:
        if self._free() >= target:
            return
        scores = []
        for key, result in self._results.items():
            is_active = self._used[key] == self._generation
            used, is_model = tensor_bytes(result), _has_model(result)
            if (is_active and (not frees_active or self._takes_no_ram(result))) or used < min_bytes:
                continue
            age = self._generation - self._used[key]
            weight = _MODEL_FIRST if is_model and not is_active else used
            scores.append((_OLD_WORKFLOW**age * weight, self._touched[key], key))
        scores.sort()
        while scores and self._free() < target:
            self._drop(scores.pop()[2])

    def _takes_no_ram(self, result: Result) -> bool:
        return all(self._has_gpu and isinstance(value, ModelPart) for output in result.outputs for value in output)


def make_cache(rule: CacheRule, free_bytes: FreeBytes, *, has_gpu: bool) -> Cache:
    """Return an empty cache that follows a rule."""
    match rule.kind:
        case CacheKind.NONE:
            return NoCache()
        case CacheKind.CLASSIC:
            return ClassicCache()
        case CacheKind.LRU:
            return LruCache(rule.results)
        case CacheKind.RAM:
            return RamCache(rule, free_bytes, has_gpu=has_gpu)


def tensor_bytes(result: Result) -> float:
    """Return the RAM that a result counts for when ComfyUI chooses."""
    return _BASE_BYTES + sum(pictures_of(result.outputs).values())


def _has_model(result: Result) -> bool:
    return bool(models_of(result.outputs))
