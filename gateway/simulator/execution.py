"""One prompt's execution, and all that is told of it in ComfyUI's order (execution.py, progress.py)."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import select
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gateway.comfy.previews import Preview
from gateway.comfy.true_types import is_link
from gateway.simulator.calls import calls, gather, merged, shown
from gateway.simulator.graph_order import ordered, pending
from gateway.simulator.look_through import look_through
from gateway.simulator.models import ModelTimes
from gateway.simulator.nodes import (
    FUNCTIONS,
    AcceleratorError,
    Colour,
    NodeInterrupted,
    OutOfMemoryError,
    TorchError,
    preview_image,
)
from gateway.simulator.queue import Item
from gateway.simulator.signatures import signatures_of
from gateway.simulator.stateful_nodes import FUNCTIONS as STATEFUL_FUNCTIONS
from gateway.simulator.stateful_nodes import State
from gateway.simulator.stock_nodes import STOCK_FUNCTIONS
from gateway.simulator.values import ModelPart, Result

if TYPE_CHECKING:
    from gateway.simulator.executor import Executor

_FUNCTIONS = {**FUNCTIONS, **STOCK_FUNCTIONS, **STATEFUL_FUNCTIONS}


class Execution:
    """One prompt's execution; to its nodes it is their `Run`."""

    def __init__(self, executor: Executor, item: Item) -> None:
        self._executor = executor
        self._sockets = executor.sockets
        self._item = item
        # Of any type, as in ComfyUI: a list or an object ends the process (`Sockets.publish`).
        self.sid: Any = item.extra_data.get("client_id")
        self.files = executor.files
        self.prompt = item.prompt
        self.extra_data = item.extra_data
        self._messages: list[tuple[str, dict[str, Any]]] = []
        self._progress: dict[str, dict[str, Any]] = {}
        self._results: dict[str, Result] = {}
        self._signatures: dict[str, str] = {}
        self._executed: list[str] = []
        self._outputs: dict[str, Any] = {}
        self._node = ""
        self._gathered: dict[str, list[Any]] = {}
        self._step = 0

    @property
    def state(self) -> State:
        """Return the state that custom nodes keep in the process."""
        return self._executor.state

    @property
    def node_id(self) -> str:
        """Return the id of the node that runs."""
        return self._node

    @property
    def prompt_id(self) -> str:
        """Return the prompt's id."""
        return self._item.prompt_id

    def tell(self, type_: str, data: dict[str, Any]) -> None:
        """Send a message of a custom node's own to everybody (server.py, send_sync without a sid)."""
        self._sockets.send(type_, data, None)

    async def until(self, look: Callable[[], bool]) -> None:
        """Wait until a look finds something."""
        while not look():
            self._check_interrupt()
            await asyncio.sleep(0.005)

    @property
    def temp_mark(self) -> str:
        """Return the letters in this node's temporary names (caching.py: an object lives on by node id and class)."""
        key = (self._node, self.prompt[self._node]["class_type"])
        return self._executor.marks.setdefault(key, self._executor.new_mark())

    def new_temp_mark(self) -> str:
        """Return letters that no name has had."""
        return self._executor.new_mark()

    async def run(self) -> dict[str, Any]:
        """Run it; returns its history entry."""
        executor = self._executor
        executor.jobs_started += 1
        # Without a cache ComfyUI makes each node's object anew.
        has_node = {(n, node.get("class_type")) for n, node in self.prompt.items() if executor.keeps_results}
        executor.marks = {key: mark for key, mark in executor.marks.items() if key in has_node}
        self._message("execution_start", {})
        await self._start_faults()
        self._begin_cache()
        self._message("execution_cached", {"nodes": list(self._results)})
        try:
            left = pending(self.prompt, self._item.outputs, self._results.__contains__)
            for node_id in ordered(self.prompt, self._item.outputs):
                if node_id in left:
                    await self._have(node_id)
            self._show_intermediate()
            self._message("execution_success", {})
            success = True
        except NodeInterrupted:
            self._message("execution_interrupted", {**self._where(), "executed": list(self._executed)})
            success = False
        except Exception as error:  # noqa: BLE001
            # If a node raises, end its prompt alone, because ComfyUI goes on with the next one (execution.py).
            self._message("execution_error", self._error(error))
            success = False
        self._sockets.executing = None
        return self._entry(success)

    def _begin_cache(self) -> None:
        """Look up all nodes of the prompt, needed or not."""
        for node in self.prompt.values():
            if not isinstance(node.get("inputs"), dict):
                look_through(self.prompt, self._item.outputs, {})
        cache = self._executor.cache
        self._signatures = signatures_of(self.prompt, self._executor.fingerprints.of, self._takes_id)
        cache.begin(self._signatures)
        found = {node_id: cache.get(self._signatures[node_id]) for node_id in self.prompt}
        self._results = {node_id: result for node_id, result in found.items() if result is not None}
        look_through(self.prompt, self._item.outputs, self._results)

    def _takes_id(self, class_type: str) -> bool:
        description = self._executor.object_info.get(class_type, {})
        return "UNIQUE_ID" in (description.get("input", {}).get("hidden") or {}).values()

    async def _have(self, node_id: str) -> None:
        """Run a node, unless its result is held; an equal node may have run meanwhile."""
        cache, signature = self._executor.cache, self._signatures[node_id]
        result = cache.get(signature)
        if result is not None:
            self._reuse(node_id, result)
        else:
            result = await self._run_node(node_id)
            cache.set(signature, result)
        self._results[node_id] = result
        cache.node_done()

    def _show_intermediate(self) -> None:
        """Tell of nodes that show something on their way, and were held."""
        for node_id in self._results:
            description = self._executor.object_info[self.prompt[node_id]["class_type"]]
            if node_id not in self._executed and description.get("has_intermediate_output"):
                result = self._executor.cache.get(self._signatures[node_id])
                if result is not None:
                    self._tell_held(node_id, result)

    async def _start_faults(self) -> None:
        blocked = self._executor.faults.take("block-loop")
        if blocked is not None:
            await self._sockets.drained()
            block(blocked.number)
        if self._executor.faults.get("oom"):
            await asyncio.sleep(0)

    def _reuse(self, node_id: str, result: Result) -> None:
        self._tell_held(node_id, result)
        self._set_progress(node_id, 1, 1, "finished")

    def _tell_held(self, node_id: str, result: Result) -> None:
        if result.ui is not None:
            self._outputs[node_id] = result.ui
        self._tell_executed(node_id, result.ui)

    async def _run_node(self, node_id: str) -> Result:
        self._node = node_id
        self._gathered = {}
        node = self.prompt[node_id]
        self._set_progress(node_id, 0.0, 1.0, "running")
        if self.sid is not None:
            self._sockets.executing = (self.sid, node_id)
            data = {"node": node_id, "display_node": node_id, "prompt_id": self._item.prompt_id}
            self._sockets.send("executing", data, self.sid)
        self._fail_if_told()
        self._check_interrupt()
        class_type = node["class_type"]
        description = self._executor.object_info[class_type]
        self._touch_sources(node)
        self._gathered = gather(node, description, self._results)
        results = [await _FUNCTIONS[class_type](self, inputs) for inputs in calls(self._gathered, description)]
        result = merged(results, description)
        if result.ui is not None:
            self._outputs[node_id] = result.ui
            self._tell_executed(node_id, result.ui)
        state = self._progress[node_id]
        self._set_progress(node_id, state["max"], state["max"], "finished")
        self._executed.append(node_id)
        # One turn of the loop a node, so that requests are served in between.
        await asyncio.sleep(0)
        return result

    def _touch_sources(self, node: dict[str, Any]) -> None:
        """Have the results that a node reads in the cache, also those that went meanwhile (graph.py, get_cache)."""
        for value in node["inputs"].values():
            if is_link(value):
                self._executor.cache.set(self._signatures[value[0]], self._results[value[0]])

    def _tell_executed(self, node_id: str, ui: dict[str, Any] | None) -> None:
        if self.sid is not None:
            data = {"node": node_id, "display_node": node_id, "output": ui, "prompt_id": self._item.prompt_id}
            self._sockets.send("executed", data, self.sid)

    # -- what nodes may do ---------------------------------------------------------------------------------------

    async def steps(self, count: int, seconds_each: float, colour: Colour) -> None:
        """Take steps, with progress and, if it is to send them, a preview each."""
        # If the messages of a step take long, shorten the next one, because a run's time must not depend on them.
        due = time.monotonic()
        for step in range(1, count + 1):
            due += self._scaled(seconds_each)
            await self._wait_until(due)
            due += await self._stay_silent(step)
            self._check_interrupt()
            self._die_if_told(step, count)
            self._set_progress(self._node, step, count, "running")
            self._tell_step(step, count, colour)

    def _scaled(self, seconds: float) -> float:
        """Return the real time of so much work at speed 1."""
        return seconds / self._executor.options.speed * self._executor.options.time_scale

    async def spend(self, seconds: float) -> None:
        """Take so many seconds at speed 1."""
        if seconds:
            await self._wait_until(time.monotonic() + self._scaled(seconds))

    async def _wait_until(self, end: float) -> None:
        """Sleep, but not past an interrupt by more than a moment."""
        while (left := end - time.monotonic()) > 0:
            self._check_interrupt()
            await asyncio.sleep(min(left, 0.05))

    async def _stay_silent(self, step: int) -> float:
        """Stay silent before a step while a fault asks for it; returns how long that was."""
        start = time.monotonic()
        await self._executor.faults.until_off("deaf")
        while (fault := self._executor.faults.get("silent")) and (not fault.argument or step > fault.number):
            await self._wait_until(time.monotonic() + 0.05)
        return time.monotonic() - start

    def _check_interrupt(self) -> None:
        if self._executor.queue.interrupted:
            raise NodeInterrupted

    def _die_if_told(self, step: int, count: int) -> None:
        fault = self._executor.faults.get("die-in-job")
        if fault is not None and self._executor.jobs_started >= fault.number and step >= count / 2:
            os._exit(1)

    def _fail_if_told(self) -> None:
        """Raise the machine's failure if a fault asks for it. Before torch 2.8, AcceleratorError was RuntimeError."""
        faults = self._executor.faults
        if faults.get("oom") or faults.get("oom-until-free"):
            raise OutOfMemoryError("Allocation on device 0 would exceed allowed memory. (out of memory)")
        if faults.get("poisoned"):
            raise AcceleratorError("CUDA error: an illegal memory access was encountered")
        if faults.get("broken"):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
            )
        if faults.get("full-disk"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _tell_step(self, step: int, count: int, colour: Colour) -> None:
        buffer = io.BytesIO()
        preview_image(colour, step, count).save(buffer, "JPEG", quality=80)
        self._tell_picture(step, count, buffer.getvalue() if self._executor.options.previews else None, "image/jpeg")

    def show(self, value: int, maximum: int, picture: bytes, image_type: str = "image/png") -> None:
        """Tell how far the node is, with an encoded picture (comfy/utils.py, ProgressBar)."""
        self._set_progress(self._node, value, maximum, "running")
        self._tell_picture(value, maximum, picture, image_type)

    async def told(self) -> None:
        """Wait until all that was told is sent."""
        await self._sockets.drained()
        self._check_interrupt()

    def _tell_picture(self, value: int, maximum: int, picture: bytes | None, image_type: str) -> None:
        sid = self.sid
        prompt_id = self._item.prompt_id
        place = {"node_id": self._node, "prompt_id": prompt_id}
        metadata = {**place, "display_node_id": self._node, "parent_node_id": None, "real_node_id": self._node}
        preview = None if picture is None else Preview(metadata, image_type, picture)
        with_metadata = self._sockets.wants_metadata(sid) and not self._executor.faults.get("no-metadata")
        if preview is not None and with_metadata:
            self._sockets.send_preview(preview, sid, with_metadata=True)
        progress = {"value": value, "max": maximum, "prompt_id": prompt_id, "node": self._node}
        self._sockets.send("progress", progress, sid)
        if preview is not None and not with_metadata:
            self._sockets.send_preview(preview, sid, with_metadata=False)

    async def load_model(self, name: str) -> None:
        """Load a model from disk; that takes its time at any speed, and may block the loop."""
        await self._load(self._executor.memory.times(name).load)
        self._executor.memory.use(name)

    async def use_model(self, part: Any) -> ModelTimes:
        """Have a model in VRAM, from RAM if it was pushed out; returns its times."""
        memory = self._executor.memory
        name = part.name if isinstance(part, ModelPart) else ""
        times = memory.times(name)
        if name:
            if not memory.is_resident(name):
                await self._load(times.reload)
            memory.use(name)
        return times

    async def _load(self, seconds: float) -> None:
        seconds *= self._executor.options.time_scale
        if self._executor.options.block_loop:
            await self._sockets.drained()
            block(seconds)
        elif seconds:
            await self._wait_until(time.monotonic() + seconds)

    # -- what is told --------------------------------------------------------------------------------------------

    def _message(self, type_: str, data: dict[str, Any]) -> None:
        """Send a message that the history keeps. Without a client_id, broadcast an interrupt, and send nothing else."""
        data = {"prompt_id": self._item.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        self._messages.append((type_, data))
        if self.sid is not None or type_ == "execution_interrupted":
            self._sockets.send(type_, data, self.sid)

    def _set_progress(self, node_id: str, value: float, maximum: float, state: str) -> None:
        self._progress[node_id] = {"value": value, "max": maximum, "state": state}
        prompt_id = self._item.prompt_id
        nodes = {
            n: {
                **progress,
                "node_id": n,
                "prompt_id": prompt_id,
                "display_node_id": n,
                "parent_node_id": None,
                "real_node_id": n,
            }
            for n, progress in self._progress.items()
        }
        self._sockets.send("progress_state", {"prompt_id": prompt_id, "nodes": nodes}, self.sid)

    def _where(self) -> dict[str, Any]:
        return {"node_id": self._node, "node_type": self.prompt[self._node]["class_type"]}

    def _error(self, error: Exception) -> dict[str, Any]:
        # As execution.py's full_type_name: the module's name too, save for builtins.
        type_ = f"torch.{type(error).__qualname__}" if isinstance(error, TorchError) else type(error).__qualname__
        return {
            **self._where(),
            "executed": list(self._executed),
            "exception_message": f"{error}\n",
            "exception_type": type_,
            "traceback": traceback.format_tb(error.__traceback__),
            "current_inputs": {
                **{name: [shown(each) for each in values] for name, values in self._gathered.items()},
                **self._hidden_inputs(),
            },
            "current_outputs": list(self.prompt) if self._executor.keeps_results else [],
        }

    def _hidden_inputs(self) -> dict[str, Any]:
        """Return the partner keys that a node takes. ComfyUI repeats them in errors (execution.py, get_input_data)."""
        description = self._executor.object_info[self.prompt[self._node]["class_type"]]
        hidden = description["input"].get("hidden", {})
        return {
            name: [self._item.sensitive.get(str(what).lower())]
            for name, what in hidden.items()
            if what in ("API_KEY_COMFY_ORG", "AUTH_TOKEN_COMFY_ORG")
        }

    def _entry(self, success: bool) -> dict[str, Any]:
        return {
            "prompt": self._item.shown(),
            "outputs": dict(self._outputs),
            "status": {
                "status_str": "success" if success else "error",
                "completed": success,
                "messages": [list(message) for message in self._messages],
            },
            "meta": {
                n: {"node_id": n, "display_node": n, "parent_node": None, "real_node_id": n} for n in self._outputs
            },
        }


def block(seconds: float) -> None:
    """Hold the event loop. time.sleep would do, but for a clock that jumps: it fails under libfaketime."""
    select.select([], [], [], seconds)
