"""Two tenants whose gateway reaches its backend through a proxy, and what one may see of the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.simulator.nodes import seed_colour
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab
from tests.support.pictures import colour
from tests.support.raw_http import Between
from tests.support.security_world import ask
from tests.support.workflows import slow

# What only Anna ever wrote, and the colours of what each makes.
MARK = "annas-mark"
ANNAS, BENS, OTHER = 0x112233, 0x070809, 0x445566
NAMES = ("ended", "failed", "deleted", "running", "pending")
IDS = {name: f"{n}1111111-2222-4333-8444-555555555555" for n, name in enumerate(NAMES, start=1)}
# A pack that is trusted runs for isolated tenants, too.
TRUST = {"tenants__default__nodes__trust": "*"}


@dataclass
class Proxied:
    """A gateway over one backend, with a proxy between them, and two tenants."""

    lab: Lab
    backend: Between
    gateway: GatewayProcess
    anna: Comfy
    ben: Comfy


def annas(**more: Any) -> dict[str, Any]:
    """A workflow of Anna's: its file bears her mark."""
    return slow(ANNAS, prefix=f"{MARK}/{MARK}", **more)


async def what_ben_sees(ben: Comfy, *prompt_ids: str) -> bytes:
    """All that he can read by these ids, and without any."""
    paths = ["/history", "/queue", "/api/jobs?limit=100", "/prompt"]
    paths += [path + prompt_id for prompt_id in prompt_ids for path in ("/history/", "/api/jobs/")]
    return b"\n".join([(await ask(ben, "GET", path)).body for path in paths])


async def is_bens_own(ben: Comfy, entry: dict[str, Any], prompt: dict[str, Any]) -> None:
    """Assert that an entry of his is of this prompt of his."""
    assert entry["prompt"][2] == prompt
    assert [colour(await ben.view(image)) for image in ben.images(entry)] == [
        seed_colour(prompt["1"]["inputs"]["seed"])
    ]
