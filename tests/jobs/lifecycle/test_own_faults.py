"""The gateway's own code fails over one job: that job ends, it is logged and counted, and the next one runs.

No input that is known breaks it, so what raises here is put in: a callback that Completion is given, and functions
that the completion and the dispatcher call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.app import Gateway
from gateway.jobs.scheduling import dispatcher
from gateway.settings import BackendSettings, ServerSettings, Settings
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.workflows import slow

pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")
PROMPT = slow(steps=1, step_seconds=0.001)


class Odd(Exception):
    """Nobody expects it."""


def raise_odd(*_: object) -> Any:
    """Fail."""
    raise Odd


@pytest_asyncio.fixture
async def started(lab: Lab, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway in this process with a backend that takes work."""
    simulator = await lab.simulator()
    backends = (BackendSettings(url=simulator.url, name="b1"),)
    made = Gateway(Settings(server=ServerSettings(port=0), data_dir=tmp_path / "data", backends=backends))
    await made.start()

    async def is_up() -> bool:
        return made.parts.fleet.backends["b1"].eligible

    await until(is_up)
    yield made
    await made.close()


def failures(gateway: Gateway, task: str) -> float | None:
    """Return how many failures of a task were counted."""
    return gateway.parts.metrics.registry.get_sample_value("comfyui_gateway_task_failures_total", {"task": task})


async def test_a_result_that_breaks_completion_fails_its_job_alone(lab: Lab, started: Gateway) -> None:
    comfy, completion = Comfy(lab.http, started.url), started.parts.engine.completion
    proper, completion._goes_again = completion._goes_again, raise_odd
    entry = await comfy.entry(await comfy.prompt(PROMPT))
    assert entry["status"]["status_str"] == "error"
    assert "could not read it: Odd" in str(entry["status"]["messages"])
    assert failures(started, "completion") == 1
    completion._goes_again = proper
    assert (await comfy.entry(await comfy.prompt(PROMPT)))["status"]["status_str"] == "success"


@pytest.mark.parametrize("end", ["fail", "interrupt"])
async def test_a_job_whose_end_without_a_run_breaks_the_completion_ends(
    lab: Lab, started: Gateway, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    comfy, engine = Comfy(lab.http, started.url), started.parts.engine
    started.parts.fleet.backends["b1"].drained = True
    prompt_id = await comfy.prompt(PROMPT)
    (job,) = engine.ledger.waiting.jobs()
    with monkeypatch.context() as patched:
        patched.setattr(engine.completion, "_prompt_item", raise_odd)
        getattr(engine.completion, end)(job, *(("a reason", "AType") if end == "fail" else ()))
        entry = await comfy.entry(prompt_id)
    assert entry["status"]["status_str"] == "error"
    assert "could not end it: Odd" in str(entry["status"]["messages"])
    assert entry["prompt"][2] == PROMPT
    assert failures(started, "completion") == 1
    assert await comfy.get("/queue") == {"queue_running": [], "queue_pending": []}


async def test_a_prompt_that_breaks_the_dispatcher_is_refused_alone(
    lab: Lab, started: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    comfy = Comfy(lab.http, started.url)
    with monkeypatch.context() as patched:
        patched.setattr(dispatcher, "upstream_body", raise_odd)
        status, body = await comfy.post("/prompt", {"prompt": PROMPT})
    assert status == 500
    assert body["error"]["type"] == "gateway_error"
    assert failures(started, "dispatcher") == 1
    assert await comfy.get("/queue") == {"queue_running": [], "queue_pending": []}
    assert (await comfy.entry(await comfy.prompt(PROMPT)))["status"]["status_str"] == "success"
