"""Bytes that wait on the gateway's disk for a store that is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.artifacts.spool import GATHER, ArtifactSpool, SpoolFull, SpoolLost


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    """Yield these bytes."""
    for each in data:
        yield each


async def whole(spool: ArtifactSpool, name: str, start: int = 0, end: int | None = None) -> bytes:
    """Return a part of a file."""
    return b"".join([piece async for piece in spool.read(name, start, end)])


async def opened(tmp_path: Path, maximum: int = 10 * GATHER, *names: str) -> ArtifactSpool:
    """Return a spool in a folder, with the files of an earlier run."""
    spool = ArtifactSpool(tmp_path / "artifacts", maximum)
    await spool.open(names)
    return spool


async def test_files_come_back_whole_in_part_and_after_a_restart(tmp_path: Path) -> None:
    spool, data = await opened(tmp_path), bytes(range(256)) * (GATHER // 100)
    assert await spool.write("a", pieces(data[:5], data[5:]), len(data)) == len(data)
    assert await spool.write("b", pieces(b"12345"), None) == 5
    assert (await whole(spool, "a"), await whole(spool, "a", 3, 7)) == (data, data[3:7])
    assert await whole(spool, "b", 2, 99) == b"345"
    assert spool.bytes == len(data) + 5
    await spool.remove("b")
    await spool.remove("b")
    assert (spool.bytes, spool.has("b")) == (len(data), False)
    (tmp_path / "artifacts" / "stray").write_bytes(b"of a crash")
    again = await opened(tmp_path, 10 * GATHER, "a", "gone")
    assert (again.bytes, again.has("a"), again.has("gone")) == (len(data), True, False)
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["a"]
    with pytest.raises(SpoolLost):
        await whole(again, "gone")


async def test_the_bound_holds_for_files_of_known_and_of_unknown_size(tmp_path: Path) -> None:
    spool = await opened(tmp_path, 10)
    await spool.write("a", pieces(b"123456"), 6)
    for size in (5, None, 1):
        with pytest.raises(SpoolFull):
            await spool.write("b", pieces(b"12", b"345"), size)
    assert (spool.bytes, [path.name for path in (tmp_path / "artifacts").iterdir()]) == (6, ["a"])
    assert await spool.write("b", pieces(b"1234"), 9 - 5) == 4
    assert not spool.has_room()


async def test_what_the_source_raises_goes_on_and_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"1"
        raise ValueError("broken")

    spool = await opened(tmp_path)
    with pytest.raises(ValueError, match="broken"):
        await spool.write("a", broken(), 100)
    assert (spool.bytes, list((tmp_path / "artifacts").iterdir())) == (0, [])


async def test_a_file_that_got_shorter_is_lost(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    await spool.write("a", pieces(b"12345"), None)
    (tmp_path / "artifacts" / "a").write_bytes(b"123")
    with pytest.raises(SpoolLost):
        await whole(spool, "a")
    (tmp_path / "artifacts" / "a").unlink()
    with pytest.raises(SpoolLost):
        await whole(spool, "a")


async def test_a_name_that_is_written_again_counts_once(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    for data in (b"12345", b"123"):
        await spool.write("a", pieces(data), None)
        assert (spool.bytes, await whole(spool, "a")) == (len(data), data)
