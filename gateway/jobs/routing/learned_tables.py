"""Tables of all that was learned of runs, with their bounds, and their record for the store. Pure.

A record of two thousand signatures has megabytes. So it is made and read in parts, each of which takes milliseconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Any, TypeVar

from gateway.jobs.routing.levels import Level, Size, numbers
from gateway.jobs.routing.regression import Regression

# Bounds of what is remembered; the least recently used goes first.
MAX_SIGNATURES, MAX_PAIRS, MAX_DEVIATIONS, MAX_MODELS, MAX_BACKENDS = 2_000, 4_000, 32, 500, 1_000
MAX_NEIGHBOURS = 32
# Least bound of tables that are a part as large.
MIN_ROWS = 4
# Rows of a part of the record. A regression has twenty numbers, and is solved when it is read.
PART_ROWS, PART_FITS = 500, 20

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LearnedTables:
    """Sizes of signatures, speeds of backends, load times and regressions, each table ordered by last use.

    Args:
        part: the bounds of the tables are divided by this.
    """

    def __init__(self, part: int = 1) -> None:
        self._part = part
        self._sizes: OrderedDict[str, Size] = OrderedDict()
        # By signature and backend.
        self._deviations: OrderedDict[str, dict[str, Level]] = OrderedDict()
        self._model_speeds: OrderedDict[tuple[str, str], Level] = OrderedDict()
        self._speeds: OrderedDict[str, Level] = OrderedDict()
        self._loads: OrderedDict[tuple[str, str], Level] = OrderedDict()
        self._load_runs = 0
        self._fits: OrderedDict[tuple[str, str], Regression] = OrderedDict()
        self._models: OrderedDict[str, Regression] = OrderedDict()
        # Of each model, the last signatures that ran.
        self._by_model: OrderedDict[str, dict[str, Size]] = OrderedDict()

    def _at_most(self, maximum: int) -> int:
        """Return the bound of a table here."""
        return maximum if self._part == 1 else max(maximum // self._part, MIN_ROWS)

    def _keep_deviation(self, key: str, backend: str, level: Level) -> None:
        levels = self._deviations.get(key, {})
        levels.pop(backend, None)
        levels[backend] = level
        if len(levels) > self._at_most(MAX_DEVIATIONS):
            del levels[next(iter(levels))]
        keep(self._deviations, key, levels, self._at_most(MAX_SIGNATURES))

    def _note_signature(self, key: str, size: Size) -> None:
        same = self._by_model.pop(size.model, {})
        same.pop(key, None)
        same[key] = size
        if len(same) > self._at_most(MAX_NEIGHBOURS):
            del same[next(iter(same))]
        keep(self._by_model, size.model, same, self._at_most(MAX_MODELS))

    def _forget_all(self) -> None:
        for table in (self._sizes, self._deviations, self._model_speeds, self._speeds, self._loads, self._fits):
            table.clear()
        self._models.clear()
        self._by_model.clear()
        self._load_runs = 0

    # -- record --------------------------------------------------------------------------------------------------

    def parts(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield the record in parts: the name of a table, and some of its rows. Runs may be learned in between."""
        for name, rows in self._rows().items():
            maximum = PART_FITS if name in ("fits", "models") else PART_ROWS
            while part := list(islice(rows, maximum)):
                yield name, part

    def _rows(self) -> dict[str, Iterator[list[Any]]]:
        # Iterate over lists, because a table may change between two parts.
        return {
            "sizes": (
                [key, size.model, size.ev, size.px, size.level.mean, size.level.variance, size.noise, size.runs]
                for key, size in list(self._sizes.items())
            ),
            "speeds": ([backend, level.mean, level.variance] for backend, level in list(self._speeds.items())),
            "model_speeds": ([*key, level.mean, level.variance] for key, level in list(self._model_speeds.items())),
            "deviations": (
                [key, backend, level.mean, level.variance]
                for key, levels in list(self._deviations.items())
                for backend, level in list(levels.items())
            ),
            "loads": ([*key, level.mean, level.variance] for key, level in list(self._loads.items())),
            "fits": ([*key, fit.record()] for key, fit in list(self._fits.items())),
            "models": ([model, fit.record()] for model, fit in list(self._models.items())),
        }

    def record(self) -> dict[str, list[Any]]:
        """Return all that was learned, as JSON."""
        record: dict[str, list[Any]] = {name: [] for name in self._rows()}
        for name, rows in self.parts():
            record[name] += rows
        return record

    def restore(self, record: Any) -> None:
        """Take over what an earlier run learned. Skip all that is malformed."""
        for name, rows in record.items() if isinstance(record, dict) else ():
            self.restore_part(name, rows)

    def restore_part(self, name: Any, rows: Any) -> None:
        """Take over rows of a table from an earlier run. Skip all that is malformed."""
        if name == "sizes":
            self._restore_sizes(rows)
        elif name == "deviations":
            for names, (mean, variance) in _entries(rows, 2, 2):
                self._keep_deviation(names[0], names[1], Level(mean, max(variance, 0.0)))
        elif name == "speeds":
            for names, (mean, variance) in _entries(rows, 1, 2):
                keep(self._speeds, names[0], Level(mean, max(variance, 0.0)), self._at_most(MAX_BACKENDS))
        elif name in ("model_speeds", "loads"):
            table = self._loads if name == "loads" else self._model_speeds
            for names, (mean, variance) in _entries(rows, 2, 2):
                keep(table, (names[0], names[1]), Level(mean, max(variance, 0.0)), self._at_most(MAX_PAIRS))
        elif name == "fits":
            for names, fit in _regressions(rows, 2):
                keep(self._fits, (names[0], names[1]), fit, self._at_most(MAX_PAIRS))
        elif name == "models":
            for names, fit in _regressions(rows, 1):
                # Solve it now, because a guess may ask all of them at once.
                fit.fit()
                keep(self._models, names[0], fit, self._at_most(MAX_MODELS))

    def _restore_sizes(self, rows: Any) -> None:
        for names, (ev, px, mean, variance, noise, runs) in _entries(rows, 2, 6):
            if ev >= 0 and px > 0 and variance > 0 and noise > 0:
                size = Size(names[1], ev, px, Level(mean, variance), noise, int(runs))
                keep(self._sizes, names[0], size, self._at_most(MAX_SIGNATURES))
                self._note_signature(names[0], size)


def keep(table: OrderedDict[K, V], key: K, value: V, maximum: int) -> None:
    """Put an entry into a table as its newest. Drop the oldest ones if there are more than the maximum."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > maximum:
        table.popitem(last=False)


def _entries(rows: Any, texts: int, count: int) -> Iterator[tuple[list[str], list[float]]]:
    """Yield the names and the numbers of each well-formed row."""
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, list) and all(isinstance(each, str) for each in row[:texts]):
            values = numbers(row[texts:], count)
            if values is not None:
                yield row[:texts], values


def _regressions(rows: Any, texts: int) -> Iterator[tuple[list[str], Regression]]:
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, list) and len(row) == texts + 1 and all(isinstance(each, str) for each in row[:texts]):
            fit = Regression.restore(row[texts])
            if fit is not None:
                yield row[:texts], fit
