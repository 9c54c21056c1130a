"""Runs prompts one after the other (main.py, prompt_worker)."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterable
from typing import Any

from gateway.simulator.cache_options import GIB, CacheKind, read_cache_options
from gateway.simulator.caches import Cache, make_cache
from gateway.simulator.execution import Execution, block
from gateway.simulator.faults import Faults
from gateway.simulator.files import Files, temp_mark
from gateway.simulator.look_through import WorkerEnded
from gateway.simulator.models import Memory, ModelTimes
from gateway.simulator.options import SimulatorOptions
from gateway.simulator.queue import PromptQueue
from gateway.simulator.signatures import Fingerprints
from gateway.simulator.sockets import Sockets
from gateway.simulator.stateful_nodes import State
from gateway.simulator.values import models_of, pictures_of

HOLD_PERIOD = 0.1
LOW_RAM = 2 * GIB


class Executor:
    """The one that runs prompts, with all that outlives a prompt: the cache, and models in memory."""

    def __init__(
        self,
        options: SimulatorOptions,
        queue: PromptQueue,
        sockets: Sockets,
        files: Files,
        faults: Faults,
        object_info: dict[str, Any],
    ) -> None:
        self.options = options
        self.queue = queue
        self.sockets = sockets
        self.files = files
        self.faults = faults
        self.object_info = object_info
        self.fingerprints = Fingerprints(files)
        # Text encoders and VAEs in files of their own are small, unless they are described.
        small = {name: {"gb": 0.0, "load": 0.0} for name in (*options.clips, "pixel_space")}
        described = {name: {**small.get(name, {}), **values} for name, values in {**small, **options.described}.items()}
        usual = ModelTimes(gb=6.0, load=options.load_seconds, step=1 / options.steps_per_second)
        self.memory = Memory(options.ram_gb, options.vram_gb, usual, described)
        self._rule = read_cache_options(options.cache_arguments, self.memory.ram_bytes)
        self.cache = self._new_cache()
        self._unloads = False
        self._resets = False
        self.jobs_started = 0
        self.marks: dict[tuple[str, str], str] = {}
        self.state = State()
        self._random = random.Random(options.seed)

    def _new_cache(self) -> Cache:
        return make_cache(self._rule, self._free_bytes, has_gpu=not self.options.cpu)

    @property
    def keeps_results(self) -> bool:
        """Return True if results of a prompt may be held for the next one."""
        return self._rule.kind is not CacheKind.NONE

    def _free_bytes(self, picture_bytes: float, models: Iterable[str]) -> float:
        return LOW_RAM if self.faults.get("low-ram") else self.memory.free_ram(picture_bytes, models)

    def free_ram(self) -> float:
        """Return the free RAM in bytes."""
        outputs = [result.outputs for result in self.cache.results()]
        return self._free_bytes(sum(pictures_of(outputs).values()), {part.name for part in models_of(outputs)})

    def new_mark(self) -> str:
        """Return five letters for the names of temporary files."""
        return temp_mark(self._random)

    async def run(self) -> None:
        """Run prompts for ever."""
        while True:
            await self.faults.until_off("no-worker")
            item = await self.queue.get()
            execution = Execution(self, item)
            hold = asyncio.ensure_future(self._hold_loop()) if self.options.hold_loop else None
            try:
                entry = await execution.run()
            except WorkerEnded as error:
                # As with ComfyUI: requests are answered, and no prompt runs any more.
                print(f"prompt_worker ended: {error}", file=sys.stderr, flush=True)
                return
            finally:
                if hold is not None:
                    hold.cancel()
            self.memory.forget_all_but(self.cache.results())
            self.queue.done(entry)
            self._free()
            if execution.sid is not None:
                self.sockets.send("executing", {"node": None, "prompt_id": item.prompt_id}, execution.sid)

    async def _hold_loop(self) -> None:
        """Hold the event loop as a node that holds Python's interpreter does."""
        busy = HOLD_PERIOD * self.options.hold_loop
        while True:
            block(busy)
            await asyncio.sleep(HOLD_PERIOD - busy)

    def free(self, *, unload_models: bool, free_memory: bool) -> None:
        """Take models out of VRAM, or forget all results (POST /free), after the running prompt if there is one.

        Without results no loader's result is held either, so that its model must be loaded from disk again.
        """
        self._unloads |= unload_models or free_memory
        self._resets |= free_memory
        if self.queue.running is None:
            self._free()

    def _free(self) -> None:
        if self._unloads:
            self.memory.unload()
            self.faults.switch_off("oom-until-free")
        if self._resets:
            self.cache = self._new_cache()
            self.marks.clear()
        self._unloads = self._resets = False
