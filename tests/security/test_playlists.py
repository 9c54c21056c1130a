"""Uploads that name other files: FFmpeg would open these, whosever they are."""

from __future__ import annotations

import asyncio
import io

import pytest

from tests.support.lab import Lab
from tests.support.media import NAMING, ORDINARY, tag
from tests.support.pictures import png
from tests.support.security_world import caller, start
from tests.support.uploads import folder, upload


async def test_one_whose_files_are_judged_may_not_bring_them(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await start(lab, simulator)
    ben = caller(lab, gateway, "ben")
    picture = {"original_ref": '{"filename": "ok.png", "type": "input"}'}
    assert (await upload(ben, png((1, 2, 3)), "ok.png"))[0] == 200
    for what, data in NAMING.items():
        for name in ("film.mp4", "x.png"):
            status, answer = await upload(ben, data, name)
            assert (status, answer["error"]["type"]) == (400, "file_names_others"), (what, answer)
            assert answer["error"]["details"].startswith(f"The file '{name}' names other files ("), answer
            assert answer["node_errors"] == {}
        status, answer = await upload(ben, data, "mask.png", "mask", **picture)
        assert (status, answer["error"]["type"]) == (400, "file_names_others"), (what, answer)
    for what, data in ORDINARY.items():
        assert (await upload(ben, data, f"{what}.bin"))[0] == 200, what
    # A cover that is larger than what is probed hides no film.
    big = tag(3 * 2**20)
    assert (await upload(ben, io.BytesIO(big + ORDINARY["mp3"]), "song.mp3"))[0] == 200
    assert (await upload(ben, io.BytesIO(big + NAMING["HLS"]), "list.mp3"))[0] == 400
    assert {name for name in await folder(lab, simulator) if name.startswith(("film", "x.", "list"))} == set()


@pytest.mark.parametrize("isolation", ["shared", "no keys"])
async def test_a_team_and_the_local_user_may(lab: Lab, isolation: str) -> None:
    simulator = await lab.simulator()
    gateway = await (start(lab, simulator, isolation="shared") if isolation == "shared" else lab.gateway(simulator))
    mate = caller(lab, gateway, "mate" if isolation == "shared" else "")
    answers = await asyncio.gather(*(upload(mate, data, f"{n}.mp4") for n, data in enumerate(NAMING.values())))
    assert {status for status, _ in answers} == {200}
