"""Models of a simulated ComfyUI: their sizes and times, and the memory that they take.

A loader node reads a model into RAM and VRAM. It stays in RAM while a result of that node is held (`caches`), and in
VRAM as long as there is room, until POST /free, and no longer than in RAM.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

from gateway.simulator.values import Result, models_of

GIB = 1024**3
# VRAM that is used without any model, and the share of RAM that is free then.
BASE_VRAM = GIB // 2
FREE_RAM = 0.75
# Samplers that call the model twice a step.
_SECOND_ORDER = frozenset({"heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "seeds_2"})
# A prompt's text may tell how long the sampler takes, so that equal graphs can take unequal times.
_WORK = re.compile(r"\bwork=(\d{1,6}(?:\.\d+)?)\b")


class ModelError(ValueError):
    """A description of a model that can't be read."""


@dataclass(frozen=True, slots=True)
class ModelTimes:
    """Size of a model in GB, and its times in seconds at speed 1.

    `load` is the time to load it from disk, `reload` from RAM. A sampler takes `job` seconds, and for each call of the
    model `step` seconds and `step_megapixel` for each 2**20 pixels; VAEDecode takes `megapixel` for each of those.
    """

    gb: float
    load: float
    step: float
    reload: float = 0.0
    job: float = 0.0
    step_megapixel: float = 0.0
    megapixel: float = 0.0

    def sampling(self, steps: int, sampler: str, pixels: float) -> float:
        """Return the time that a sampler takes."""
        calls = steps * (2 if sampler in _SECOND_ORDER else 1)
        return self.job + calls * (self.step + self.step_megapixel * pixels / 2**20)

    def decoding(self, pixels: float) -> float:
        """Return the time that VAEDecode takes."""
        return self.megapixel * pixels / 2**20


KEYS = tuple(field.name for field in fields(ModelTimes))


def read_model(text: str) -> tuple[str, dict[str, float]]:
    """Return the name and the values of a description such as ``sdxl:gb=6.5,load=15,step=0.4``.

    Raises:
        ModelError: it has another form, or a value that is no number from 0 on.
    """
    name, _, rest = text.partition(":")
    values = {}
    for part in rest.split(","):
        key, _, value = part.strip().partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not name.strip() or key not in KEYS or not 0 <= number < 1e6:
            raise ModelError(f"{text!r}: write NAME:KEY=NUMBER,… with keys of {', '.join(KEYS)}")
        values[key] = number
    return name.strip(), values


def work_in(texts: Iterable[str]) -> float | None:
    """Return the seconds of ``work=…`` in a prompt's texts; None if none tells any."""
    found = (_WORK.search(text) for text in texts)
    return next((float(match[1]) for match in found if match), None)


class Memory:
    """RAM and VRAM of a simulated ComfyUI, with the models in them.

    Args:
        usual: size and times of a model that `described` does not name.
        described: values by model name that differ.
    """

    def __init__(
        self, ram_gb: float, vram_gb: float, usual: ModelTimes, described: Mapping[str, Mapping[str, float]]
    ) -> None:
        self.ram_bytes = ram_gb * GIB
        self.vram_bytes = vram_gb * GIB
        self._usual = usual
        self._described = described
        # Models in VRAM, the last used one at the end.
        self._resident: list[str] = []

    def times(self, name: str) -> ModelTimes:
        """Return a model's size and times."""
        return replace(self._usual, **self._described.get(name, {}))

    def free_ram(self, picture_bytes: float, models: Iterable[str]) -> float:
        """Return the free RAM in bytes, while pictures and models are held."""
        held = picture_bytes + sum(self._bytes(name) for name in models)
        return max(self.ram_bytes * FREE_RAM - held, 0.0)

    def used_vram(self) -> int:
        """Return the used VRAM in bytes."""
        return BASE_VRAM + int(sum(self._bytes(name) for name in self._resident))

    def _bytes(self, name: str) -> float:
        return self.times(name).gb * GIB

    def is_resident(self, name: str) -> bool:
        """Return True if a model is in VRAM."""
        return name in self._resident

    def use(self, name: str) -> None:
        """Have a model in VRAM; the ones that were used longest ago go if there is no room."""
        if name in self._resident:
            self._resident.remove(name)
        self._resident.append(name)
        while len(self._resident) > 1 and self.used_vram() > self.vram_bytes:
            self._resident.pop(0)

    def unload(self) -> None:
        """Take all models out of VRAM."""
        self._resident.clear()

    def forget_all_but(self, held: Iterable[Result]) -> None:
        """Take the models out of VRAM that no result holds any more."""
        names = {part.name for result in held for part in models_of(result.outputs)}
        self._resident = [name for name in self._resident if name in names]
