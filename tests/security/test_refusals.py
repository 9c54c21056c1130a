"""What a backend lists of itself where it refuses an input: among its input files are other tenants'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.pictures import png
from tests.support.security_world import caller, start
from tests.support.uploads import brought, folder, upload
from tests.support.workflows import slow

WRONG: dict[str, Any] = {"a name": "nothing.png", "a link": ["1", 0], "no link": ["1"], "a number": 5}


def picking(picture: Any) -> dict[str, Any]:
    """A custom node that lists the input folder, and leaves it to ComfyUI to hold a name against that."""
    return {**slow(), "5": {"class_type": "PickNode", "inputs": {"picture": picture}}}


async def refused(comfy: Comfy, prompt: dict[str, Any]) -> str:
    """All that a caller is told of a node that can't run, alone and beside others that can."""
    status, alone = await comfy.post("/prompt", {"prompt": prompt, "partial_execution_targets": ["5"]})
    assert (status, alone["error"]["type"]) == (400, "prompt_outputs_failed_validation"), alone
    status, beside = await comfy.post("/prompt", {"prompt": prompt})
    assert status == 400 or "5" in beside["node_errors"], beside
    return json.dumps([alone, beside])


async def test_a_refusal_lists_no_others_uploads(lab: Lab, tmp_path: Path) -> None:
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    await upload(anna, png((1, 1, 1)), "annas-secret.png")

    async def is_there() -> bool:
        return bool(brought(tmp_path, png((1, 1, 1))))

    await until(is_there, what="the upload on its backend")
    # It lies in the root, too, once a custom class takes it, and is in the lists of the backend then.
    await anna.entry(await anna.prompt(picking("annas-secret.png")))
    (name,) = (each for each in await folder(lab, simulator) if each.startswith("u-"))
    for what, wrong in WRONG.items():
        said = await refused(ben, picking(wrong))
        assert "secret" not in said, (what, said)
        assert name not in said, (what, said)
        assert "picture" in said, "which input it is, is told"


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_a_backend_lists_is_told_where_it_is_nobodys(lab: Lab, wrong: str) -> None:
    """As ComfyUI tells it, choices and all."""
    simulator = await lab.simulator()
    gateway = await start(lab, simulator)
    prompt = slow()
    prompt["5"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": WRONG[wrong]}}
    prompt["6"] = {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["5", 2]}}
    prompt["7"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    prompt["8"] = {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "x"}}
    body = {"prompt": prompt, "partial_execution_targets": ["8"]}
    answers = [
        await comfy.post("/prompt", body) for comfy in (caller(lab, gateway, "ben"), Comfy(lab.http, simulator.url))
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] == 400
