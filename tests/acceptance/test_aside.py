"""Uploads whose name or age is in doubt: they go aside before they are deleted, and come back."""

from __future__ import annotations

from pathlib import Path

from tests.support.clock import Clock
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.pictures import png
from tests.support.uploads import upload

NOBODY = "http://127.0.0.1:1"
PICTURE = {"filename": "pic.png", "type": "input"}


def kept(lab: Lab) -> list[Path]:
    """The blobs in the store itself."""
    return list((lab.directory / "data" / "uploads").glob("??/*"))


def aside(lab: Lab) -> list[Path]:
    """The blobs that lie aside."""
    return list((lab.directory / "data" / "uploads" / "aside").glob("*.*"))


def journal(lab: Lab) -> Path:
    """The journal, which a gateway that has ended leaves as one file."""
    return lab.directory / "data" / "gateway.sqlite3"


async def test_a_journal_that_comes_back_finds_its_uploads(lab: Lab) -> None:
    """The way of docs/operations.md: move a journal away, start empty, and put it back later."""
    gateway = await lab.gateway(NOBODY, up=0)
    assert (await upload(Comfy(lab.http, gateway.url), png((1, 2, 3)), "pic.png"))[0] == 200
    (blob,) = kept(lab)
    await gateway.stop()
    away = journal(lab).rename(lab.directory / "away.sqlite3")
    gateway = await lab.gateway(NOBODY, up=0)
    assert (kept(lab), [path.name.split(".")[0] for path in aside(lab)]) == ([], [blob.name])
    assert [line["uploads"] for line in gateway.log_lines() if line["event"] == "uploads_put_aside"] == [1]
    assert await Comfy(lab.http, gateway.url).get("/gateway/backends")
    await gateway.stop()
    away.replace(journal(lab))
    gateway = await lab.gateway(NOBODY, up=0)
    comfy = Comfy(lab.http, gateway.url)
    assert (kept(lab), aside(lab)) == ([blob], [])
    assert await comfy.view(PICTURE) == png((1, 2, 3))
    # Bytes that somebody deleted are kept when they are uploaded again, and named in the log until then.
    blob.unlink()
    assert (await upload(comfy, png((1, 2, 3)), "pic.png"))[1]["name"] == "pic.png"
    assert await comfy.view(PICTURE) == png((1, 2, 3))
    await gateway.stop()
    blob.unlink()
    gateway = await lab.gateway(NOBODY, up=0)
    assert [line["digests"] for line in gateway.log_lines() if line["event"] == "uploads_missing"] == [[blob.name]]


async def test_bytes_that_lie_aside_are_taken_by_the_same_upload(lab: Lab) -> None:
    gateway = await lab.gateway(NOBODY, up=0)
    await upload(Comfy(lab.http, gateway.url), png((1, 2, 3)), "pic.png")
    await gateway.stop()
    journal(lab).unlink()
    gateway = await lab.gateway(NOBODY, up=0, uploads__quota=100)
    comfy = Comfy(lab.http, gateway.url)
    (lying,) = aside(lab)
    assert (await upload(comfy, png((1, 2, 3)), "other.png"))[0] == 200
    assert (len(kept(lab)), aside(lab)) == (1, [])
    assert await comfy.view({**PICTURE, "filename": "other.png"}) == png((1, 2, 3))
    # What lies aside counts for the quota, and gives way first.
    await gateway.stop()
    journal(lab).unlink()
    gateway = await lab.gateway(NOBODY, up=0, uploads__quota=100)
    assert [path.name.split(".")[0] for path in aside(lab)] == [lying.name.split(".")[0]]
    assert (await upload(Comfy(lab.http, gateway.url), b"x" * 90, "large.png"))[0] == 200
    assert aside(lab) == []


async def test_a_wall_clock_that_is_wrong_loses_no_upload(lab: Lab, tmp_path: Path) -> None:
    """By forty days, for several sweeps. What nothing names goes when its time is over, by no wall clock."""
    gateway = await lab.gateway(NOBODY, up=0)
    await upload(Comfy(lab.http, gateway.url), png((1, 2, 3)), "pic.png")
    await gateway.stop()
    unknown = kept(lab)[0].parent.parent / "ab" / ("ab" * 32)
    unknown.parent.mkdir()
    unknown.write_bytes(b"nothing names this")
    clock = Clock(tmp_path / "clock")
    clock.step("+40d")
    settings = {"uploads__aside": 0.8}
    gateway = GatewayProcess(lab.directory / "data", [NOBODY], ("--no-auth",), settings)
    gateway.environment |= clock.environment
    lab.servers.append(gateway)
    await gateway.start()

    async def deleted() -> bool:
        return not unknown.exists() and not aside(lab)

    await until(deleted, what="what nothing names is deleted, after some sweeps")
    assert [line["uploads"] for line in gateway.log_lines() if line["event"] == "uploads_put_aside"] == [1]
    assert await Comfy(lab.http, gateway.url).view(PICTURE) == png((1, 2, 3))
