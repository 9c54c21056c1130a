"""`store.retention.max_files`: past it the oldest files of whoever has most are forgotten, also over a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab
from tests.support.security_world import caller, start
from tests.support.workflows import slow


async def statuses(comfy: Comfy, images: list[dict[str, Any]]) -> list[int]:
    """What /view answers for each."""
    found = []
    for image in images:
        async with comfy.http.get(f"{comfy.url}/view", params=image, headers=comfy.headers) as answer:
            found.append(answer.status)
    return found


async def test_the_oldest_files_of_who_has_most_are_forgotten(lab: Lab, tmp_path: Path) -> None:
    simulator = await lab.simulator("--base-dir", str(tmp_path))

    async def run() -> tuple[GatewayProcess, Comfy, Comfy]:
        gateway = await start(lab, simulator, store__retention__max_files=4)
        return gateway, caller(lab, gateway, "anna"), caller(lab, gateway, "ben")

    gateway, anna, ben = await run()
    bens = ben.images(await ben.entry(await ben.prompt(slow(0, steps=1, prefix="bens"))))
    annas = [anna.images(await anna.entry(await anna.prompt(slow(n, steps=1))))[0] for n in range(1, 6)]
    for _ in range(2):
        assert await statuses(anna, annas) == [404, 404, 200, 200, 200]
        assert await statuses(ben, bens) == [200]
        assert await statuses(ben, annas) == [404] * 5
        assert await gateway.stop() == 0
        gateway, anna, ben = await run()
    newest = anna.images(await anna.entry(await anna.prompt(slow(9, steps=1))))[0]
    assert newest["filename"] == "ComfyUI_00006_.png", "a name that is forgotten is not given again"
    annas.append(newest)
    assert await statuses(anna, annas) == [404, 404, 404, 200, 200, 200]


async def test_what_a_teams_guest_made_is_not_forgotten(lab: Lab) -> None:
    """Or the team would find it as nobody's."""
    gateway = await start(
        lab, await lab.simulator(), isolation="shared", tenants={"other": "guest"}, store__retention__max_files=1
    )
    guest, mate = caller(lab, gateway, "other"), caller(lab, gateway, "mate")
    guests = [
        guest.images(await guest.entry(await guest.prompt(slow(n, steps=1, prefix="guests"))))[0] for n in range(3)
    ]
    mates = [mate.images(await mate.entry(await mate.prompt(slow(n, steps=1, prefix="mates"))))[0] for n in range(3, 6)]
    assert await statuses(guest, guests) == [200] * 3
    assert await statuses(mate, guests) == [404] * 3
    assert await statuses(mate, mates) == [404] * 3, "all that may be forgotten"
