"""A proxy before a ComfyUI that leaves out, or weakens, what files are known by: everybody still sees their own."""

from __future__ import annotations

import pytest

from gateway.simulator.nodes import seed_colour
from tests.support.lab import Lab
from tests.support.named_files import names_files, sees
from tests.support.pictures import colour
from tests.support.raw_http import between
from tests.support.saved_copies import made
from tests.support.security_world import caller, start
from tests.support.workflows import slow

MINE = 0x112233


@pytest.mark.parametrize(
    ("lost", "weak"), [(("etag", "last-modified"), False), (("last-modified",), False), (("etag",), False), ((), True)]
)
async def test_ones_own_files_are_shown(lab: Lab, lost: tuple[str, ...], weak: bool) -> None:
    """As soon as a node has written one, and after the job."""

    def lose(headers: dict[str, str]) -> dict[str, str]:
        left = {k: v for k, v in headers.items() if k.lower() not in lost}
        return {k: f"W/{v}" if weak and k.lower() == "etag" else v for k, v in left.items()}

    async with between(lab, await lab.simulator()) as backend:
        backend.rewrite_headers = lose
        gateway = await start(lab, backend.url)
        anna = caller(lab, gateway, "anna")
        image = await made(anna, slow(MINE))
        assert colour(await anna.view(image)) == seed_colour(MINE)
        listener = await anna.listen("c")
        prompt = {**names_files({}, goes_on=True), "3": {"class_type": "EmptyImage", "inputs": {}}}
        prompt["3"]["inputs"] = {"width": 8, "height": 8, "batch_size": 1, "color": MINE}
        prompt["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "first"}}
        ordered = {node_id: prompt[node_id] for node_id in ("3", "4", "1", "2")}
        runs = await anna.prompt(ordered, "c")
        (image,) = (await listener.next("executed"))["data"]["output"]["images"]
        for _ in range(2):
            assert await sees(anna, image["filename"])
            await anna.post("/interrupt", {"prompt_id": runs})
            await anna.entry(runs)
        await gateway.stop()
