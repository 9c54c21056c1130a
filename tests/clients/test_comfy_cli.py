"""comfy-cli, unmodified: `comfy run` and `comfy download` on a gateway before two backends."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from gateway.simulator.nodes import seed_colour
from tests.support.lab import Lab
from tests.support.pictures import colour
from tests.support.workflows import slow

SEED = 0x3060C0


async def comfy(python: Path, folder: Path, url: str, *command: str) -> Any:
    """Run one of its commands in a folder. Return what it tells."""
    # It keeps its settings in the home folder. Where it may not tell its makers of its use it has nothing to ask.
    environment = {**os.environ, "HOME": str(folder), "DO_NOT_TRACK": "1", "COMFY_LOCAL_URL": url}
    process = await asyncio.create_subprocess_exec(
        python,
        "-m",
        "comfy_cli",
        "--json",
        "--skip-prompt",
        *command,
        cwd=folder,
        env=environment,
        stdout=-1,
        stderr=-1,
    )
    said, errors = await process.communicate()
    assert process.returncode == 0, (said, errors)
    return json.loads(said.splitlines()[-1])["data"]


async def test_runs_a_workflow_and_downloads(lab: Lab, python_with_clients: Path, tmp_path: Path) -> None:
    gateway = await lab.gateway(*await lab.simulators(2))
    (tmp_path / "workflow_api.json").write_text(json.dumps(slow(SEED)))
    done = await comfy(python_with_clients, tmp_path, gateway.url, "run", "--workflow", "workflow_api.json", "--wait")
    assert (done["status"], len(done["outputs"])) == ("completed", 1)
    await comfy(python_with_clients, tmp_path, gateway.url, "download", done["prompt_id"], "--out-dir", "got")
    (picture,) = (tmp_path / "got").iterdir()
    assert colour(picture.read_bytes()) == seed_colour(SEED)
