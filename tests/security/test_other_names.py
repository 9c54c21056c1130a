"""Names that are more than a name on Windows: they open another tenant's file, and the gateway can't tell which."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.test_uploads import png, upload
from tests.comfy_client import Comfy
from tests.lab import Lab
from tests.security.test_isolation import SECRET, node, saved, seen, tells
from tests.security.world import caller, start


@pytest.mark.parametrize("name", ["C:annas.png", "annas.png::$DATA", "ANNASP~1.PNG", "C:/x/annas.png"])
async def test_a_name_that_windows_takes_for_another_opens_nothing(lab: Lab, tmp_path: Path, name: str) -> None:
    """A file of that very name stands for what a backend on Windows would open."""
    path = tmp_path / "input" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(png(SECRET))
    simulator = await lab.simulator("--base-dir", str(tmp_path))
    gateway = await start(lab, simulator)
    ben = caller(lab, gateway, "ben")
    prompt = {"1": node("LoadImage", image=name), "2": saved("1")}
    assert tells(SECRET) in await seen(Comfy(lab.http, simulator.url), prompt)
    assert "Invalid image file" in await seen(ben, prompt)


async def test_ones_own_file_of_such_a_name_is_loaded(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await start(lab, simulator)
    ben = caller(lab, gateway, "ben")
    status, stored = await upload(ben, png(SECRET), "a:b~1.png")
    assert status == 200
    assert tells(SECRET) in await seen(ben, {"1": node("LoadImage", image=stored["name"]), "2": saved("1")})
