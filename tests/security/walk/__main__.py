"""python -m tests.security.walk --comfyui URL: see docs/security.md, "How it is shown"."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tests.security.walk.run import Figures, Hit, Walk, sample
from tests.security.walk.start import prepare
from tests.support.lab import Lab

MAX_TOLD = 40
MAX_PROMPT = 2000


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.security.walk", description=__doc__)
    parser.add_argument("--comfyui", metavar="URL", help="a ComfyUI of the walk's own: its files are read and changed")
    parser.add_argument("--base-directory", metavar="DIR", type=Path, help="ComfyUI's base directory")
    parser.add_argument("--simulator", action="store_true", help="start a simulated ComfyUI")
    parser.add_argument("--classes", metavar="GLOB", action="append", help="walk these classes alone")
    parser.add_argument("--limit", metavar="N", type=int, help="send so many of the prompts, chosen by the seed")
    parser.add_argument("--skip", metavar="N", type=int, default=0, help="leave out the first N, to go on from there")
    parser.add_argument("--without", metavar="GLOB", action="append", default=[], help="leave out these classes")
    parser.add_argument("--seed", metavar="S", type=int, default=1)
    parser.add_argument("--trust", metavar="PACK", action="append", default=[], help="nodes.trust; '*' finds holes")
    parser.add_argument("--unchecked", action="store_true", help="let all names pass: secret folders alone hold")
    parser.add_argument("--storage", action="store_true", help="keep outputs in object storage, with signed links")
    parser.add_argument("--environment-word", metavar="WORD", help="a word in the environment of that ComfyUI")
    parser.add_argument("--report", metavar="FILE", type=Path, help="write figures and hits there, as JSON")
    parsed = parser.parse_args(arguments)
    if bool(parsed.comfyui) == parsed.simulator:
        parser.error("give either --comfyui or --simulator")
    return parsed


def told(figures: Figures, walking: Walk, seconds: float) -> list[str]:
    """Return the figures, and the hits, as lines."""
    by_class: dict[str, list[Hit]] = {}
    for hit in walking.hits.values():
        by_class.setdefault(hit.case.class_type if hit.case else "", []).append(hit)
    lines = [
        f"classes {figures.classes}, inputs {figures.inputs}, ways {len(figures.ways)}, "
        f"classes that need what no node makes {figures.unfillable}",
        ", ".join(f"{name} {count}" for name, count in figures.counts.items()),
        "refused: " + ", ".join(f"{name} {count}" for name, count in figures.refused.most_common()),
        f"hits {len(walking.hits)}, of classes: "
        + ", ".join(f"{name or 'none'} {len(hits)}" for name, hits in sorted(by_class.items())),
        f"notes {len(walking.notes)}, seconds {seconds:.0f}",
    ]
    for hits in by_class.values():
        lines += [f"HIT {hit.told()}" for hit in hits[: max(1, MAX_TOLD // max(len(by_class), 1))]]
        lines += [f"    {hits[0].prompt[:MAX_PROMPT]}"] if hits[0].prompt else []
    return [*lines, *(f"NOTE {hit.told()}" for hit in list(walking.notes.values())[:5])]


def report(figures: Figures, walking: Walk) -> dict[str, Any]:
    """Return all of it, for a file."""

    def listed(hits: dict[Any, Hit]) -> list[dict[str, Any]]:
        return [{"hit": hit.told(), "body": hit.prompt} for hit in hits.values()]

    return {
        "classes": figures.classes,
        "inputs": figures.inputs,
        "ways": sorted(figures.ways),
        "counts": dict(figures.counts),
        "refused": dict(figures.refused),
        "hits": listed(walking.hits),
        "notes": listed(walking.notes),
    }


async def main(arguments: list[str]) -> int:
    """Walk; return the exit code: 1 if anything of the victim's came back."""
    options = _arguments(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="walk-") as folder:
        lab = Lab(Path(folder))
        try:
            url = options.comfyui
            if options.simulator:
                options.base_directory = lab.directory / "comfyui"
                url = (await lab.simulator("--base-dir", str(options.base_directory))).url

            def progress(done: int) -> None:
                print(f"{done} prompts, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

            base = options.base_directory.resolve() if options.base_directory else None
            globs = options.classes or ("*",)
            prepared = await prepare(
                lab,
                url,
                base,
                trust=options.trust,
                globs=globs,
                seed=options.seed,
                is_checked=not options.unchecked,
                stores=options.storage,
            )
            walking, figures = prepared.walk, prepared.figures
            if options.environment_word:
                prepared.victim.secrets.words[options.environment_word] = "environment"
            await walking.view_names(prepared.targets)
            chosen = sample(prepared.cases, options.limit, options.seed)[options.skip :]
            chosen = [case for case in chosen if not any(fnmatch(case.class_type, glob) for glob in options.without)]
            await walking.run(chosen, progress)
            walking.found_lost(await prepared.victim.lost())
            print("\n".join(told(figures, walking, time.monotonic() - started)))
            if options.report is not None:
                options.report.write_text(json.dumps(report(figures, walking), indent=1))
        finally:
            await lab.close()
    return 1 if walking.hits else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
