"""The description of the routes: it has every route of our own, and what runs answers as it says."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from gateway.web.app import COMFYUI, JOBS, OWN
from gateway.web.routes.openapi import OPERATIONS, document, shown_path
from tests.support.lab import Lab
from tests.support.security_world import KEYS, ask, caller, start
from tests.support.workflows import failing, slow

# ComfyUI's that are not described: they take forms, or sockets, or are but lists of names.
UNDESCRIBED = {
    "/ws",
    "/free",
    "/upload/image",
    "/upload/mask",
    "/models",
    "/models/{folder}",
    "/embeddings",
    "/experiment/models",
    "/experiment/models/{folder}",
    "/experiment/models/preview/{path}",
    "/view_metadata/{folder}",
    "/internal/files/{kind}",
}
# An admin's own runs and workflows are as any user's.
OWN_RUNS = "^/gateway/run|^/gateway/workflows"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance"
)


def test_every_route_is_described() -> None:
    """A new one of our own without a description fails here; so does a description of a route that is gone."""
    own = {(method, shown_path(path)) for method, path, _ in OWN}
    comfyui = {(method, shown_path(path)) for method, path, _ in COMFYUI + JOBS}
    assert own <= OPERATIONS.keys()
    assert OPERATIONS.keys() <= own | comfyui
    assert {path for _, path in comfyui - OPERATIONS.keys()} == UNDESCRIBED
    ids = [operation["operationId"] for path in document()["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) == len(OPERATIONS)


async def test_who_may_read_it(lab: Lab) -> None:
    gateway = await start(lab, await lab.simulator())
    for name, status in (("", 401), ("monitor", 403), ("anna", 200), ("boss", 200)):
        seen = await ask(caller(lab, gateway, name), "GET", "/gateway/openapi.json")
        assert seen.status == status, name


@pytest.mark.parametrize("name", ["anna", "boss"])
async def test_what_runs_answers_as_described(lab: Lab, name: str) -> None:
    """schemathesis, with the same seed each time: no 5xx, and each answer as the description has it."""
    gateway = await start(lab, await lab.simulator())
    comfy = caller(lab, gateway, name)
    for prompt in (slow(), failing()):
        await comfy.entry(await comfy.prompt(prompt))
    await comfy.prompt(slow(steps=1000, step_seconds=0.5))
    await comfy.post("/userdata/a.json", {"a": 1})
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        *("run", f"{gateway.url}/gateway/openapi.json", "-H", f"X-API-Key: {KEYS[name]}"),
        *("--checks", CHECKS, "--max-examples", "8", "--seed", "1", "--generation-deterministic"),
        *("--phases", "examples,coverage,fuzzing", "--no-color", "--request-timeout", "20"),
        # Wrong keys in its form would have it locked out. What an admin's web UI saves is a backend's.
        *(
            "--exclude-path-regex",
            "^/gateway/signin$" if name == "anna" else f"^/gateway/signin$|^/settings|^/users|userdata|{OWN_RUNS}",
        ),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=lab.directory
    )
    assert process.stdout is not None
    said = (await process.stdout.read()).decode()
    assert await process.wait() == 0, said[-6000:]
    generated = re.search(r"(\d+) generated, (\d+) passed", said)
    assert generated, said[-2000:]
    assert int(generated[1]) == int(generated[2]) > 500, said[-2000:]
