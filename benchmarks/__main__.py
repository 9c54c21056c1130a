"""``python -m benchmarks [--quick] [NAME…]``: measure, and print one table."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import platform
import time

import aiohttp

from benchmarks import servers
from benchmarks.table import Row, render

NAMES = (
    *("reads", "tenants", "prompts", "journal", "batch", "views", "sockets", "slow", "stalls", "scrapes", "webhooks"),
    *("decisions", "fleets", "storage", "serverless", "before"),
)


async def _main(names: list[str], quick: bool) -> None:
    servers.install("wrk", "nginx-light")
    rounds, seconds = (1, 1) if quick else (5, 4)
    rows: list[Row] = []
    for name in names:
        rows += await importlib.import_module(f"benchmarks.{name}").run(rounds, seconds)
    versions = f"Python {platform.python_version()}, aiohttp {aiohttp.__version__}"
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {versions}; {rounds} rounds of {seconds} s in turns.\n"
    )
    print(render(rows))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it runs, not how fast")
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], default=[], help="only these")
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.names or list(NAMES), arguments.quick))


if __name__ == "__main__":
    main()
