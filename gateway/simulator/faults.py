"""Faults that can be switched on: at the start with --fail, or at run time with POST /simulator/faults.

| specification | what happens |
|---|---|
| `refuse`, `refuse:S` | nothing listens for S (5) seconds, and open connections are reset |
| `hang` | requests are accepted and never answered |
| `500`, `500:/prompt`, `500:/history/*` | requests, or those of one path, or of all that begin so, are answered 500 |
| `slow:S` | each answer comes S seconds late |
| `drop-socket` | each WebSocket is dropped at once, and again when it reconnects |
| `block-loop:S` | the next job that starts blocks the event loop for S seconds |
| `die-in-job`, `die-in-job:N` | the process ends in the middle of the (N-th) job |
| `drop-answer` | POST /prompt queues the prompt and drops the connection without an answer |
| `hold-prompt` | POST /prompt is read, and queued and answered only when this is switched off |
| `hold-answer` | POST /prompt queues the prompt, and is answered only when this is switched off |
| `hold-view` | GET /view is answered only when this is switched off |
| `endless-view` | GET /view sends the file and then zeros for ever, without a Content-Length |
| `no-prompt-id` | an older ComfyUI: mints ids itself |
| `no-metadata` | an older ComfyUI: sends previews of type 1 alone |
| `no-jobs` | an older ComfyUI: has no /api/jobs |
| `no-features` | an older ComfyUI: has no /features, and says nothing of them on its sockets |
| `no-version` | an older ComfyUI: does not tell its version |
| `interrupt-any` | an older ComfyUI: POST /interrupt stops whatever runs, whichever prompt it names |
| `oom` | jobs fail as they do when the GPU's memory is full |
| `oom-until-free` | the same, until POST /free is asked |
| `leak-vram:G` | G GiB of VRAM are used whatever runs, and POST /free does not give them back |
| `poisoned` | jobs fail with a CUDA error that only a restart heals |
| `lose-uploads` | uploads are answered as if they were kept, and are not |
| `odd` | each answer in JSON is one that no ComfyUI gives, and before each message on a socket comes an odd one |
| `full-disk` | jobs fail, because there is no space left on its disk |
| `broken` | jobs fail with an error of the installation, whatever they are |
| `low-ram` | GET /system_stats tells that the machine's memory is nearly full |
| `no-worker` | prompts are queued and none is started, as if the thread that runs them hung between two |
| `deaf` | what runs goes no further, says nothing and heeds no interrupt, while requests are answered |
| `silent`, `silent:N` | what runs stops (after N steps) and says nothing; requests are answered, an interrupt ends it |
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

KNOWN = frozenset(
    {
        "refuse",
        "hang",
        "500",
        "slow",
        "drop-socket",
        "block-loop",
        "die-in-job",
        "drop-answer",
        "hold-prompt",
        "hold-answer",
        "hold-view",
        "endless-view",
        "no-prompt-id",
        "no-metadata",
        "no-jobs",
        "no-features",
        "no-version",
        "interrupt-any",
        "lose-uploads",
        "odd",
        "oom",
        "oom-until-free",
        "leak-vram",
        "poisoned",
        "broken",
        "full-disk",
        "silent",
        "deaf",
        "no-worker",
        "low-ram",
    }
)


class UnknownFault(ValueError):
    """A specification that names no fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault and its argument."""

    name: str
    argument: str = ""

    @property
    def number(self) -> float:
        """Return the argument as a number; 1 if there is none."""
        return float(self.argument) if self.argument else 1.0

    def is_of(self, path: str) -> bool:
        """Return True if the argument names a path: itself, by its beginning and a ``*``, or by naming none."""
        argument = self.argument
        return argument in ("", path) or (argument.endswith("*") and path.startswith(argument[:-1]))


def parse(specification: str) -> Fault:
    """Read a specification.

    Raises:
        UnknownFault: it names none, or its argument does not fit.
    """
    name, _, argument = specification.partition(":")
    if name not in KNOWN:
        raise UnknownFault(f"{specification!r}: there is no such fault; there are {', '.join(sorted(KNOWN))}")
    fault = Fault(name, argument)
    if name != "500":
        try:
            _ = fault.number
        except ValueError as error:
            raise UnknownFault(f"{specification!r}: what follows the colon must be a number") from error
    return fault


class Faults:
    """The faults that are on."""

    def __init__(self, specifications: tuple[str, ...] = ()) -> None:
        self._on: dict[str, Fault] = {}
        self._switched_off = asyncio.Event()
        for specification in specifications:
            self.switch_on(specification)

    def switch_on(self, specification: str) -> None:
        """Switch one on."""
        fault = parse(specification)
        self._on[fault.name] = fault

    def switch_off(self, name: str | None = None) -> None:
        """Switch one off, or all."""
        if name is None:
            self._on.clear()
        else:
            self._on.pop(name, None)
        self._switched_off.set()

    async def until_off(self, name: str) -> None:
        """Wait while a fault is on."""
        while name in self._on:
            self._switched_off.clear()
            await self._switched_off.wait()

    def get(self, name: str) -> Fault | None:
        """Return a fault; None if it is off."""
        return self._on.get(name)

    def take(self, name: str) -> Fault | None:
        """Return a fault and switch it off, so that it happens once; None if it is off."""
        return self._on.pop(name, None)
