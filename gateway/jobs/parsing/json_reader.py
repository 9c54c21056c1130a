"""Read long JSON: bodies of POST /prompt and history entries. Light ones are read at once, others in a process apart,
so that they don't block the event loop.

A thread would not help, because JSON parsers hold the interpreter's lock.
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
from gateway.comfy.history_files import EntryFiles, files_of_entry
from gateway.comfy.jobs_api import job_of_history
from gateway.jobs.parsing.reader_process import (
    HEAD,
    CutParts,
    FillParts,
    FindFiles,
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

# A body is light up to LIGHT_BYTES, or up to MAX_LIGHT_BYTES if it has few values, because a long text is read fast.
LIGHT_BYTES = 32 * 1024
MAX_LIGHT_BYTES = 256 * 1024
MAX_LIGHT_VALUES = 8_000
# Maximum number of processes. A tenant uses one of them at most.
PROCESSES = 2
# Maximum time for one body, in seconds. The worst that the bounds allow takes a second.
SECONDS = 30.0
# Maximum memory of a process in bytes: at least, and for each byte that a body may have.
# Sixty megabytes of numbers take 1.3 GB of addresses.
MEMORY, MEMORY_PER_BYTE = 3 * 2**29, 16
# A process is ended after this idle time, because it may hold as much memory as its largest body took.
IDLE_SECONDS = 30.0
# Bytes that are handed over in one turn of the event loop.
PIECE = 256 * 1024
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")

Inspect = Callable[[Mapping[str, Any], bool], object]


class NotRead(Exception):
    """Failure to read a body for a reason that may pass. The text says which."""


class TakesTooMuch(NotRead):
    """Failure because a document takes more memory than is allowed. A retry does not help."""


def is_light(body: bytes) -> bool:
    """Return True if a body is read at once, in the gateway's own process."""
    return len(body) <= LIGHT_BYTES or (
        len(body) <= MAX_LIGHT_BYTES and json_codec.count_values(body) <= MAX_LIGHT_VALUES
    )


class JsonReader:
    """Reader of prompts' bodies, long events and long history entries.

    Args:
        bounds: maximum sizes of a prompt.
        max_bytes: maximum size of a body.
        seconds: maximum time of a process for a body.
        memory: maximum memory of a process in bytes; None to compute it from `max_bytes`.
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
        """Return the ids of the running processes."""
        return [process.pid for process in (*self._idle, *self._busy) if process.pid]

    async def close(self) -> None:
        """End all processes. Bodies that they are reading fail with `NotRead`."""
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
            Rejection: the body can't be a prompt, or takes too much memory.
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
        # Yield to the event loop between the steps. Each step's time is bounded, because the graph is.
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
            # Intern class names as `survey` does, because ten thousand waiting prompts name a few hundred classes.
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
            NotRead: as `read`, or the entry takes too much memory.
        """
        if len(entry) <= MAX_LIGHT_BYTES:
            return json_codec.dumps(job_of_history(prompt_id, json_codec.loads(entry), include_outputs=True))
        shown = await self._outcome(tenant, ShowJob(prompt_id), entry)
        if not isinstance(shown, bytes):
            raise NotRead("it takes more memory than there is for one answer")
        return shown

    async def files_of(
        self, tenant: str, entry: bytes, file_inputs: Collection[tuple[str, str]], maximum: int
    ) -> EntryFiles:
        """Return the files of an entry; see `gateway.comfy.history_files`.

        Raises:
            NotRead: as `show_job`.
        """
        if self._is_light(entry):
            return files_of_entry(json_codec.loads(entry), file_inputs, maximum)
        found = await self._outcome(tenant, FindFiles(frozenset(file_inputs), maximum), entry)
        if not isinstance(found, EntryFiles):
            raise TakesTooMuch("it takes more memory than there is for one entry")
        return found

    async def made_files(self, tenant: str, entry: bytes, maximum: int) -> tuple[FileRef, ...] | None:
        """Return the files that the job of an entry made, at most `maximum`; None if it can't be read now."""
        try:
            return (await self.files_of(tenant, entry, (), maximum)).made
        except NotRead:
            return None

    async def cut(self, tenant: str, cut: CutParts) -> bytes:
        """Return a document without its long parts; empty if the rest is too long, or no JSON.

        Raises:
            NotRead: as `read`, or the document takes too much memory.
        """
        left = await self._outcome(tenant, cut, b"")
        if not isinstance(left, bytes):
            raise TakesTooMuch("it takes more memory than there is for one document")
        return left

    async def fill(self, tenant: str, order: FillParts, left: bytes) -> int:
        """Put the long parts of a document back, write it into a file, and return the file's size in bytes.

        Raises:
            NotRead: as `cut`.
        """
        size = await self._outcome(tenant, order, left)
        if not isinstance(size, int):
            raise TakesTooMuch("it takes more memory than there is for one document")
        return size

    @asynccontextmanager
    async def _turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a tenant's turn, because its bodies are read one at a time, and tenants take turns."""
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
    """Reading process. It is started with its first body."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._process: asyncio.subprocess.Process | None = None
        self._file_inputs: frozenset[tuple[str, str]] | None = None
        self.used = 0

    @property
    def pid(self) -> int:
        """Return the process id; 0 before the start."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_alive(self) -> bool:
        """Return True until the process has ended."""
        return self._process is None or self._process.returncode is None

    async def carry_out(self, order: Order, document: bytes) -> Outcome:
        """Send an order to the process, and return the outcome.

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
        # Unpickling is safe, because the bytes come from the gateway's own process.
        packed = [await process.stdout.readexactly(min(PIECE, size - start)) for start in range(0, size, PIECE)]
        if len(packed) == 1:
            return _unpickled(packed[0])
        whole = b"".join(packed)
        del packed
        # Yield to the event loop between the steps, because each copy of a large outcome takes long.
        await asyncio.sleep(0)
        outcome = _unpickled(whole)
        await asyncio.sleep(0)
        return outcome

    async def _start(self) -> asyncio.subprocess.Process:
        root = str(Path(gateway.__file__).parent.parent)
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        return await asyncio.create_subprocess_exec(
            # Don't start it with -m, because its pickled objects would be of the module __main__.
            *(sys.executable, "-P", "-c", f"from {main.__module__} import main; main()", str(self._memory)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=PIECE,
            # Pass few variables, because the gateway's own environment may hold keys.
            env={**kept, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])},
        )

    async def end(self) -> None:
        """Kill the process, and wait for its end."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            try:
                process.kill()
            except ProcessLookupError:
                pass
        await process.wait()
