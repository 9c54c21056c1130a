"""The README's shell blocks, pasted as they stand into a shell."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sysconfig
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.lab import Lab
from tests.support.workflows import text_to_image

PROJECT = Path(__file__).parents[2]
BLOCKS: list[str] = re.findall(r"^```sh\n(.*?)^```$", (PROJECT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def shell_environment(directory: Path) -> dict[str, str]:
    """Return the environment of a newcomer's shell, whose virtual environment finds the dependencies of the tests."""
    # Where the README makes one. It has a pip of its own, because another one would install where that one is.
    environment = directory / "comfyui-gateway"
    venv.create(environment, with_pip=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    # The same version of Python is the reader's.
    path = f"{environment / 'bin'}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(directory), "PYTHONUNBUFFERED": "1"}


@asynccontextmanager
async def pasted(block: str, cwd: Path, environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a block that stays: what it starts is ended as by Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-ec", block, cwd=cwd, env=environment, stdout=-1, stderr=-2, start_new_session=True
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGINT)
        async with asyncio.timeout(30):
            await process.communicate()


async def line_with(process: asyncio.subprocess.Process, text: str, limit: float = 120) -> str:
    """The first line that it prints with a text."""
    assert process.stdout is not None
    seen = ""
    async with asyncio.timeout(limit):
        while line := (await process.stdout.readline()).decode():
            seen += line
            if text in line:
                return line
    raise AssertionError(f"no {text!r} in\n{seen}")


@pytest.mark.timeout(240)
async def test_the_blocks_run(lab: Lab) -> None:
    assert [block.split()[0] for block in BLOCKS] == ["make", "python3", "curl", "curl", "."]
    demo, serve, send, pictures, more_keys = BLOCKS
    environment = shell_environment(lab.directory)
    async with pasted(demo, PROJECT, environment) as process:
        await line_with(process, "behind one endpoint: http://127.0.0.1:8288")
        # It delivers to this machine, as examples/README.md says.
        api, hook = "http://127.0.0.1:8288/gateway/api/v1/me/webhooks", "http://127.0.0.1:8300/"
        async with lab.http.post(api, json={"url": hook}) as answer:
            assert answer.status == 201, await answer.text()
    for port in (8188, 8189):
        await lab.simulator(port=port)
    workflow = lab.directory / "workflow_api.json"
    workflow.write_text(json.dumps(text_to_image(steps=1)))
    serve = serve.replace("pip install .", f"pip install {PROJECT}")
    async with pasted(serve, lab.directory, environment) as process:
        keys = await line_with(process, "export KEY=")
        await line_with(process, "comfyui-gateway ready on")
        assert (lab.directory / "comfyui-gateway" / "bin" / "comfyui-gateway").exists()
        for block, wanted in ((send, '"prompt_id"'), (pictures, '"negative"'), (more_keys, "cgw_")):
            other = await asyncio.create_subprocess_exec(
                "bash", "-ec", keys + block, cwd=lab.directory, env=environment, stdout=-1, stderr=-2
            )
            said, _ = await other.communicate()
            assert other.returncode == 0, said
            assert wanted in said.decode(), said
            assert "error" not in said.decode().lower().replace("node_errors", ""), said
        for name in ("picture.png", "cat.png"):
            assert (lab.directory / name).read_bytes().startswith(b"\x89PNG"), name
