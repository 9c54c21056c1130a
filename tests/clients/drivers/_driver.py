"""What the Python drivers share: ``driver.py URL SCENARIO``, JSON on standard input, a line of JSON at the end."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Scenario = Callable[..., dict[str, Any]]
LIMIT = 40.0


def encode(data: bytes) -> str:
    """Bytes in JSON."""
    return base64.b64encode(data).decode()


def until(look: Callable[[], T], limit: float = LIMIT) -> T:
    """Look again and again until there is something."""
    end = time.monotonic() + limit
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"not within {limit} s")
        time.sleep(0.05)


def runs(queue: dict[str, Any], prompt_id: str) -> bool:
    """Whether a prompt runs, as GET /queue has it."""
    return any(item[1] == prompt_id for item in queue["queue_running"])


def main(scenarios: dict[str, Scenario]) -> None:
    """Run the scenario that is asked for."""
    url, name = sys.argv[1:3]
    print(json.dumps(scenarios[name](url, **json.load(sys.stdin))), file=sys.__stdout__)
