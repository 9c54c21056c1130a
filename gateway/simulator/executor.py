"""Runs prompts, one at a time, and tells of it in ComfyUI's order (execution.py, progress.py, main.py)."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import random
import select
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from gateway.comfy.previews import Preview
from gateway.simulator.calls import calls, gather, merged, shown
from gateway.simulator.faults import Faults
from gateway.simulator.files import Files, temp_mark
from gateway.simulator.graph_order import is_link, ordered, signatures_of
from gateway.simulator.look_through import WorkerEnded, look_through
from gateway.simulator.nodes import (
    FUNCTIONS,
    AcceleratorError,
    Colour,
    NodeInterrupted,
    OutOfMemoryError,
    Result,
    TorchError,
    preview_image,
)
from gateway.simulator.options import SimulatorOptions
from gateway.simulator.queue import Item, PromptQueue
from gateway.simulator.sockets import Sockets
from gateway.simulator.stateful_nodes import FUNCTIONS as STATEFUL_FUNCTIONS
from gateway.simulator.stateful_nodes import State
from gateway.simulator.stock_nodes import STOCK_FUNCTIONS

HOLD_PERIOD = 0.1
_FUNCTIONS = {**FUNCTIONS, **STOCK_FUNCTIONS, **STATEFUL_FUNCTIONS}


class Executor:
    """The one that runs prompts (main.py, prompt_worker)."""

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
        self.cache: dict[str, Result] = {}
        self.loaded: str | None = None
        self.jobs_started = 0
        self.marks: dict[tuple[str, str], str] = {}
        self.state = State()
        self._random = random.Random(options.seed)

    def new_mark(self) -> str:
        """Return five letters for the names of temporary files."""
        return temp_mark(self._random)

    async def run(self) -> None:
        """Run prompts for ever."""
        while True:
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
            self.queue.done(entry)
            if execution.sid is not None:
                self.sockets.send("executing", {"node": None, "prompt_id": item.prompt_id}, execution.sid)

    async def _hold_loop(self) -> None:
        """Hold the event loop as a node that holds Python's interpreter does."""
        busy = HOLD_PERIOD * self.options.hold_loop
        while True:
            _block(busy)
            await asyncio.sleep(HOLD_PERIOD - busy)

    def free(self) -> None:
        """Forget models and cache (POST /free)."""
        self.loaded = None
        self.cache.clear()
        self.faults.switch_off("oom-until-free")


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
        self._executed: list[str] = []
        self._outputs: dict[str, Any] = {}
        self._node = ""
        self._gathered: dict[str, list[Any]] = {}
        self._step = 0

    @property
    def steps_per_second(self) -> float:
        """Return the speed of a sampler, in steps per second."""
        return self._executor.options.steps_per_second

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
        self._executor.jobs_started += 1
        marks = self._executor.marks
        has_node = {(n, node.get("class_type")) for n, node in self.prompt.items()}
        self._executor.marks = {key: mark for key, mark in marks.items() if key in has_node}
        self._message("execution_start", {})
        await self._start_faults()
        signatures = signatures_of(self.prompt)
        cache = self._executor.cache
        cached = [node_id for node_id in self.prompt if signatures.get(node_id) in cache]
        look_through(self.prompt, self._item.outputs, {node_id: cache[signatures[node_id]] for node_id in cached})
        self._message("execution_cached", {"nodes": cached})
        try:
            for node_id in ordered(self.prompt, self._item.outputs):
                signature = signatures[node_id]
                if signature in cache:
                    self._reuse(node_id, cache[signature])
                elif not self._is_needed(node_id, signatures):
                    continue
                else:
                    self._results[node_id] = await self._run_node(node_id)
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
        if self._executor.options.cache:
            self._executor.cache = {signatures[n]: r for n, r in self._results.items() if signatures.get(n) is not None}
        return self._entry(success)

    async def _start_faults(self) -> None:
        blocked = self._executor.faults.take("block-loop")
        if blocked is not None:
            await self._sockets.drained()
            _block(blocked.number)
        if self._executor.faults.get("oom"):
            await asyncio.sleep(0)

    def _is_needed(self, node_id: str, signatures: dict[str, str]) -> bool:
        """Return True if a node must run: it is an output, or a node that needs it is not cached."""
        if node_id in self._item.outputs:
            return True
        for other, node in self.prompt.items():
            links = [v[0] for v in node.get("inputs", {}).values() if is_link(v)]
            if node_id in links and signatures.get(other) not in self._executor.cache:
                return True
        return False

    def _reuse(self, node_id: str, result: Result) -> None:
        self._results[node_id] = result
        if result.ui is None:
            return
        self._outputs[node_id] = result.ui
        self._tell_executed(node_id, result.ui)
        self._set_progress(node_id, 1, 1, "finished")

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

    def _tell_executed(self, node_id: str, ui: dict[str, Any]) -> None:
        if self.sid is not None:
            data = {"node": node_id, "display_node": node_id, "output": ui, "prompt_id": self._item.prompt_id}
            self._sockets.send("executed", data, self.sid)

    # -- what nodes may do ---------------------------------------------------------------------------------------

    async def steps(self, count: int, seconds_each: float, colour: Colour) -> None:
        """Take steps, with progress and, if it is to send them, a preview each."""
        for step in range(1, count + 1):
            await self._wait(seconds_each)
            await self._stay_silent()
            self._check_interrupt()
            self._die_if_told(step, count)
            self._set_progress(self._node, step, count, "running")
            self._tell_step(step, count, colour)

    async def _wait(self, seconds: float) -> None:
        """Sleep, but not past an interrupt by more than a moment."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._check_interrupt()
            await asyncio.sleep(min(left, 0.05))

    async def _stay_silent(self) -> None:
        await self._executor.faults.until_off("deaf")
        while self._executor.faults.get("silent"):
            await self._wait(0.05)

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
            raise RuntimeError("operator torchvision::nms does not exist")
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
        """Have a checkpoint in memory; loading takes its time, and may block the loop."""
        if self._executor.loaded == name:
            return
        seconds = self._executor.options.load_seconds
        if self._executor.options.block_loop:
            await self._sockets.drained()
            _block(seconds)
        else:
            await self._wait(seconds)
        self._executor.loaded = name

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
            "current_outputs": list(self._results),
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


def _block(seconds: float) -> None:
    """Hold the event loop. time.sleep would do, but for a clock that jumps: it fails under libfaketime."""
    select.select([], [], [], seconds)
