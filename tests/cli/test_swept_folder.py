"""A swept folder: its files are found and deleted, and no link leads out of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.swept_folder import EMPTY_SECONDS, FoundFile, Outcome, SweptFolder
from tests.support.disk import small_disk

SECRET = f"o/{'0a' * 16}/f"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder beside one with another file, which must stay."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "a.png").write_bytes(b"beside")
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


@pytest.fixture
def swept(output: Path) -> Iterator[SweptFolder]:
    folder = SweptFolder(output)
    yield folder
    folder.close()
    assert (output.parent / "beside" / "a.png").read_bytes() == b"beside"


def found(folder: SweptFolder) -> dict[str, FoundFile]:
    """The files by their paths."""
    files = folder.files(time.time())
    return {f"{each.subfolder}/{each.filename}" if each.subfolder else each.filename: each for each in files}


def test_files_are_found_in_all_folders_and_deleted(output: Path, swept: SweptFolder) -> None:
    for path in ("a.png", "day/b, [c].png", f"{SECRET}/ComfyUI_00001_.png"):
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_bytes(b"pixels")
    files = found(swept)
    assert sorted(files) == ["a.png", "day/b, [c].png", f"{SECRET}/ComfyUI_00001_.png"]
    status = (output / "a.png").stat()
    assert files["a.png"] == FoundFile("", "a.png", 6, status.st_mtime_ns, status.st_ino)
    for file in files.values():
        assert swept.delete(file) is Outcome.DELETED
        assert swept.delete(file) is Outcome.CHANGED
    assert found(swept) == {}
    assert (swept.others, swept.problems) == (0, [])


def test_links_special_files_and_odd_names_are_left_alone(output: Path, swept: SweptFolder) -> None:
    beside = output.parent / "beside"
    (output / "link.png").symlink_to(beside / "a.png")
    (output / "folder").symlink_to(beside)
    (output / "broken").symlink_to("nowhere")
    os.link(beside / "a.png", output / "hard.png")
    os.mkfifo(output / "pipe.png")
    (output / "a\\b.png").write_bytes(b"")
    (output / "c\\d").mkdir()
    (output / "old.png").write_bytes(b"")
    os.utime(output / "old.png", ns=(0, -1))
    os.close(os.open(os.fsencode(output) + b"/\xff.png", os.O_CREAT | os.O_WRONLY))
    assert found(swept) == {}
    assert (swept.others, swept.problems) == (9, [])


def test_a_folder_that_is_a_link_itself_is_swept(output: Path) -> None:
    (output / "a.png").write_bytes(b"")
    (output.parent / "link").symlink_to(output)
    folder = SweptFolder(output.parent / "link")
    assert folder.delete(found(folder)["a.png"]) is Outcome.DELETED
    folder.close()


def test_a_folder_that_becomes_a_link_leads_nowhere(output: Path, swept: SweptFolder) -> None:
    """The file that the link leads to has the same name, size, time and inode, for it is the same."""
    (output / "day" / "a").mkdir(parents=True)
    (output / "day" / "a" / "a.png").write_bytes(b"pixels")
    (file,) = found(swept).values()
    (output / "day" / "a").rename(output.parent / "moved")
    (output / "day" / "a").symlink_to(output.parent / "moved")
    assert swept.delete(file) is Outcome.CHANGED
    (output / "day").rename(output.parent / "day")
    (output / "day").symlink_to(output.parent / "day")
    assert swept.delete(file) is Outcome.CHANGED
    assert (output.parent / "moved" / "a.png").read_bytes() == b"pixels"
    assert swept.problems == []


def test_a_file_that_changed_since_it_was_found_stays(output: Path, swept: SweptFolder) -> None:
    names = ("written", "replaced", "linked", "is_link", "is_folder")
    for name in names:
        (output / name).write_bytes(b"pixels")
    files = found(swept)
    times = {name: (output / name).stat().st_mtime_ns for name in names}
    (output / "written").write_bytes(b"others")
    os.utime(output / "written", ns=(0, times["written"] + 1))
    # Another file with the same size and time.
    (output / "replaced").rename(output / "kept")
    (output / "replaced").write_bytes(b"others")
    os.utime(output / "replaced", ns=(0, times["replaced"]))
    os.link(output / "linked", output / "second name")
    (output / "is_link").rename(output / "behind")
    (output / "is_link").symlink_to("behind")
    (output / "is_folder").unlink()
    (output / "is_folder").mkdir()
    assert [swept.delete(files[name]) for name in names] == [Outcome.CHANGED] * len(names)
    assert all(os.path.lexists(output / name) for name in names)
    assert (output / "behind").read_bytes() == b"pixels"


def test_a_secret_folder_goes_once_it_was_empty_for_long(output: Path, swept: SweptFolder) -> None:
    now, old = time.time(), f"u/{'0b' * 16}/f"
    filled = f"o/{'0c' * 16}/f"
    for path in (SECRET, old, filled, "day", "o/short/f"):
        (output / path).mkdir(parents=True)
        os.utime(output / path, (now, now - EMPTY_SECONDS))
    os.utime(output / SECRET, (now, now - EMPTY_SECONDS + 60))
    (output / filled / "a.png").write_bytes(b"pixels")
    os.utime(output / filled, (now, now - EMPTY_SECONDS))
    list(swept.files(now))
    assert swept.empty == [old]
    assert swept.remove_empty() == 1
    assert not (output / "u" / ("0b" * 16)).exists()
    assert all((output / path).is_dir() for path in (SECRET, filled, "day", "o/short/f"))


def test_a_folder_that_was_filled_meanwhile_stays(output: Path, swept: SweptFolder) -> None:
    now = time.time()
    (output / SECRET).mkdir(parents=True)
    os.utime(output / SECRET, (0, 0))
    list(swept.files(now))
    (output / SECRET / "a.png").write_bytes(b"pixels")
    assert swept.remove_empty() == 0
    assert (output / SECRET / "a.png").read_bytes() == b"pixels"


def test_a_folder_that_takes_no_changes_is_a_problem(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk(tmp_path / "output", 1))
        except PermissionError as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        (disk / "a.png").write_bytes(b"pixels")
        with contextlib.closing(SweptFolder(disk)) as swept:
            (file,) = found(swept).values()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            assert swept.delete(file) is Outcome.FAILED
            assert swept.problems == [f"{disk}/a.png: Read-only file system"]
        assert (disk / "a.png").read_bytes() == b"pixels"
