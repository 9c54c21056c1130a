"""Cache options of ComfyUI's command line (comfy/cli_args.py, main.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

GIB = 1024**3
# Options of which ComfyUI takes one at most.
EXCLUSIVE = ("--cache-ram", "--cache-classic", "--cache-lru", "--cache-none", "--high-ram")


class CacheOptionError(ValueError):
    """Cache options that ComfyUI refuses."""


class CacheKind(StrEnum):
    """Rule by which results are kept."""

    RAM = "ram"
    CLASSIC = "classic"
    LRU = "lru"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class CacheRule:
    """Rule by which results are kept, with its bounds: a number of results, and free RAM in bytes.

    With less than `inactive_bytes` of free RAM, results go that the running prompt does not use, and with less than
    `active_bytes` its own.
    """

    kind: CacheKind
    results: int = 0
    active_bytes: float = 0.0
    inactive_bytes: float = 0.0


def read_cache_options(arguments: Sequence[str], ram_bytes: float) -> CacheRule:
    """Return the rule that ComfyUI follows if it is started with `arguments` on a machine with so much RAM.

    Raises:
        CacheOptionError: ComfyUI does not start with them.
    """
    if not arguments:
        return _ram_rule((), ram_bytes)
    option, *values = arguments
    if option not in EXCLUSIVE:
        raise CacheOptionError(f"{option} is no cache option")
    if any(value.startswith("--") for value in values):
        raise CacheOptionError(f"{option} excludes the other cache options")
    try:
        numbers = [float(value) for value in values]
    except ValueError as error:
        raise CacheOptionError(f"{option} takes numbers") from error
    match option, numbers:
        case "--cache-ram", [] | [_] | [_, _]:
            return _ram_rule(numbers, ram_bytes)
        case "--cache-classic" | "--high-ram", []:
            return CacheRule(CacheKind.CLASSIC)
        case "--cache-none", []:
            return CacheRule(CacheKind.NONE)
        case "--cache-lru", [count] if count.is_integer():
            return CacheRule(CacheKind.LRU, results=int(count)) if count > 0 else _ram_rule((), ram_bytes)
        case _:
            raise CacheOptionError(f"{option} does not take these values: {' '.join(values)}")


def _ram_rule(gigabytes: Sequence[float], ram_bytes: float) -> CacheRule:
    active = min(10.0, max(2.0, ram_bytes * 0.1 / GIB))
    # Without a second value all of the RAM must be free, so that nothing is kept that the last prompt did not use.
    inactive = min(128.0, ram_bytes / GIB)
    if gigabytes:
        active = gigabytes[0]
    if len(gigabytes) > 1:
        inactive = gigabytes[1]
    return CacheRule(CacheKind.RAM, active_bytes=active * GIB, inactive_bytes=inactive * GIB)
