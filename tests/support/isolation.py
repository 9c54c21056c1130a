"""Prompts of isolated tenants, and looks at what they learn."""

from __future__ import annotations

import json
from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.pictures import colour

SECRET = (201, 13, 77)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def saved(source: str) -> dict[str, Any]:
    return node("SaveImage", images=[source, 0], filename_prefix="bens")


async def seen(comfy: Comfy, prompt: dict[str, Any]) -> str:
    """All that a caller is told of a prompt: the answer, and the entry and the colours of its images if it ran."""
    status, answer = await comfy.post("/prompt", {"prompt": prompt})
    if status != 200:
        assert status == 400, answer
        return json.dumps(answer)
    entry = await comfy.entry(answer["prompt_id"])
    colours = [colour(await comfy.view(image)) for image in comfy.images(entry)]
    return json.dumps([answer, entry, colours])


def tells(secret: tuple[int, ...]) -> str:
    return json.dumps(list(secret))
