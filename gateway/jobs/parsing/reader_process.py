"""Process that reads long JSON for the gateway: one document after the other, from its input to its output.

`JsonReader` starts and ends the process. The process also ends by itself when its input ends.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gateway.comfy import json_codec
from gateway.comfy.events import KNOWN
from gateway.comfy.history_files import EntryFiles, files_of_entry
from gateway.comfy.jobs_api import job_of_history
from gateway.comfy.long_parts import Cutter, cut_entry, cut_event, filled
from gateway.comfy.responses import MAX_RESULT_VALUES
from gateway.jobs.isolation.reveal_names import reveal_json
from gateway.jobs.state.partner_keys import Censor
from gateway.jobs.state.prompt_bounds import Bounds, Rejection
from gateway.jobs.state.submission import Submission, read
from gateway.tenants.secret_names import holds_secret

# The length before each message.
HEAD = struct.Struct(">Q")
# A level for `zlib` that is twice as fast as the default for a text that hardly gets shorter.
PACK_LEVEL = 1
# Items of a list that are encoded in one piece.
SLICE = 10_000


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """Order to read the body of a POST /prompt. The outcome is a `Submission` or a `Refusal`.

    `file_inputs` are the inputs that name files; None for the same ones as in the order before.
    """

    bounds: Bounds
    by_admin: bool
    file_inputs: frozenset[tuple[str, str]] | None


@dataclass(frozen=True, slots=True)
class ShowJob:
    """Order to turn a history entry into the job that /api/jobs/{id} shows. The outcome is its JSON."""

    prompt_id: str


@dataclass(frozen=True, slots=True)
class FindFiles:
    """Order to find the files of a history entry. The outcome is its `EntryFiles`."""

    file_inputs: frozenset[tuple[str, str]]
    maximum: int


@dataclass(frozen=True, slots=True)
class CutParts:
    """Order to cut the long parts out of the event or history entry in a file. The outcome is the rest.

    The outcome is empty if the rest has more than `maximum` bytes or too many values, or if it is no JSON.
    """

    path: str
    mark: str
    maximum: int
    is_event: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes to a backend's texts for their reader: replaced ids, file names, partner keys."""

    replaced: tuple[tuple[bytes, bytes], ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    censor: Censor | None = None

    def of(self, raw: bytes) -> bytes:
        """Return encoded JSON with the changes."""
        if self.censor is not None:
            raw = self.censor.encoded(raw)
        if holds_secret(raw):
            raw = reveal_json(raw, self.names)
        for old, new in self.replaced:
            raw = raw.replace(old, new)
        return raw


@dataclass(frozen=True, slots=True)
class FillParts:
    """Order to put the parts that `CutParts` cut out back into a document, and write the document into a file.

    The outcome is the size of the file. A document that `is_packed` is compressed as the journal keeps it.
    """

    cut: CutParts
    target: str
    changes: Changes
    is_packed: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal's status and body."""

    status: int
    body: dict[str, Any]


Order = ReadPrompt | ShowJob | FindFiles | CutParts | FillParts
# None if the order takes more memory than there is.
Outcome = Submission | Refusal | EntryFiles | bytes | int | None


def run(orders: IO[bytes], outcomes: IO[bytes]) -> None:
    """Carry out orders until the input ends. A document follows each order."""
    file_inputs: frozenset[tuple[str, str]] = frozenset()
    parting = Parting()
    while (packed := receive(orders)) is not None and (document := receive(orders)) is not None:
        order: Order = pickle.loads(packed)
        if isinstance(order, ReadPrompt) and order.file_inputs is not None:
            file_inputs = order.file_inputs
        answer = _answer(order, document, file_inputs, parting)
        del packed, document
        outcomes.write(HEAD.pack(len(answer)))
        outcomes.write(answer)
        outcomes.flush()
        del answer
        gc.collect()


def receive(stream: IO[bytes]) -> bytes | None:
    """Return the next message; None at the end of the input."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (size,) = HEAD.unpack(head)
    message = stream.read(size)
    return message if len(message) == size else None


def _answer(order: Order, document: bytes, file_inputs: frozenset[tuple[str, str]], parting: Parting) -> bytes:
    try:
        if isinstance(order, CutParts):
            return pickle.dumps(parting.cut(order), pickle.HIGHEST_PROTOCOL)
        if isinstance(order, FillParts):
            return pickle.dumps(parting.fill(order, document), pickle.HIGHEST_PROTOCOL)
        parting.forget()
        return pickle.dumps(_outcome(order, document, file_inputs), pickle.HIGHEST_PROTOCOL)
    except (MemoryError, SystemError):
        # Catch SystemError, too, because orjson raises that if it does not get the memory that it needs.
        return pickle.dumps(None)


def _outcome(
    order: ReadPrompt | ShowJob | FindFiles, document: bytes, file_inputs: frozenset[tuple[str, str]]
) -> Outcome:
    if isinstance(order, FindFiles):
        return files_of_entry(json_codec.loads(document), order.file_inputs, order.maximum)
    if isinstance(order, ShowJob):
        return json_codec.dumps(job_of_history(order.prompt_id, json_codec.loads(document), include_outputs=True))
    try:
        return read(document, file_inputs, order.bounds, by_admin=order.by_admin)
    except Rejection as rejection:
        return Refusal(rejection.status, rejection.body)


class Parting:
    """Cutter of long parts, which it keeps of the last document to put them back."""

    def __init__(self) -> None:
        self._last: CutParts | None = None
        self._parts: dict[str, Any] = {}
        self._encode: Callable[[Any], bytes] = json_codec.dumps

    def forget(self) -> None:
        """Drop the kept parts."""
        self._last, self._parts = None, {}

    def cut(self, order: CutParts) -> bytes:
        """Return the rest of a document; empty if the rest is too long, or no JSON."""
        self.forget()
        raw = Path(order.path).read_bytes()
        cutter, self._encode = Cutter(order.mark), json_codec.encoder_for(raw)
        try:
            value = json_codec.loads(raw)
            del raw
            cut = cut_event(value, cutter, KNOWN) if order.is_event else cut_entry(value, cutter, order.maximum)
        except (json_codec.MalformedJson, RecursionError):
            return b""
        left = self._encode(cut)
        if len(left) > order.maximum or json_codec.count_values(left) > MAX_RESULT_VALUES:
            return b""
        self._last, self._parts = order, cutter.parts
        return left

    def fill(self, order: FillParts, document: bytes) -> int:
        """Put the parts back, write the document, and return its size in bytes."""
        if self._last != order.cut:
            self.cut(order.cut)
        parts = self._parts
        self.forget()
        encoded = {name: order.changes.of(encoded_in_slices(parts.pop(name), self._encode)) for name in list(parts)}
        packing = zlib.compressobj(PACK_LEVEL) if order.is_packed else None
        size = 0
        with Path(order.target).open("xb") as file:
            for piece in filled(document, order.cut.mark, encoded):
                size += file.write(piece if packing is None else packing.compress(piece))
            if packing is not None:
                size += file.write(packing.flush())
        return size


def encoded_in_slices(value: Any, encode: Callable[[Any], bytes]) -> bytes:
    """Return encoded JSON of a value. Encode a long list piece by piece.

    For sixteen megabytes of numbers in one piece orjson takes a gigabyte of addresses, and if it does not get them, the
    process ends.
    """
    if not isinstance(value, list) or not value:
        return encode(value)
    if any(isinstance(item, list) for item in value):
        return b"[%b]" % b",".join(encoded_in_slices(item, encode) for item in value)
    slices = (encode(value[start : start + SLICE])[1:-1] for start in range(0, len(value), SLICE))
    return b"[%b]" % b",".join(slices)


def bound_memory(maximum: int) -> None:
    """Limit this process's address space, if the system supports that."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (maximum, maximum))
    except (ImportError, ValueError, OSError):
        return


def main() -> None:
    """Carry out orders. The first argument is the maximum memory in bytes."""
    # Ignore Ctrl-C, because it goes to the gateway's whole group, and the gateway ends this process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bound_memory(int(sys.argv[1]))
    # Lower the priority, because the gateway's event loop goes first.
    os.nice(5)
    gc.disable()
    try:
        run(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:
        # If the gateway is gone, exit.
        os._exit(0)
