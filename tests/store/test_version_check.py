"""What `check` says of a data directory is what the start says of it, and looking changes nothing."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.store.directory import is_taken, take
from gateway.store.protocol import StoreError

NOBODY = 65534


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    """Act as a user who owns nothing."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize(
    ("mode", "below", "said"),
    [
        (0o700, "", "can't be used as data directory: Permission denied"),
        (0o700, "below", "can't be used as data directory: Permission denied"),
        (0o755, "below", "can't be used as data directory: Permission denied"),
        (0o777, "", "may be read by other users of this machine (mode 0777)"),
    ],
)
def test_a_directory_of_somebody_else(mode: int, below: str, said: str, place: Path) -> None:
    directory = place / "data"
    directory.mkdir()
    directory.chmod(mode)
    sentences = []
    for ask in (is_taken, take):
        with another_user(), pytest.raises(StoreError) as caught:
            ask(directory / below)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
    assert said in sentences[0]


def test_looking_changes_nothing(place: Path) -> None:
    assert not is_taken(place / "a" / "b")
    assert list(place.iterdir()) == []
    assert not is_taken(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    lock = take(place)
    assert is_taken(place)
    lock.close()
    assert not is_taken(place)
