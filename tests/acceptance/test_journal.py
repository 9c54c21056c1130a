"""The journal of a gateway as a process: what it keeps, and what it says of a file that is not as it should be."""

from __future__ import annotations

import sqlite3

from tests.comfy_client import Comfy
from tests.lab import Lab, until
from tests.workflows import slow


async def test_old_history_goes(lab: Lab) -> None:
    """From what clients read and from the file; what such a job made can still be viewed."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, store__retention__max_age=2)
    comfy = Comfy(lab.http, gateway.url)
    prompt_id = await comfy.prompt(slow(steps=1))
    image = comfy.images(await comfy.entry(prompt_id))[0]

    async def gone() -> bool:
        return await comfy.get("/history") == {}

    await until(gone, what="the entry is too old")
    await comfy.view(image)
    journal = sqlite3.connect(lab.directory / "data" / "gateway.sqlite3")

    async def gone_there() -> bool:
        return bool(journal.execute("SELECT count(*) FROM history").fetchone() == (0,))

    await until(gone_there, what="the journal's, too")
    journal.close()
