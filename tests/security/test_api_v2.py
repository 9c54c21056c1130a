"""The Comfy API v2 by its own description: whatever is sent, each answer is one that the description has."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from gateway.web.v2.openapi import OPERATIONS, document
from gateway.web.v2.table import ROUTES
from tests.security.test_openapi import CHECKS
from tests.support.lab import Lab
from tests.support.security_world import KEYS
from tests.support.v2 import start_v2
from tests.support.workflows import slow


def test_every_route_is_described() -> None:
    routes = {(method, re.sub(r"\{(\w+):.*?\}(?=/|$)", r"{\1}", path)) for method, path, _ in ROUTES}
    assert routes == OPERATIONS.keys()
    ids = [operation["operationId"] for path in document()["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) == len(OPERATIONS)


async def test_what_runs_answers_as_described(lab: Lab) -> None:
    """schemathesis, with the same seed each time."""
    world = await start_v2(lab)
    await world.anna.run(slow(steps=1))
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        *("run", f"{world.gateway.url}/api/v2/openapi.json", "-H", f"X-API-Key: {KEYS['anna']}"),
        *("--checks", CHECKS, "--max-examples", "2", "--seed", "1", "--generation-deterministic"),
        *("--phases", "coverage,fuzzing", "--no-color", "--request-timeout", "20"),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=lab.directory
    )
    assert process.stdout is not None
    said = (await process.stdout.read()).decode()
    assert await process.wait() == 0, said[-6000:]
    generated = re.search(r"(\d+) generated, (\d+) passed", said)
    assert generated, said[-2000:]
    assert int(generated[1]) == int(generated[2]) > 200, said[-2000:]
