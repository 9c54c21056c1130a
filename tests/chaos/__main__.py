"""``python -m tests.chaos --seed 17``, or ``--seeds 20`` for the first twenty: a line each, 1 if one failed."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.run import run


def main() -> int:
    """Run seeds."""
    parser = argparse.ArgumentParser(prog="tests.chaos")
    parser.add_argument("--seed", type=int, action="append", default=[])
    parser.add_argument("--seeds", type=int, default=0)
    arguments = parser.parse_args()
    began, failed = time.monotonic(), []
    seeds = arguments.seed or range(1, (arguments.seeds or 20) + 1)
    for seed in seeds:
        directory = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        try:
            print(asyncio.run(run(seed, directory)), flush=True)
        except AssertionError as error:
            failed.append(seed)
            print(f"seed {seed} FAILED: {error}", flush=True)
            continue
        shutil.rmtree(directory)
    print(f"{len(seeds)} seeds, {len(failed)} failed {failed or ''} {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
