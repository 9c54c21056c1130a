"""Prompts whose files are copied, and looks at what backends have."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab
from tests.support.security_world import caller
from tests.support.workflows import slow

ROUNDS = 20


async def only(lab: Lab, gateway: GatewayProcess, name: str) -> None:
    """From now on prompts go to this one of two backends."""
    boss = caller(lab, gateway, "boss")
    other = {"b1": "b2", "b2": "b1"}[name]
    for backend, action in ((name, "resume"), (other, "drain")):
        assert (await boss.post(f"/gateway/backends/{backend}/{action}"))[0] == 200


async def made(comfy: Comfy, prompt: dict[str, Any]) -> dict[str, str]:
    """The one image of a prompt."""
    (image,) = comfy.images(await comfy.entry(await comfy.prompt(prompt)))
    return image


async def saved_and_goes_on(comfy: Comfy, seed: int) -> str:
    """A job that has saved an image, and has long to go; its id."""
    prompt = slow(seed)
    prompt["3"] = {"class_type": "SlowSampler", "inputs": {**prompt["1"]["inputs"], "steps": 1000, "seed": 1}}
    prompt["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "later"}}
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(prompt, "c")
    await listener.next("executed")
    return prompt_id


def clean(base: Path, kind: str = "output") -> None:
    """Delete a folder's content, as an operator's nightly job does.

    If the gateway or the backend writes there meanwhile, a folder is not empty when its turn comes: go round again.
    """
    for turn in range(ROUNDS):
        try:
            for path in (base / kind).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or turn == ROUNDS - 1:
                raise
