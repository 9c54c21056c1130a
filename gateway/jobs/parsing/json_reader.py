"""Long JSON, read: bodies of POST /prompt and history entries. What is light is read at once, all else in a process
apart, so that nobody waits for it.

A thread would not do: JSON parsers hold the interpreter.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gateway
from gateway.comfy import json_codec
from gateway.comfy.errors import error_body
from gateway.comfy.file_refs import FileRef
from gateway.comfy.jobs_api import job_of_history
from gateway.jobs.parsing.reader_process import (
    HEAD,
    CutParts,
    FillParts,
    Order,
    Outcome,
    ReadPrompt,
    Refusal,
    ShowJob,
    main,
)
from gateway.jobs.state.prompt_bounds import Bounds, Rejection
from gateway.jobs.state.submission import Submission, read
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks

_log = logs.get("prompts")

# A body is light up to so many bytes, or up to more if it has few values: a long text is read fast.
LIGHT_BYTES = 32 * 1024
MAX_LIGHT_BYTES = 256 * 1024
MAX_LIGHT_VALUES = 8_000
# Processes at a time. Each tenant has one of them at most.
PROCESSES = 2
# The longest that one body may take; the worst that the bounds allow takes a second.
SECONDS = 30.0
# Bytes of memory of a process, and for each byte that a body may have.
# Sixty megabytes of numbers take 1.3 GB of addresses.
MEMORY, MEMORY_PER_BYTE = 3 * 2**29, 16
# A process that has had nothing to do for so long is ended: it may hold as much memory as its largest body took.
IDLE_SECONDS = 30.0
# Bytes that are handed over before others have their turn.
PIECE = 256 * 1024
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")

Inspect = Callable[[Mapping[str, Any], bool], object]


class NotRead(Exception):
    """A body could not be read for a reason that may pass; the text says which."""


class TakesTooMuch(NotRead):
    """A document takes more memory than there is for one. That does not pass."""


def is_light(body: bytes) -> bool:
    """Return True if a body is read at once."""
    return len(body) <= LIGHT_BYTES or (
        len(body) <= MAX_LIGHT_BYTES and json_codec.count_values(body) <= MAX_LIGHT_VALUES
    )


class JsonReader:
    """Reads the bodies of prompts.

    Args:
        bounds: how large a prompt may be.
        most_bytes: how long a body may be.
        seconds: how long a process may take for a body.
        memory: how many bytes a process may take; None for what `max_bytes` needs.
        is_light: returns True for a body that is read at once.
    """

    def __init__(
        self,
        bounds: Bounds,
        max_bytes: int,
        metrics: Metrics,
        *,
        seconds: float = SECONDS,
        memory: int | None = None,
        is_light: Callable[[bytes], bool] = is_light,
    ) -> None:
        self._bounds = bounds
        self._metrics = metrics
        self._seconds = seconds
        self._memory = max(MEMORY, MEMORY_PER_BYTE * max_bytes) if memory is None else memory
        self._is_light = is_light
        self._places = asyncio.Semaphore(PROCESSES)
        self._turns: dict[str, asyncio.Lock] = {}
        self._turns_wanted: Counter[str] = Counter()
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._tasks = Tasks("reading")
        self._is_closed = False

    @property
    def pids(self) -> list[int]:
        """Return the ids of the processes that there are."""
        return [process.pid for process in (*self._idle, *self._busy) if process.pid]

    async def close(self) -> None:
        """End all processes; a body that one of them reads is not read."""
        self._is_closed = True
        for process in (*self._idle, *self._busy):
            await process.end()
        self._idle.clear()
        await self._tasks.close()

    async def read(
        self,
        tenant: str,
        body: bytes,
        file_inputs: Collection[tuple[str, str]],
        *,
        by_admin: bool,
        inspect: Inspect | None,
        own_name: Callable[[FileRef], FileRef] | None = None,
        request_id: str = "",
    ) -> Submission:
        """Read a body; see `gateway.jobs.state.submission.read`. A body that is not light keeps its secret names.

        Raises:
            Rejection: it can't be a prompt, or takes too much memory.
            NotRead: the process was ended, or took too long.
        """
        if self._is_light(body):
            return read(
                body,
                file_inputs,
                self._bounds,
                by_admin=by_admin,
                inspect=inspect,
                own_name=own_name,
                request_id=request_id,
            )
        submission = await self._read_apart(tenant, body, frozenset(file_inputs), by_admin, request_id)
        if inspect is None:
            return submission
        # One after the other, with a turn for others between: the graph is bounded, and so is what each takes.
        await asyncio.sleep(0)
        graph = submission.graph()
        await asyncio.sleep(0)
        return replace(submission, judgement=inspect(graph, submission.is_plain))

    async def _read_apart(
        self, tenant: str, body: bytes, file_inputs: frozenset[tuple[str, str]], by_admin: bool, request_id: str
    ) -> Submission:
        order = ReadPrompt(self._bounds, by_admin, file_inputs)
        outcome = await self._outcome(tenant, order, body)
        if isinstance(outcome, Submission):
            self._metrics.prompts_read_apart.labels("read").inc()
            # As `survey` does: ten thousand waiting prompts name the same few hundred classes.
            nodes = tuple((node_id, sys.intern(class_type)) for node_id, class_type in outcome.nodes)
            return replace(outcome, nodes=nodes, request_id=request_id)
        self._metrics.prompts_read_apart.labels("refused").inc()
        if outcome is None:
            details = f"its {len(body)} bytes take more memory than there is for one prompt"
            raise Rejection(413, error_body("prompt_too_large", "The prompt is too large", details))
        assert isinstance(outcome, Refusal)
        raise Rejection(outcome.status, outcome.body)

    async def show_job(self, tenant: str, prompt_id: str, entry: bytes) -> bytes:
        """Return the JSON of an ended job as /api/jobs/{id} shows it.

        Raises:
            NotRead: as `read`, or it takes too much memory.
        """
        if len(entry) <= MAX_LIGHT_BYTES:
            return json_codec.dumps(job_of_history(prompt_id, json_codec.loads(entry), include_outputs=True))
        shown = await self._outcome(tenant, ShowJob(prompt_id), entry)
        if not isinstance(shown, bytes):
            raise NotRead("it takes more memory than there is for one answer")
        return shown

    async def cut(self, tenant: str, cut: CutParts) -> bytes:
        """Return what is left of a document without its long parts; nothing if that is too much, or no JSON.

        Raises:
            NotRead: as `read`, or it takes too much memory.
        """
        left = await self._outcome(tenant, cut, b"")
        if not isinstance(left, bytes):
            raise TakesTooMuch("it takes more memory than there is for one document")
        return left

    async def fill(self, tenant: str, order: FillParts, left: bytes) -> int:
        """Put the long parts of a document back, and write it into a file; return the bytes of that.

        Raises:
            NotRead: as `cut`.
        """
        size = await self._outcome(tenant, order, left)
        if not isinstance(size, int):
            raise TakesTooMuch("it takes more memory than there is for one document")
        return size

    @asynccontextmanager
    async def _turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a tenant's turn: its bodies are read one at a time, and tenants take turns."""
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        self._turns_wanted[tenant] += 1
        try:
            async with turn, self._places:
                yield
        finally:
            self._turns_wanted[tenant] -= 1
            if not self._turns_wanted[tenant]:
                del self._turns_wanted[tenant], self._turns[tenant]

    async def _outcome(self, tenant: str, order: Order, document: bytes) -> Outcome:
        async with self._turn(tenant):
            return await self._outcome_now(order, document)

    async def _outcome_now(self, order: Order, body: bytes) -> Outcome:
        if self._is_closed:
            raise NotRead("the gateway is stopping")
        process = self._next_process()
        self._busy.add(process)
        is_sound = False
        try:
            async with asyncio.timeout(self._seconds):
                outcome = await process.carry_out(order, body)
            is_sound = True
        except TimeoutError as error:
            raise self._not_read(f"it took longer than {self._seconds:g} s", body) from error
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise self._not_read("the process that reads large prompts has ended", body) from error
        finally:
            self._busy.discard(process)
            if is_sound and not self._is_closed:
                self._keep(process)
            else:
                self._tasks.start(process.end(), "end")
        return outcome

    def _next_process(self) -> _Process:
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
        return _Process(self._memory)

    def _not_read(self, reason: str, body: bytes) -> NotRead:
        _log.error("prompt_not_read", reason=reason, bytes=len(body))
        self._metrics.prompts_read_apart.labels("failed").inc()
        return NotRead(reason)

    def _keep(self, process: _Process) -> None:
        self._idle.append(process)
        process.used += 1
        asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_idle, process, process.used)

    def _end_idle(self, process: _Process, used: int) -> None:
        if process in self._idle and process.used == used:
            self._idle.remove(process)
            self._tasks.start(process.end(), "end")


def _unpickled(packed: bytes) -> Outcome:
    outcome: Outcome = pickle.loads(packed)
    return outcome


class _Process:
    """One process that reads. It is started with its first body."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._process: asyncio.subprocess.Process | None = None
        self._file_inputs: frozenset[tuple[str, str]] | None = None
        self.used = 0

    @property
    def pid(self) -> int:
        """Return its id, 0 before it is started."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_alive(self) -> bool:
        """Return True until it has ended."""
        return self._process is None or self._process.returncode is None

    async def carry_out(self, order: Order, document: bytes) -> Outcome:
        """Have an order carried out.

        Raises:
            OSError, EOFError, UnpicklingError: the process can't be started, or has ended.
        """
        if self._process is None:
            self._process = await self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        known = self._file_inputs
        if isinstance(order, ReadPrompt):
            self._file_inputs = order.file_inputs
            if order.file_inputs is known:
                order = replace(order, file_inputs=None)
        for message in (pickle.dumps(order), document):
            process.stdin.write(HEAD.pack(len(message)))
            for start in range(0, len(message), PIECE):
                process.stdin.write(message[start : start + PIECE])
                await process.stdin.drain()
        (size,) = HEAD.unpack(await process.stdout.readexactly(HEAD.size))
        # What is unpickled comes from a process of the gateway's own.
        packed = [await process.stdout.readexactly(min(PIECE, size - start)) for start in range(0, size, PIECE)]
        if len(packed) == 1:
            return _unpickled(packed[0])
        whole = b"".join(packed)
        del packed
        # To copy what is large takes long, so that each copy is a turn of its own.
        await asyncio.sleep(0)
        outcome = _unpickled(whole)
        await asyncio.sleep(0)
        return outcome

    async def _start(self) -> asyncio.subprocess.Process:
        root = str(Path(gateway.__file__).parent.parent)
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        return await asyncio.create_subprocess_exec(
            # Not with -m: what it pickles would be of the module __main__.
            *(sys.executable, "-P", "-c", f"from {main.__module__} import main; main()", str(self._memory)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=PIECE,
            # The gateway's own environment may hold keys.
            env={**kept, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])},
        )

    async def end(self) -> None:
        """End it, whatever it does."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            try:
                process.kill()
            except ProcessLookupError:
                pass
        await process.wait()
