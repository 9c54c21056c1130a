"""Prompts that name files, and looks at what a caller sees of them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from tests.support.comfy_client import Comfy
from tests.support.security_world import ask
from tests.support.workflows import slow

ANNAS, BENS = 0x112233, 0x445566


def names_files(ui: Any, *, goes_on: bool = False) -> dict[str, Any]:
    """A node that shows this, and one after it that goes on."""
    prompt = {"0": {"class_type": "TellNode", "inputs": {"ui": json.dumps(ui)}}}
    return prompt | slow(BENS, steps=1000, step_seconds=0.1, save=False) if goes_on else prompt


async def sees(comfy: Comfy, name: str, subfolder: str = "") -> bool:
    """Whether any form of a picture is shown for the name."""
    query = {"filename": name, "subfolder": subfolder, "type": "output"}
    answers = [
        await ask(comfy, method, f"/view?{urlencode(query | more)}")
        for method, more in (("GET", {}), ("HEAD", {}), ("GET", {"preview": "webp;90"}))
    ]
    assert len({answer.status for answer in answers}) == 1, answers
    return answers[0].status == 200
