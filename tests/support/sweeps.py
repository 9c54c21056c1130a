"""Sweeps of a backend's folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.commands import command
from tests.support.folders import files_below
from tests.support.lab import GatewayProcess
from tests.support.security_world import KEYS
from tests.support.workflows import slow


async def sweep(
    gateway: GatewayProcess, base: Path, *options: str, kinds: tuple[str, ...] = ("output", "input"), code: int = 0
) -> dict[str, Any]:
    """Sweep the folders of backend b1, and return the numbers of files by verdict, and of deleted ones."""
    folders = [f"--{kind}-dir={base / kind}" for kind in kinds]
    told = await command(
        *("sweep", "--url", gateway.url, "--backend", "b1", "--json", *folders, *options),
        cwd=base,
        environment={"COMFYUI_KEY": KEYS["boss"]},
    )
    assert told[0] == code, told
    answer = json.loads(told[1])
    assert answer["dry_run"] is ("--delete" not in options)
    verdicts = {name: each["files"] for name, each in answer["verdicts"].items()}
    return verdicts | {f"{name} now": each["files"] for name, each in answer["done"].items()}


def saved(base: Path) -> list[Path]:
    """The files in output/ and below it."""
    return sorted(files_below(base / "output"))


def reading(name: str) -> dict[str, Any]:
    """A prompt that loads a file, and goes on until it is stopped."""
    prompt = slow(steps=1000, step_seconds=0.05)
    load_it = {"class_type": "LoadImage", "inputs": {"image": name}}
    return {**prompt, "8": load_it, "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}}


async def judged(comfy: Comfy, base: Path, kind: str, path: str, *, delete: bool = False) -> str:
    """Return the verdict about a file of backend b1."""
    found, (folder, _, name) = (base / kind / path).stat(), path.rpartition("/")
    file = {"type": kind, "subfolder": folder, "filename": name, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
    status, answer = await comfy.post("/gateway/api/v1/backends/b1/sweep", {"files": [file], "delete": delete})
    assert status == 200, answer
    (verdict,) = answer["verdicts"]
    return str(verdict)
