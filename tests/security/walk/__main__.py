"""python -m tests.security.walk --comfyui URL: see docs/security.md, "How it is shown"."""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import json
import random
import secrets
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.comfy_client import Comfy
from tests.lab import GatewayProcess, Lab
from tests.security.walk.graphs import Recipes
from tests.security.walk.run import Case, Figures, Hit, Walk, cases, now, sample
from tests.security.walk.victim import Disk, Victim, attackers_files

MAX_TOLD = 40
MAX_PROMPT = 2000
_KEYS = {name: f"{name}-key-of-the-walk-0123456789" for name in ("anna", "ben", "boss")}


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.security.walk", description=__doc__)
    parser.add_argument("--comfyui", metavar="URL", help="a ComfyUI of the walk's own: its files are read and changed")
    parser.add_argument("--base-directory", metavar="DIR", type=Path, help="ComfyUI's base directory")
    parser.add_argument("--simulator", action="store_true", help="start a simulated ComfyUI")
    parser.add_argument("--classes", metavar="GLOB", action="append", help="walk these classes alone")
    parser.add_argument("--ways", metavar="GLOB", default="*", help="only the ways to fill an input that are so called")
    parser.add_argument("--limit", metavar="N", type=int, help="send so many of the prompts, chosen by the seed")
    parser.add_argument("--seed", metavar="S", type=int, default=1)
    parser.add_argument("--trust", metavar="PACK", action="append", default=[], help="nodes.trust; '*' finds holes")
    parser.add_argument("--environment-word", metavar="WORD", help="a word in the environment of the ComfyUI")
    parser.add_argument("--report", metavar="FILE", type=Path, help="write figures and hits there, as JSON")
    parsed = parser.parse_args(arguments)
    if bool(parsed.comfyui) == parsed.simulator:
        parser.error("give either --comfyui or --simulator")
    return parsed


async def gateway_for(lab: Lab, url: str, trust: list[str]) -> GatewayProcess:
    """Start a gateway before a ComfyUI, with keys of isolated tenants."""
    keys = [{"name": name, "key": key, "role": "admin" if name == "boss" else "user"} for name, key in _KEYS.items()]
    # The limit on unknown names would stop the walk; what it is there for is tested elsewhere.
    limits = {"bad_names_per_minute": None, "bad_names_per_prompt": None}
    config = {
        "auth": {"keys": keys, "isolation": "isolated"},
        "tenants": {"default": {"nodes": {"trust": trust}, "limits": limits}},
    }
    path = lab.directory / "gateway.yaml"
    path.write_text(json.dumps(config))
    gateway = GatewayProcess(lab.directory / "data", [url], ("--config", str(path)), {"probe__interval": 0.25})
    lab.servers.append(gateway)
    await gateway.start()
    await lab.backends_up(gateway, 1)
    return gateway


async def walk(lab: Lab, url: str, options: argparse.Namespace, progress: Any) -> tuple[Figures, Walk, list[Case]]:
    """Set everything up, and walk."""
    gateway = await gateway_for(lab, url, options.trust)
    anna, ben = (Comfy(lab.http, gateway.url, X_API_Key=_KEYS[name]) for name in ("anna", "ben"))
    base = options.base_directory.resolve() if options.base_directory else None
    host = lab.directory / "host"
    victim = Victim(anna, await anna.get("/object_info"), random.Random(options.seed))
    targets = await victim.make(host / "marker.txt", str(base or ""))
    own, playlists = await attackers_files(ben, targets, str(base or ""))
    targets = replace(targets, playlists=playlists)
    if options.environment_word:
        victim.secrets.words[options.environment_word] = "environment"
    victim.secrets.notes |= {str(base)} if base else set()
    info = await ben.get("/object_info")
    recipes, figures = Recipes(info, own), Figures()
    globs = options.classes or ["*"]
    chosen = [name for name in recipes.classes() if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
    every = [
        case
        for case in cases(recipes, targets, info, chosen, figures)
        if fnmatch.fnmatchcase(case.variant.label, options.ways)
    ]
    found = sample(every, options.limit, options.seed)
    figures.counts["prompts"] = len(every)
    walking = Walk(ben, recipes, victim.secrets, Disk(base, host / "marker.txt"), figures)
    await walking.view_names(targets)
    await walking.run(found, progress)
    walking.found_lost(await victim.lost())
    return figures, walking, found


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
    started = now()
    with tempfile.TemporaryDirectory(prefix="walk-") as folder:
        lab = Lab(Path(folder))
        try:
            url = options.comfyui
            if options.simulator:
                options.base_directory = lab.directory / "comfyui"
                options.environment_word = f"environment-{secrets.token_hex(8)}"
                environment = {"WALK_WORD": options.environment_word}
                simulator = await lab.simulator("--base-dir", str(options.base_directory), environment=environment)
                url = simulator.url

            def progress(done: int) -> None:
                print(f"{done} prompts, {now() - started:.0f} s", file=sys.stderr, flush=True)

            figures, walking, _ = await walk(lab, url, options, progress)
        finally:
            await lab.close()
    print("\n".join(told(figures, walking, now() - started)))
    if options.report is not None:
        options.report.write_text(json.dumps(report(figures, walking), indent=1))
    return 1 if walking.hits else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
