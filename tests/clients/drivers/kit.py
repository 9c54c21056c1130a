"""Drives comfykit: one executor polls /history, the other has a socket a prompt and asks nothing else."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
from _driver import encode, main
from comfykit import ComfyKit

Prompt = dict[str, Any]


async def _run(kit: ComfyKit, prompt: Prompt, params: dict[str, Any] | None = None) -> dict[str, Any]:
    result = await kit.execute_json(prompt, params)
    images = []
    headers = {"X-API-Key": kit.api_key} if kit.api_key else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        for url in result.images:
            async with session.get(url) as answer:
                images.append(encode(await answer.read()))
    return {"status": result.status, "message": result.msg, "by_name": list(result.images_by_var), "images": images}


def run_together(url: str, executor: str, prompts: list[Prompt], api_key: str | None = None) -> dict[str, Any]:
    """Run prompts at the same time."""

    async def together() -> list[dict[str, Any]]:
        kit = ComfyKit(comfyui_url=url, executor_type=executor, api_key=api_key)
        return await asyncio.gather(*(_run(kit, prompt) for prompt in prompts))

    return {"results": asyncio.run(together())}


def upload(url: str, path: str, prompt: Prompt) -> dict[str, Any]:
    """Run a prompt with a local file as a parameter, which the client uploads."""
    return {"results": [asyncio.run(_run(ComfyKit(comfyui_url=url), prompt, {"picture": path}))]}


logging.disable()
main({"run_together": run_together, "upload": upload})
