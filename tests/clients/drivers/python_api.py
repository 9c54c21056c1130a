"""Drives comfyui-utils: a client id and a socket a prompt, which it opens when POST /prompt is answered."""

from __future__ import annotations

import asyncio
import io
from typing import Any
from urllib.parse import urlsplit

from _driver import encode, main
from comfyui_utils.comfy import Callbacks, ComfyAPI

Prompt = dict[str, Any]
LIMIT = 50.0


class _Told(Callbacks):
    def __init__(self) -> None:
        self.positions: list[int] = []
        self.progress: list[tuple[int, int, int]] = []
        self.outputs: dict[str, Any] = {}

    async def queue_position(self, position: Any) -> None:
        self.positions.append(position)

    async def in_progress(self, node_id: int, progress: int, total: int) -> None:
        self.progress.append((node_id, progress, total))

    async def completed(self, outputs: dict[str, Any], cached: bool) -> None:
        self.outputs = outputs


async def _run(api: ComfyAPI, prompt: Prompt) -> dict[str, Any]:
    told = _Told()
    images: list[str] = []

    async def keep(file: io.BytesIO) -> None:
        images.append(encode(file.getvalue()))

    async with asyncio.timeout(LIMIT):
        await api.submit(prompt, told)
        for image in told.outputs["images"]:
            await api.fetch(image, keep)
    return {"images": images, "positions": told.positions, "progress": told.progress}


def run_together(url: str, prompts: list[Prompt]) -> dict[str, Any]:
    """Run prompts at the same time, each with the client id and the socket that the client gives it."""

    async def together() -> list[dict[str, Any]]:
        api = ComfyAPI(urlsplit(url).netloc)
        return await asyncio.gather(*(_run(api, prompt) for prompt in prompts))

    return {"results": asyncio.run(together())}


def refused(url: str, prompt: Prompt) -> dict[str, Any]:
    """Run a prompt that is refused."""
    try:
        asyncio.run(_run(ComfyAPI(urlsplit(url).netloc), prompt))
    except ValueError as error:
        return {"error": str(error)}
    return {}


main({"run_together": run_together, "refused": refused})
