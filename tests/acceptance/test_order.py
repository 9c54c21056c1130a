"""The order in which a client that follows several prompts hears of those that one backend runs."""

from __future__ import annotations

import pytest

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.web_ui import WEB_UI
from tests.support.workflows import slow


@pytest.mark.parametrize("interrupted", [False, True])
async def test_a_prompt_ends_before_the_next_starts(lab: Lab, interrupted: bool) -> None:
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("me", flags=WEB_UI)
    prompts = [await comfy.prompt(slow(seed, steps=100 if interrupted else 10), "me") for seed in range(3)]
    for prompt_id in prompts:
        await listener.next("progress", prompt_id=prompt_id)
        if interrupted:
            assert (await comfy.post("/interrupt", {"prompt_id": prompt_id}))[0] == 200
    await listener.end_of(prompts[-1])
    heard = [event["data"].get("prompt_id") for event in listener.heard if event["type"].startswith("exec")]
    assert heard == sorted(heard, key=prompts.index)
