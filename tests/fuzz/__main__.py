"""`make fuzz`: every target in turn, coverage-guided by atheris, for as long as is said.

    python -m tests.fuzz --seconds 300                 all targets, each its share
    python -m tests.fuzz --target graph --seconds 600  one of them
    python -m tests.fuzz --target graph --replay FILE  an input that was found

The exit code is 0 if nothing was found. What is found is written to `findings/`, and belongs into
`tests/fuzz/findings/TARGET/`, where the suite replays it for ever.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DICTIONARY = Path(__file__).parent / "comfy.dict"


def main() -> int:
    """Run as told."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--target", default="")
    parser.add_argument("--corpus", type=Path, help="where inputs that lead further are kept for the next time")
    parser.add_argument("--replay", type=Path)
    chosen = parser.parse_args()
    if chosen.replay is not None:
        from tests.fuzz.targets import TARGETS

        TARGETS[chosen.target].run(chosen.replay.read_bytes())
        return 0
    if chosen.target:
        return _fuzz(chosen.target, chosen.seconds, chosen.corpus)
    return _each(chosen.seconds, chosen.corpus)


def _each(seconds: int, corpus: Path | None) -> int:
    from tests.fuzz.targets import TARGETS

    failed = []
    for name in TARGETS:
        began = time.monotonic()
        command = [sys.executable, "-m", "tests.fuzz", "--target", name, "--seconds", str(seconds // len(TARGETS))]
        if corpus is not None:
            command += ["--corpus", str(corpus)]
        code = subprocess.run(command, check=False).returncode
        print(f"{name}: {'nothing found' if code == 0 else f'exit code {code}'} in {time.monotonic() - began:.0f} s")
        if code:
            failed.append(name)
    print(f"found something: {', '.join(failed)}" if failed else "nothing found")
    return 1 if failed else 0


def _fuzz(name: str, seconds: int, corpus: Path | None) -> int:
    import atheris

    # Whatever is imported from here on tells which of its branches an input takes.
    with atheris.instrument_imports(include=["gateway"]):
        from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as scratch:
        kept = corpus / name if corpus is not None else Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds):
            (kept / f"seed-{number}").write_bytes(seed)
        findings = Path("findings")
        findings.mkdir(exist_ok=True)
        options = [
            f"-max_total_time={seconds}",
            "-max_len=4096",
            # By the clock on the wall: on a busy machine a process at the lowest priority may stand still for a while.
            "-timeout=120",
            "-rss_limit_mb=2048",
            f"-dict={DICTIONARY}",
            f"-artifact_prefix={findings}/{name}-",
            "-print_final_stats=1",
            "-verbosity=0",
        ]
        atheris.Setup([sys.argv[0], *options, str(kept)], target.run)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
