"""A job that is lost while others have their turn in the reading of its long event."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from gateway.app import Gateway
from gateway.jobs.lifecycle import event_relay
from gateway.settings import BackendSettings, ServerSettings, Settings
from gateway.telemetry.tasks import in_turns
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until

pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")
LONG = {"pictures": 0, "picture_bytes": 0, "text_bytes": 100_000, "values": 0}


async def test_its_event_is_not_told_of_its_next_run(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = await lab.simulator()
    backends = (BackendSettings(url=simulator.url, name="b1"),)
    gateway = Gateway(Settings(server=ServerSettings(port=0), data_dir=tmp_path / "data", backends=backends))
    await gateway.start()

    async def is_up() -> bool:
        return gateway.parts.fleet.backends["b1"].eligible

    await until(is_up)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    lost: list[str] = []

    async def losing(steps: Generator[None, None, Any]) -> Any:
        """Lose the job, once, while the steps are taken."""
        outcome = await in_turns(steps)
        for job in [] if lost else gateway.parts.engine.ledger.jobs_on("b1"):
            lost.append(job.prompt_id)
            gateway.parts.engine.ledger.lose(job)
            gateway.parts.engine.dispatcher.wake()
        return outcome

    monkeypatch.setattr(event_relay, "in_turns", losing)
    prompt_id = await comfy.prompt({"1": {"class_type": "BulkNode", "inputs": LONG}}, "c")
    await listener.next("executing", prompt_id=prompt_id, node=None)
    assert lost == [prompt_id]
    assert [event["type"] for event in listener.heard].count("executed") == 1
    await gateway.close()
