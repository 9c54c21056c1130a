"""Names of models in metrics: those most used in the last day, so that the number of series has a bound. Pure.

A series must not change its meaning, and one that comes and goes tells little. So a model keeps its slot, over restarts
too, until it was not used for a day, or another model is used much more often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

MAX_MODELS = 20
KEEP_SECONDS = 86_400.0
OTHER, NONE = "other", "none"
# Characters of a name in a label.
MAX_NAME = 200
# Models without a slot whose uses are counted. Past that, those least used are forgotten.
MAX_CANDIDATES = 200
# A model takes the slot of one that is used less than this part as often.
_PART = 0.5
# Uses of a model before it may take the slot of another one that is in use.
_MIN_USES = 10.0


class ModelSlots:
    """Slots for models. All times are seconds since 1970, passed in.

    Attributes:
        used: time of the last use of each model that has a slot.
        uses: uses of these models, each counted less the longer ago it was: a day ago as 1/e.
    """

    def __init__(self, maximum: int = MAX_MODELS, keep_seconds: float = KEEP_SECONDS) -> None:
        self._maximum, self._keep_seconds = maximum, keep_seconds
        self.used: dict[str, float] = {}
        self.uses: dict[str, float] = {}
        # The same of models without a slot: time of the last use, and uses.
        self._candidates: dict[str, tuple[float, float]] = {}

    def restore(self, used: Iterable[tuple[str, float, float]], now: float) -> None:
        """Take the slots of an earlier run: name, time of the last use, uses.

        A time that is yet to come counts as now, because a clock was set back.
        """
        newest = sorted(used, key=lambda each: -each[1])[: self._maximum]
        self.used = {name: min(at, now) for name, at, _ in newest}
        self.uses = {name: uses for name, _, uses in newest}

    def use(self, model: str, now: float) -> tuple[str, str | None]:
        """Return the label of a model that is used now, and the model that lost its slot to it, if any."""
        if not model:
            return NONE, None
        name = shown_name(model)
        if name in (OTHER, NONE):
            return OTHER, None
        if name in self.used:
            self._take(name, now, self._faded(self.uses[name], self.used[name], now) + 1)
            return name, None
        at, before = self._candidates.pop(name, (now, 0.0))
        uses = self._faded(before, at, now) + 1
        evicted = None
        if len(self.used) >= self._maximum:
            evicted = self._loser(uses, now)
            if evicted is None:
                self._note_candidate(name, now, uses)
                return OTHER, None
            self._note_candidate(evicted, self.used.pop(evicted), self.uses.pop(evicted))
        self._take(name, now, uses)
        return name, evicted

    def _take(self, name: str, now: float, uses: float) -> None:
        self.used[name], self.uses[name] = now, uses

    def _faded(self, uses: float, at: float, now: float) -> float:
        return uses * math.exp(-max(now - at, 0.0) / self._keep_seconds)

    def _loser(self, uses: float, now: float) -> str | None:
        """Return the model that loses its slot to one with so many uses; None if all keep theirs."""
        oldest = min(self.used, key=self.used.__getitem__)
        if now - self.used[oldest] >= self._keep_seconds:
            return oldest
        if uses < _MIN_USES:
            return None
        faded = {name: self._faded(self.uses[name], at, now) for name, at in self.used.items()}
        least = min(faded, key=faded.__getitem__)
        return least if faded[least] < uses * _PART else None

    def _note_candidate(self, name: str, at: float, uses: float) -> None:
        self._candidates[name] = (at, uses)
        if len(self._candidates) > MAX_CANDIDATES:
            newest = max(at for at, _ in self._candidates.values())
            faded = {each: self._faded(count, at, newest) for each, (at, count) in self._candidates.items()}
            for each in sorted(faded, key=faded.__getitem__)[: MAX_CANDIDATES // 2]:
                del self._candidates[each]


def shown_name(model: str) -> str:
    """Return a model's name as a label: with one kind of separator between folders, because platforms differ."""
    return model.replace("\\", "/").encode("utf-8", "replace").decode()[:MAX_NAME]
