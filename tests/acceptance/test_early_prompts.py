"""Prompts that come before a backend has described its node classes."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.raw_http import between

NODES = 501


async def test_a_prompt_whose_outputs_must_be_counted_waits_for_the_catalogue(lab: Lab) -> None:
    asked, described = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request, _: bytes) -> web.Response | None:
        if request.path == "/object_info":
            asked.set()
            await described.wait()
        return None

    async with between(lab, await lab.simulator()) as proxy:
        proxy.hook = hold
        gateway = await lab.gateway(proxy.url, up=0)
        await asked.wait()
        comfy = Comfy(lab.http, gateway.url)
        prompt = {"0": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}}
        prompt["1"] = {"class_type": "PreviewImage", "inputs": {"images": ["0", 0]}}
        prompt |= {str(n): prompt["0"] for n in range(2, NODES)}
        posting = asyncio.create_task(comfy.prompt(prompt))
        done, _ = await asyncio.wait({posting}, timeout=0.3)
        assert not done
        described.set()
        entry = await comfy.entry(await posting)
        assert entry["status"]["status_str"] == "success"
