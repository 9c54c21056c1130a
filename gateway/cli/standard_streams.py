"""Standard input, output and error of the process. If they are closed or take nothing, the gateway serves on."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

STANDARD = (0, 1, 2)


def open_missing() -> None:
    """Open /dev/null on each standard stream that is closed, before anything else is opened.

    If one stays closed, the next file or socket gets its number, and libuv aborts when it closes that (uv__close).
    """
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one, because those below are open.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def say(line: str, stream: TextIO) -> str:
    """Print a line to a standard stream. Return the reason if that fails, else an empty text.

    If it fails, redirect the stream to /dev/null, because the interpreter would fail at its end on the unwritten rest.
    """
    try:
        stream.write(f"{line}\n")
        stream.flush()
    except (OSError, ValueError) as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        return str(getattr(error, "strerror", None) or error)
    return ""
