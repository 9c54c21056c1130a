"""The receivers in docs/webhooks.md, run as they stand there: they take what the gateway signs, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import jsonschema_rs
import pytest

from gateway.webhooks.signing import new_secret, signed_headers
from tests.support.lab import until

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "webhooks.md").read_text()
(EXAMPLE,) = re.findall(r"^```json\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
PYTHON, FASTAPI = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
(NODE,) = re.findall(r"^```js\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
SECRET, OTHER = new_secret(), new_secret()


def test_the_example_fits_the_schema() -> None:
    check = jsonschema_rs.validator_for(json.loads((DOCS / "webhook-events.schema.json").read_text()))
    event = json.loads(EXAMPLE)
    check.validate(event)
    for wrong in ({"type": "job.failed"}, {"timestamp": "yesterday"}, {"data": {"version": "2026-11-01"}}, {"a": 1}):
        assert not check.is_valid({**event, **wrong}), wrong


@asynccontextmanager
async def running(port: int, *command: str, cwd: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a receiver until it listens."""
    environment = {"PATH": os.environ["PATH"], "WEBHOOK_SECRET": SECRET, "PORT": str(port)}
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, env=environment, stdout=-1, stderr=-2)

    async def listens() -> bool:
        assert process.returncode is None
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True

    try:
        await until(listens)
        yield process
    finally:
        process.kill()
        await process.communicate()


def free_port() -> int:
    """A port that is free."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


async def tries(http: aiohttp.ClientSession, port: int, process: asyncio.subprocess.Process) -> None:
    """Send what is right, and what is wrong in one thing each."""
    url, now = f"http://127.0.0.1:{port}/hooks/comfy", int(time.time())
    body = EXAMPLE.encode()
    good = signed_headers([SECRET], "evt_1", now, body)
    unsigned = {name: value for name, value in good.items() if name != "webhook-signature"}
    for headers, sent, status in (
        (signed_headers([OTHER], "evt_1", now, body), body, 401),
        (signed_headers([SECRET], "evt_1", now - 400, body), body, 401),
        (signed_headers([SECRET], "evt_1", now + 400, body), body, 401),
        ({**good, "webhook-id": "evt_2"}, body, 401),
        ({**good, "webhook-signature": "v1,\u00e9"}, body, 401),
        (good, body + b" ", 401),
        (unsigned, body, 401),
        ({}, body, 401),
        (signed_headers([OTHER, SECRET], "evt_1", now, body), body, 204),
    ):
        async with http.post(url, data=sent, headers=headers) as answer:
            assert answer.status == status, (headers, await answer.text())
    assert process.stdout is not None
    event = json.loads(EXAMPLE)
    told = f"evt_1 {event['type']} {event['data']['prompt_id']}"
    async with asyncio.timeout(10):
        while told not in (await process.stdout.readline()).decode():
            pass


async def test_the_one_in_python(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    (tmp_path / "receiver.py").write_text(PYTHON)
    port = free_port()
    async with running(port, sys.executable, "receiver.py", cwd=tmp_path) as process:
        await tries(http, port, process)


async def test_the_one_with_fastapi(http: aiohttp.ClientSession, tmp_path: Path, python_with_fastapi: Path) -> None:
    (tmp_path / "receiver.py").write_text(FASTAPI)
    port = free_port()
    command = (str(python_with_fastapi), "-m", "uvicorn", "receiver:app", "--port", str(port))
    async with running(port, *command, cwd=tmp_path) as process:
        await tries(http, port, process)


@pytest.mark.usefixtures("node_with_clients")
async def test_the_one_in_node(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    (tmp_path / "receiver.js").write_text(NODE)
    port = free_port()
    async with running(port, shutil.which("node") or "node", "receiver.js", cwd=tmp_path) as process:
        await tries(http, port, process)


LIBRARIES = {
    "standardwebhooks (PyPI)": "from standardwebhooks.webhooks import Webhook",
    "svix (PyPI)": "from svix.webhooks import Webhook",
    "standardwebhooks (npm)": 'const { Webhook } = require("standardwebhooks");',
}
# Each verifies the deliveries on its standard input and writes a line with its verdicts.
IN_PYTHON = """
import json, os, sys
for sent in json.load(sys.stdin):
    try:
        Webhook(os.environ["WEBHOOK_SECRET"]).verify(sent["body"], sent["headers"])
        print("taken", end=" ")
    except Exception as error:
        print(type(error).__name__, end=" ")
"""
IN_NODE = """
const said = [];
for (const sent of JSON.parse(require("fs").readFileSync(0, "utf8"))) {
  try { new Webhook(process.env.WEBHOOK_SECRET).verify(sent.body, sent.headers); said.push("taken"); }
  catch (error) { said.push("WebhookVerificationError"); }
}
console.log(said.join(" "));
"""


@pytest.mark.parametrize("library", LIBRARIES)
async def test_other_peoples_libraries_take_deliveries(
    library: str, python_with_fastapi: Path, node_with_clients: Path
) -> None:
    now = int(time.time())
    good = signed_headers([SECRET], "evt_1", now, EXAMPLE.encode())
    sent = [
        {"body": EXAMPLE, "headers": good},
        {"body": EXAMPLE, "headers": signed_headers([OTHER, SECRET], "evt_1", now, EXAMPLE.encode())},
        {"body": EXAMPLE + " ", "headers": good},
        {"body": EXAMPLE, "headers": {**good, "webhook-id": "evt_2"}},
        {"body": EXAMPLE, "headers": signed_headers([SECRET], "evt_1", now - 400, EXAMPLE.encode())},
        {"body": EXAMPLE, "headers": signed_headers([OTHER], "evt_1", now, EXAMPLE.encode())},
    ]
    in_node = "npm" in library
    program = LIBRARIES[library] + (IN_NODE if in_node else IN_PYTHON)
    command = (shutil.which("node") or "node", "-e") if in_node else (str(python_with_fastapi), "-c")
    process = await asyncio.create_subprocess_exec(
        *command,
        program,
        cwd=node_with_clients,
        env={"PATH": os.environ["PATH"], "WEBHOOK_SECRET": SECRET},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(process.communicate(json.dumps(sent).encode()), 30)
    assert said.decode().split() == ["taken"] * 2 + ["WebhookVerificationError"] * 4
