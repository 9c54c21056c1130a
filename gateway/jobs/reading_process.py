"""A process that reads long JSON for the gateway: one document after the other, from its input to its output.

`PromptReader` starts it and ends it; it ends by itself when its input does.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import struct
import sys
from dataclasses import dataclass
from typing import IO, Any

from gateway.comfy import wire
from gateway.comfy.jobs import job_of_history
from gateway.jobs.admission import Submission, read
from gateway.jobs.prompt_bounds import Bounds, Rejection

# Before each message: its length.
HEAD = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """An order to read the body of a POST /prompt: a `Submission` comes back, or a `Refusal`.

    `file_inputs` are the inputs that name files, None if they are those of the order before.
    """

    bounds: Bounds
    by_admin: bool
    file_inputs: frozenset[tuple[str, str]] | None


@dataclass(frozen=True, slots=True)
class ShowJob:
    """An order to make of a history entry the job that /api/jobs/{id} shows: its JSON comes back."""

    prompt_id: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal's status and body."""

    status: int
    body: dict[str, Any]


Order = ReadPrompt | ShowJob
# None if it takes more memory than there is.
Outcome = Submission | Refusal | bytes | None


def run(orders: IO[bytes], outcomes: IO[bytes]) -> None:
    """Carry out orders until there are no more; with each comes a document."""
    file_inputs: frozenset[tuple[str, str]] = frozenset()
    while (packed := receive(orders)) is not None and (document := receive(orders)) is not None:
        order: Order = pickle.loads(packed)
        if isinstance(order, ReadPrompt) and order.file_inputs is not None:
            file_inputs = order.file_inputs
        answer = _answer(order, document, file_inputs)
        del packed, document
        outcomes.write(HEAD.pack(len(answer)))
        outcomes.write(answer)
        outcomes.flush()
        del answer
        gc.collect()


def receive(stream: IO[bytes]) -> bytes | None:
    """Return the next message, None if there is none."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (size,) = HEAD.unpack(head)
    message = stream.read(size)
    return message if len(message) == size else None


def _answer(order: Order, document: bytes, file_inputs: frozenset[tuple[str, str]]) -> bytes:
    try:
        return pickle.dumps(_outcome(order, document, file_inputs), pickle.HIGHEST_PROTOCOL)
    except MemoryError:
        return pickle.dumps(None)


def _outcome(order: Order, document: bytes, file_inputs: frozenset[tuple[str, str]]) -> Outcome:
    if isinstance(order, ShowJob):
        return wire.dumps(job_of_history(order.prompt_id, wire.loads(document), include_outputs=True))
    try:
        return read(document, file_inputs, order.bounds, by_admin=order.by_admin)
    except Rejection as rejection:
        return Refusal(rejection.status, rejection.body)


def bound_memory(most: int) -> None:
    """Let this process take so many bytes of addresses and no more, where the system has such a bound."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, ValueError, OSError):
        return


def main() -> None:
    """Carry out orders; the first argument is the memory to take at most."""
    # Ctrl-C goes to the gateway's whole group; the gateway ends this process when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bound_memory(int(sys.argv[1]))
    # What waits for the gateway's loop goes first.
    os.nice(5)
    gc.disable()
    try:
        run(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:
        # The gateway is gone.
        os._exit(0)
