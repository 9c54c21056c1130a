"""A process that reads large prompts for the gateway: body after body from its input, what they say to its output.

`PromptReader` starts it and ends it; it ends by itself when its input does.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import struct
import sys
from typing import IO, Any

from gateway.jobs.admission import Bounds, Rejection, Submission, read

# Before each message: its length.
HEAD = struct.Struct(">Q")
# What a body comes with: the bounds, whether an admin sent it, and the inputs that name files, None if as before.
Order = tuple[Bounds, bool, frozenset[tuple[str, str]] | None]
# What comes back: the submission, or a refusal's status and body; None if it takes more memory than there is.
Outcome = Submission | tuple[int, dict[str, Any]] | None


def run(orders: IO[bytes], outcomes: IO[bytes]) -> None:
    """Read bodies until there are no more."""
    file_inputs: frozenset[tuple[str, str]] = frozenset()
    while (order := receive(orders)) is not None and (body := receive(orders)) is not None:
        bounds, by_admin, changed = pickle.loads(order)
        file_inputs = file_inputs if changed is None else changed
        answer = _read(body, file_inputs, bounds, by_admin=by_admin)
        del order, body
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


def _read(body: bytes, file_inputs: frozenset[tuple[str, str]], bounds: Bounds, *, by_admin: bool) -> bytes:
    outcome: Outcome
    try:
        try:
            outcome = read(body, file_inputs, bounds, by_admin=by_admin)
        except Rejection as rejection:
            outcome = (rejection.status, rejection.body)
        return pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)
    except MemoryError:
        return pickle.dumps(None)


def bound_memory(most: int) -> None:
    """Let this process take so many bytes of addresses and no more, where the system has such a bound."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, ValueError, OSError):
        return


def main() -> None:
    """Read bodies; the first argument is the memory to take at most."""
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


if __name__ == "__main__":
    main()
