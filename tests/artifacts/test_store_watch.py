"""Judgement of a store that fails: by what it is asked for anyway, and by trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.artifacts.object_store import ObjectStore, StorageError
from gateway.artifacts.store_watch import StoreWatch
from gateway.settings.storage import StorageSettings
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.stored import bucket_of, storage, until_rows
from tests.support.workflows import slow


class World:
    """A store in a folder, and its watch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.came_back = 0
        self.watch = StoreWatch(ObjectStore.of(StorageSettings(url=folder.as_uri())), self._back)
        (folder / "key").write_bytes(b"content")

    def _back(self) -> None:
        self.came_back += 1

    async def read(self, key: str = "key") -> bytes:
        return b"".join([chunk async for chunk in self.watch.get(key)])

    def break_it(self) -> None:
        self.folder.rename(self.folder.with_name("away"))
        self.folder.write_text("no folder")

    def mend_it(self) -> None:
        self.folder.unlink()
        self.folder.with_name("away").rename(self.folder)


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "bucket").mkdir()
    return World(tmp_path / "bucket")


async def test_a_store_that_takes_no_object_is_told_and_is_back_once_it_does(world: World) -> None:
    # The trial's objects are below `probe`. Nothing else fails, so asking for an object would tell nothing.
    (world.folder / "probe").write_text("no folder")
    await world.watch.try_out()
    assert not world.watch.is_up
    await world.watch.look("unknown")
    assert (await world.read(), await world.watch.head("unknown"), world.watch.is_up) == (b"content", None, False)
    (world.folder / "probe").unlink()
    await world.watch.look("unknown")
    assert (world.watch.is_up, world.came_back) == (True, 1)
    assert list(world.folder.iterdir()) == [world.folder / "key"]


@pytest.mark.parametrize("how", ["read", "size", "missing", "look"])
async def test_reads_tell_of_a_failure_and_of_its_end(world: World, how: str) -> None:
    world.break_it()
    with pytest.raises(StorageError):
        await world.read()
    probe_at = world.watch.probe_at
    assert not world.watch.is_up
    with pytest.raises(StorageError):
        await world.watch.head("key")
    assert world.watch.probe_at == probe_at, "many readers would put off its next trial for ever"
    world.mend_it()
    match how:
        case "read":
            assert await world.read() == b"content"
        case "size":
            assert await world.watch.head("key") == 7
        case "missing":
            with pytest.raises(StorageError):
                await world.read("unknown")
        case _:
            await world.watch.look("unknown")
    assert (world.watch.is_up, world.came_back) == (True, 1)


async def test_a_missing_object_is_no_failure_of_the_store(world: World) -> None:
    with pytest.raises(StorageError):
        await world.read("unknown")
    assert world.watch.is_up


async def test_a_gateway_starts_with_a_store_that_takes_nothing_and_says_so(lab: Lab) -> None:
    """It works all the same. If storage is turned off then, the next start tells how many files nobody can read."""
    (bucket_of(lab) / "probe").write_text("no folder")
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, **storage(lab))

    async def is_told() -> bool:
        return "storage_unreachable" in gateway.log.read_text()

    await until(is_told)
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        assert "comfyui_gateway_storage_up 0.0" in await answer.text()
    comfy = Comfy(lab.http, gateway.url)
    await comfy.entry(await comfy.prompt(slow(steps=1)))
    await until_rows(gateway, lambda seen: [each.state for each in seen] == ["spooled"])
    await gateway.stop()
    gateway = await lab.gateway(simulator)
    assert [line["files"] for line in gateway.log_lines() if line["event"] == "storage_turned_off"] == [1]
