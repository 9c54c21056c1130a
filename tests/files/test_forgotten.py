"""Forgotten files: which are remembered, and what is written of them."""

from __future__ import annotations

import pytest

from gateway.comfy.file_refs import FileRef
from gateway.files.forgotten import ForgottenFiles
from gateway.files.identity import CACHED, GONE, UNTOLD
from gateway.files.index import FileIndex, Holder
from gateway.store.forgotten_records import ForgottenRecord, ForgottenRemoval

REF = FileRef("output", "o/s/f", "ComfyUI_00001_.png")
ETAG = '"17ab-10"'


def test_a_forgotten_file_is_known_by_its_etag_over_a_restart() -> None:
    forgotten, again = ForgottenFiles(), ForgottenFiles()
    forgotten.add("b1", REF, ETAG)
    (record,) = forgotten.take_changes()
    assert isinstance(record, ForgottenRecord)
    again.restore(record)
    known = again.find("b1", REF)
    assert known is not None
    assert (known.etag, known.forgotten_at) == (ETAG, record.forgotten_at)
    assert again.find("b2", REF) is None
    again.drop("b1", REF)
    assert again.take_changes() == [ForgottenRemoval("b1", "output", "o/s/f", REF.filename)]
    assert again.take_changes() == []


@pytest.mark.parametrize("etag", [None, UNTOLD, GONE, CACHED])
def test_a_file_that_nothing_identifies_is_not_remembered(etag: str | None) -> None:
    forgotten = ForgottenFiles()
    forgotten.add("b1", REF, etag)
    assert len(forgotten) == 0
    assert forgotten.take_changes() == []


def test_the_oldest_are_dropped() -> None:
    forgotten = ForgottenFiles(2)
    for name in ("1", "2", "1", "3"):
        forgotten.add("b1", FileRef("output", "", name), ETAG)
    assert forgotten.take_changes()[-1] == ForgottenRemoval("b1", "output", "", "2")
    assert len(forgotten) == 2


def test_a_file_past_the_maximum_is_forgotten_and_a_deleted_one_is_not() -> None:
    files = FileIndex()
    for number in range(1, 4):
        name = FileRef("output", "", f"{number}.png")
        files.restore("t", name, Holder("b1", name, ETAG))
    held = files.held("t", "b1", FileRef("output", "", "3.png"))
    assert held is not None
    files.delete("t", held)
    assert [ref.filename for _, ref in files.trim(1, lambda _: True)] == ["1.png"]
    (record,) = files.forgotten.take_changes()
    assert isinstance(record, ForgottenRecord)
    assert (record.backend, record.filename, record.etag) == ("b1", "1.png", ETAG)
