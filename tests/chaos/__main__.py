"""``python -m tests.chaos --seed 17``, or ``--seeds 20`` for the first twenty: a line each, 1 if one failed.

With ``--storage`` outputs go to object storage, which fails, too; with ``--seaweedfs`` that is SeaweedFS.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import stored_run
from tests.chaos.run import run
from tests.chaos.stored_plan import stored_plan
from tests.chaos.stores import own_store, seaweed_store


def main() -> int:
    """Run seeds."""
    parser = argparse.ArgumentParser(prog="tests.chaos")
    parser.add_argument("--seed", type=int, action="append", default=[])
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--storage", action="store_true")
    parser.add_argument("--seaweedfs", action="store_true")
    arguments = parser.parse_args()
    is_stored, make_store = arguments.storage or arguments.seaweedfs, own_store
    if arguments.seaweedfs:
        make_store = seaweed_store
    began, failed = time.monotonic(), []
    seeds = arguments.seed or range(1, (arguments.seeds or 20) + 1)
    for seed in seeds:
        directory = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        try:
            it = stored_run.run(stored_plan(seed), directory, make_store) if is_stored else run(seed, directory)
            print(asyncio.run(it), flush=True)
        except AssertionError as error:
            failed.append(seed)
            print(f"seed {seed} FAILED: {error}", flush=True)
            continue
        shutil.rmtree(directory)
    print(f"{len(seeds)} seeds, {len(failed)} failed {failed or ''} {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
