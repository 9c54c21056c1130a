"""Deleted files: which name is hidden, and which file may be had again."""

from __future__ import annotations

import pytest

from gateway.comfy.file_refs import FileRef
from gateway.files.deleted import Deleted, DeletedFiles
from gateway.files.identity import CACHED, GONE, UNTOLD
from gateway.store.protocol import DeletedRecord, DeletedRemoval

REF = FileRef("output", "", "ComfyUI_00001_.png")
OLD, NEW = '"17ab-10"', '"17ac-10"'


def test_a_name_is_hidden_on_its_backend_in_any_spelling() -> None:
    deleted = DeletedFiles()
    assert not deleted.hides("b1", REF, None)
    (record,) = deleted.add("t", "b1", REF, OLD)
    assert deleted.hides("b1", REF, None)
    assert deleted.hides("b1", FileRef("output", "", "COMFYUI_00001_.PNG"), None)
    assert not deleted.hides("b2", REF, None)
    assert not deleted.hides("b1", FileRef("temp", "", REF.filename), None)
    again = DeletedFiles()
    assert isinstance(record, DeletedRecord)
    again.restore(record)
    assert again.find("b1", REF) == Deleted("t", OLD)
    assert again.replaced("b1", REF) == [DeletedRemoval("b1", "output", "", REF.filename)]
    assert not again.hides("b1", REF, None)
    assert again.replaced("b1", REF) == []


def test_an_upload_is_hidden_by_its_bytes_wherever_it_lies() -> None:
    deleted = DeletedFiles()
    deleted.add_upload("aa")
    assert deleted.hides("b2", FileRef("input", "x", "any.png"), "aa")
    assert not deleted.hides("b2", FileRef("input", "x", "any.png"), "bb")
    assert deleted.has_upload("aa")
    assert not deleted.has_upload("bb")


def test_the_oldest_are_forgotten() -> None:
    deleted = DeletedFiles(2)
    for name in ("1", "2", "1", "3"):
        changes = deleted.add("t", "b1", FileRef("output", "", name), None)
    assert changes[1:] == [DeletedRemoval("b1", "output", "", "2")]
    assert len(deleted) == 2


@pytest.mark.parametrize(
    ("known", "found", "may_be", "is_surely"),
    [
        (OLD, OLD, True, True),
        (CACHED, OLD, True, False),
        (OLD, NEW, False, False),
        (OLD, None, True, False),
        (OLD, UNTOLD, True, False),
        (UNTOLD, OLD, True, False),
        (OLD, GONE, False, False),
        (GONE, OLD, False, False),
        (GONE, None, False, False),
    ],
)
def test_an_etag_tells_if_a_file_is_the_deleted_one(
    known: str, found: str | None, may_be: bool, is_surely: bool
) -> None:
    files = DeletedFiles()
    files.add("t", "b1", REF, known)
    deleted = files.find("b1", REF)
    assert deleted is not None
    assert (deleted.is_it(found), deleted.is_surely(found)) == (may_be, is_surely)
