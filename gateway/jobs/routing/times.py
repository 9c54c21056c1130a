"""Learned times: how long a workload runs on a backend, and how long a model takes to load there. Pure, but for itself.

The logarithm of a warm run's seconds is a sum of levels: the signature's size, the backend's speed, the speed of that
model on that backend, and the signature's own deviation there. Each run corrects them by their uncertainty
(`levels.py`). A signature that never ran starts from its model's regression (`regression.py`), or from the nearest
signature that did. So one run on one backend tells about all backends, and many runs there make up for a wrong model.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.jobs.routing.learned_tables import MAX_BACKENDS, MAX_MODELS, MAX_PAIRS, MAX_SIGNATURES, LearnedTables, keep
from gateway.jobs.routing.levels import Level, Size, correct, expected_rest
from gateway.jobs.routing.regression import Regression
from gateway.jobs.routing.signature import Workload

# Guesses are made anew if there are more.
MAX_GUESSES = 20_000
# Seconds of a run and of a load if nothing is known.
UNKNOWN_SECONDS, UNKNOWN_LOAD = 10.0, 5.0
_LOG_LOAD = math.log(UNKNOWN_LOAD)
# Variances of what is not known yet.
SPEED, MODEL_SPEED, DEVIATION = 0.5, 0.03, 0.02
GUESS_BY_REGRESSION, GUESS_BY_NEAREST, GUESS_BY_OTHERS, GUESS = 0.06, 0.25, 1.0, 2.0
# Variances of the parts of a load time that are not known yet, and the noise of loads.
MODEL_LOAD, BACKEND_LOAD, PAIR_LOAD, LOAD_NOISE = 0.3, 0.3, 0.1, 0.04
# After so many loads, a load changes what is expected of its own backend alone, until another one is learned there.
MANY_LOADS = 50
# After so many runs of a model, a first run of a signature that is far off says nothing of its backend.
MANY_RUNS = 20
# Regressions tell something from so many runs on.
MIN_RUNS = 4
# Guesses of a model's signatures are made anew after this part of its runs: one over so much.
GUESSES_LAST = 4
# A residual of so many standard deviations is an outlier; two in a row on a backend mean that its speed changed.
OUTLIER = 2.5
# A signature whose first run was an outlier is so much less certain than the residual's square.
SURPRISE = 10.0
# An outlier counts as at most this many standard deviations.
CLIP = 3.0
MIN_SECONDS, MAX_SECONDS = 0.001, 1e6

_NONE: Mapping[str, Level] = {}


class RunKind(StrEnum):
    """Part of the work that a run did: all but the load, also the load, nothing, or unknown."""

    WARM = "warm"
    LOAD = "load"
    CACHED = "cached"
    UNKNOWN = "unknown"


def kind_of_run(workload: Workload, node_count: int, held: Collection[str]) -> RunKind:
    """Return the kind of a run, by the nodes that `execution_cached` named."""
    if len(held) >= node_count or (workload.samplers and all(each in held for each in workload.samplers)):
        return RunKind.CACHED
    if not workload.loader:
        return RunKind.UNKNOWN
    return RunKind.WARM if workload.loader in held else RunKind.LOAD


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of a warm run: the median, and the standard deviation of their logarithm."""

    median: float
    sigma: float

    @property
    def mean(self) -> float:
        """Return the mean."""
        return self.median * math.exp(min(self.sigma * self.sigma, 1.0) / 2)

    def rest(self, elapsed: float) -> float:
        """Return the seconds that a run still takes on average after `elapsed` seconds."""
        return expected_rest(self.median, max(self.sigma, 0.05), elapsed)


class Times(LearnedTables):
    """All learned times. They know backends and models by name, and signatures by key."""

    def __init__(self, part: int = 1) -> None:
        super().__init__(part)
        self._run_costs: dict[tuple[str, str], tuple[float, float]] = {}
        # Of each backend, the models in `_run_costs`.
        self._costed: dict[str, list[str]] = {}
        self._outliers: dict[str, int] = {}
        # By model and signature.
        self._guesses: dict[str, dict[str, Size]] = {}
        self._guess_count = 0
        self._runs_since_guess: dict[str, int] = {}
        self._floors: OrderedDict[str, float] = OrderedDict()

    # -- questions -----------------------------------------------------------------------------------------------

    def seconds(self, work: Workload, backend: str) -> float:
        """Return the expected seconds of a warm run."""
        seconds = self.usual_seconds(work) * self.factor(work.signature.model, backend)
        deviation = self.deviations(work).get(backend)
        return seconds * deviation.factor if deviation else seconds

    def run_costs(self, model: str, backend: str) -> tuple[float, float]:
        """Return the factor by which runs of a model take longer on a backend than usual, and its load seconds there.

        Routing asks this a hundred times a decision, so what did not change since is kept.
        """
        found = self._run_costs.get((model, backend))
        if found is None:
            if len(self._run_costs) >= self._at_most(MAX_PAIRS):
                self._forget_costs()
            speed, model_speed = self._speeds.get(backend), self._model_speeds.get((model, backend))
            factor = (speed.factor if speed else 1.0) * (model_speed.factor if model_speed else 1.0)
            loads, load = self._loads, 0.0 if ("", "") in self._loads else _LOG_LOAD
            for key in (("", ""), (model, ""), ("", backend), (model, backend)):
                if (level := loads.get(key)) is not None:
                    load += level.mean
            load = math.exp(load)
            found = self._run_costs[model, backend] = factor, load
            self._costed.setdefault(backend, []).append(model)
        return found

    def factor(self, model: str, backend: str) -> float:
        """Return the factor by which runs of a model take longer on a backend than at usual speed."""
        return self.run_costs(model, backend)[0]

    def load_seconds(self, model: str, backend: str) -> float:
        """Return the expected seconds that a load of the model adds to a run on the backend."""
        return self.run_costs(model, backend)[1]

    def _forget_costs(self, backend: str | None = None) -> None:
        """Calculate the costs of runs anew, on a backend or on all."""
        if backend is None:
            self._run_costs.clear()
            self._costed.clear()
        for model in self._costed.pop(backend or "", ()):
            self._run_costs.pop((model, backend or ""), None)

    def deviations(self, work: Workload) -> Mapping[str, Level]:
        """Return the factors by which a signature deviates from that, by backend: of those where it ran."""
        return self._deviations.get(work.key, _NONE)

    def usual_seconds(self, work: Workload) -> float:
        """Return the expected seconds of a warm run at usual speed."""
        return (self._sizes.get(work.key) or self._guess(work)).expected

    def estimate(self, work: Workload, backend: str) -> Estimate:
        """Return the estimate of a warm run, with its spread: the noise of runs, and the uncertainty of the levels."""
        size = self._sizes.get(work.key) or self._guess(work)
        levels = [
            size.level,
            self._speeds.get(backend) or Level(0.0, SPEED if self._speeds else 0.0),
            self._model_speeds.get((work.signature.model, backend)) or Level(0.0, MODEL_SPEED),
            self.deviations(work).get(backend) or self._deviation(work, backend),
        ]
        variance = sum(level.variance for level in levels) + size.noise
        return Estimate(math.exp(sum(level.mean for level in levels)), math.sqrt(variance))

    def speed(self, backend: str) -> float:
        """Return the factor by which runs take longer on a backend than at usual speed."""
        level = self._speeds.get(backend)
        return level.factor if level else 1.0

    def knows(self, backend: str) -> bool:
        """Return True if a run on a backend was learned, or its speed is expected."""
        return backend in self._speeds

    def knows_load(self, model: str, backend: str) -> bool:
        """Return True if a load of a model on a backend was learned."""
        return (model, backend) in self._loads

    def models_by_backend(self) -> dict[str, list[str]]:
        """Return the models that ran on each backend, the last ones at the end."""
        found: dict[str, list[str]] = {}
        for model, backend in self._model_speeds:
            if model:
                found.setdefault(backend, []).append(model)
        return found

    @property
    def signatures(self) -> int:
        """Return the number of signatures that are known."""
        return len(self._sizes)

    def runs(self, work: Workload) -> int:
        """Return the number of runs of a signature that were learned."""
        size = self._sizes.get(work.key)
        return size.runs if size else 0

    def usual_estimate(self, work: Workload) -> Estimate:
        """Return the estimate of a warm run at usual speed, with the spread on the backend that ran last."""
        usual, sigma = self.usual_seconds(work), self.estimate(work, next(reversed(self._speeds), "")).sigma
        return Estimate(usual * math.exp(-min(sigma * sigma, 1.0) / 2), sigma)

    def knows_work(self, work: Workload) -> bool:
        """Return True if the signature ran, or another one of its model."""
        return work.key in self._sizes or (work.signature.model != "" and work.signature.model in self._models)

    def knows_loads(self) -> bool:
        """Return True if any load was learned."""
        return bool(self._loads)

    # -- runs ----------------------------------------------------------------------------------------------------

    def expect_speed(self, backend: str, weight: float) -> None:
        """Expect runs on a backend to take one over its weight of the usual time, until its runs tell."""
        if backend not in self._speeds and weight > 0:
            keep(self._speeds, backend, Level(-math.log(weight), SPEED), self._at_most(MAX_BACKENDS))
            self._forget_costs(backend)

    def note_elapsed(self, work: Workload, backend: str, elapsed: float) -> None:
        """Note that a signature's first run has taken so long already: those that wait take as long at least."""
        if work.key in self._sizes or elapsed <= 0:
            return
        floor = elapsed * 1.3 / self.speed(backend)
        if floor > self._floors.get(work.key, 0.0):
            self._floors[work.key] = floor
            self._forget_guesses(work.signature.model)
            while len(self._floors) > self._at_most(MAX_BACKENDS):
                self._floors.popitem(last=False)

    def learn(self, work: Workload, backend: str, seconds: float, kind: RunKind) -> None:
        """Learn from a run that succeeded."""
        if kind is RunKind.CACHED or not MIN_SECONDS <= seconds <= MAX_SECONDS:
            return
        size, levels = self._levels(work, backend)
        expected = sum(level.mean for level in levels)
        uncertainty = sum(level.variance for level in levels)
        noise = size.noise if kind is not RunKind.UNKNOWN else size.noise + 0.1
        if kind is RunKind.LOAD:
            seconds = self._learn_load(work, backend, seconds, expected, uncertainty + noise)
        residual = math.log(seconds) - expected
        deviation = math.sqrt(uncertainty + noise)
        has_changed = size.runs >= 2 and self._speed_changed(backend, residual / deviation)
        if has_changed:
            speed = levels[1]
            speed.variance = max(speed.variance, residual * residual)
        elif abs(residual) > OUTLIER * deviation and self._is_surprise(size):
            # A first run that is far off tells of the signature alone, because a client may ask for steps or sizes that
            # its graph does not use, with a new signature each time. That must not make the backend seem slow or fast.
            size.level.variance = max(size.level.variance, SURPRISE * residual * residual)
        else:
            residual = min(max(residual, -CLIP * deviation), CLIP * deviation)
            if kind is not RunKind.LOAD:
                size.note_noise(residual * residual - uncertainty)
        correct(levels, residual, noise)
        size.runs += 1
        size.refresh()
        self._forget_costs(backend)
        self._guess_anew_after(work.signature.model)
        self._learn_features(work, backend, seconds, levels[1].factor * levels[2].factor, kind)

    def _guess_anew_after(self, model: str) -> None:
        """Forget guesses after a run of a model. The more runs there are, the less often one changes them much."""
        known = self._models.get(model)
        if known is None:
            # The first run of a model tells about all unknown models, each other one about its own.
            self._forget_guesses()
            return
        since = self._runs_since_guess[model] = self._runs_since_guess.get(model, 0) + 1
        if since * GUESSES_LAST >= known.runs:
            self._forget_guesses(model)

    def _is_surprise(self, size: Size) -> bool:
        """Return True if a signature never ran, although its model did so often that its time could be guessed."""
        fit = self._models.get(size.model)
        return not size.runs and fit is not None and fit.runs >= MANY_RUNS

    def _levels(self, work: Workload, backend: str) -> tuple[Size, list[Level]]:
        """Return a signature's size, and the four levels of its runs on a backend; make those that do not exist."""
        signature = work.signature
        size = self._sizes.get(work.key)
        deviation = self.deviations(work).get(backend) or self._deviation(work, backend)
        if size is None:
            size = self._guess(work)
            self._floors.pop(work.key, None)
        speed = self._speeds.get(backend)
        if speed is None:
            # The first backend defines the usual speed.
            speed = Level(0.0, SPEED if self._speeds else 0.01)
        model_speed = self._model_speeds.get((signature.model, backend))
        if model_speed is None:
            # A model that ran nowhere else has its usual speed here.
            model_speed = Level(0.0, MODEL_SPEED if signature.model in self._models else 0.001)
        keep(self._sizes, work.key, size, self._at_most(MAX_SIGNATURES))
        self._note_signature(work.key, size)
        keep(self._speeds, backend, speed, self._at_most(MAX_BACKENDS))
        keep(self._model_speeds, (signature.model, backend), model_speed, self._at_most(MAX_PAIRS))
        self._keep_deviation(work.key, backend, deviation)
        return size, [size.level, speed, model_speed, deviation]

    def _learn_load(self, work: Workload, backend: str, seconds: float, expected: float, variance: float) -> float:
        """Share a run's seconds out between load and work, by their uncertainty. Return the work's.

        Args:
            expected: the logarithm of the work's seconds, as expected, with its variance.
        """
        levels = self._load_levels(work.signature.model, backend)
        load = math.exp(sum(level.mean for _, level in levels))
        load_variance = sum(level.variance for _, level in levels)
        warm = math.exp(expected + min(variance, 1.0) / 2)
        deviation = warm * math.sqrt(math.expm1(min(variance, 3.0)))
        noise = (deviation / load) ** 2 + LOAD_NOISE
        correct([level for _, level in levels], _log_ratio((seconds - warm) / load, noise, load_variance), noise)
        for key, level in levels:
            keep(self._loads, key, level, self._at_most(MAX_PAIRS))
        # Each of the first loads tells much about all others, each of the later ones little.
        self._load_runs += 1
        self._forget_costs(None if self._load_runs < MANY_LOADS else backend)
        return max(seconds - self.load_seconds(work.signature.model, backend), 0.1 * seconds)

    def _load_levels(self, model: str, backend: str) -> list[tuple[tuple[str, str], Level]]:
        """Return the levels of a load time with their keys: of all loads, a model's, a backend's, and of both."""
        keys = (("", ""), (model, ""), ("", backend), (model, backend))
        fresh = ((_LOG_LOAD, 1.0), (0.0, MODEL_LOAD), (0.0, BACKEND_LOAD), (0.0, PAIR_LOAD))
        return [(key, self._loads.get(key) or Level(*each)) for key, each in zip(keys, fresh, strict=True)]

    def _speed_changed(self, backend: str, deviations: float) -> bool:
        """Return True if two runs in a row on a backend were outliers in the same direction."""
        if abs(deviations) < OUTLIER:
            self._outliers.pop(backend, None)
            return False
        direction = 1 if deviations > 0 else -1
        before = self._outliers.get(backend, 0)
        self._outliers[backend] = direction + (before if before * direction > 0 else 0)
        return abs(self._outliers[backend]) >= 2

    def _learn_features(self, work: Workload, backend: str, seconds: float, factor: float, kind: RunKind) -> None:
        signature, weight = work.signature, 1.0 if kind is RunKind.WARM else 0.3
        own = self._fits.get((signature.model, backend)) or Regression()
        own.learn(signature.ev, signature.px, seconds, weight)
        keep(self._fits, (signature.model, backend), own, self._at_most(MAX_PAIRS))
        shared = self._models.get(signature.model) or Regression()
        shared.learn(signature.ev, signature.px, seconds / factor, weight)
        shared.fit()
        keep(self._models, signature.model, shared, self._at_most(MAX_MODELS))

    # -- guesses -------------------------------------------------------------------------------------------------

    def _guess(self, work: Workload) -> Size:
        """Return the size of a signature that never ran. The same one until the next run is learned."""
        model = work.signature.model
        same = self._guesses.get(model)
        found = same.get(work.key) if same is not None else None
        if found is None:
            if self._guess_count >= self._at_most(MAX_GUESSES):
                self._forget_guesses()
            self._guess_count += 1
            found = self._guesses.setdefault(model, {})[work.key] = self._guess_anew(work)
        return found

    def _forget_guesses(self, model: str | None = None) -> None:
        """Guess the signatures of a model anew, or all."""
        if model is None:
            self._guesses.clear()
            self._runs_since_guess.clear()
            self._guess_count = 0
        else:
            self._guess_count -= len(self._guesses.pop(model, ()))
            self._runs_since_guess.pop(model, None)

    def _guess_anew(self, work: Workload) -> Size:
        signature = work.signature
        seconds, variance = UNKNOWN_SECONDS, GUESS
        fit = self._models.get(signature.model)
        predicted = fit.predict(signature.ev, signature.px) if fit and fit.runs >= MIN_RUNS else 0.0
        if predicted > MIN_SECONDS:
            seconds, variance = predicted, GUESS_BY_REGRESSION
        elif fit is not None and (near := self._nearest(work)) is not None:
            ratio = (1.0 + signature.ev) * (0.5 + signature.px) / ((1.0 + near.ev) * (0.5 + near.px))
            seconds, variance = near.level.factor * ratio**0.7, GUESS_BY_NEAREST + near.level.variance
        elif self._models:
            others = [fit.predict(signature.ev, signature.px) for fit in self._models.values()]
            logs = [math.log(each) for each in others if each > MIN_SECONDS]
            if logs:
                seconds, variance = math.exp(sum(logs) / len(logs)), GUESS_BY_OTHERS
        seconds = max(seconds, self._floors.get(work.key, 0.0))
        return Size(signature.model, signature.ev, signature.px, Level(math.log(seconds), variance))

    def _nearest(self, work: Workload) -> Size | None:
        """Return the size of the known signature of the same model whose features are the nearest."""
        ev, px = math.log1p(work.signature.ev), math.log(0.5 + work.signature.px)
        same = self._by_model.get(work.signature.model, {}).values()
        return min(same, key=lambda s: abs(math.log1p(s.ev) - ev) + abs(math.log(0.5 + s.px) - px), default=None)

    def _deviation(self, work: Workload, backend: str) -> Level:
        """Return a signature's deviation on a backend where it never ran, by the regressions there and elsewhere."""
        model, ev, px = work.signature.model, work.signature.ev, work.signature.px
        own, shared = self._fits.get((model, backend)), self._models.get(model)
        if own is None or shared is None or own.runs < MIN_RUNS or own.runs >= shared.runs:
            return Level(0.0, DEVIATION)
        here, everywhere = own.predict(ev, px), shared.predict(ev, px)
        speed, model_speed = self._speeds.get(backend), self._model_speeds.get((model, backend))
        if here <= 0 or everywhere <= 0 or speed is None or model_speed is None:
            return Level(0.0, DEVIATION)
        told = math.log(here / everywhere) - speed.mean - model_speed.mean
        return Level(min(max(told * own.runs / (own.runs + 10), -0.7), 0.7), DEVIATION)

    # -- store ------------------------------------------------------------------------------------------------------

    def restore_part(self, name: Any, rows: Any) -> None:
        """Take over rows of a table from an earlier run. Skip all that is malformed."""
        super().restore_part(name, rows)
        self._forget_costs()
        self._forget_guesses()

    def forget_all(self) -> None:
        """Forget all that was learned."""
        self._forget_all()
        self._outliers.clear()
        self._floors.clear()
        self._forget_costs()
        self._forget_guesses()

    def forget_backend(self, backend: str) -> None:
        """Forget a backend that left the fleet, or whose GPU was replaced."""
        self._speeds.pop(backend, None)
        self._outliers.pop(backend, None)
        self._forget_costs(backend)
        for levels in self._deviations.values():
            levels.pop(backend, None)
        tables: tuple[OrderedDict[tuple[str, str], Any], ...] = (*(self._model_speeds, self._loads, self._fits),)
        for table in tables:
            for key in [key for key in table if key[1] == backend]:
                del table[key]


def _log_ratio(ratio: float, noise: float, variance: float) -> float:
    """Return the logarithm of a ratio; if the noise is large, the ratio less one, so that noise does not bias it."""
    part = noise / (noise + variance)
    return (1.0 - part) * math.log(min(max(ratio, 0.1), 10.0)) + part * (min(max(ratio, 0.0), 4.0) - 1.0)
