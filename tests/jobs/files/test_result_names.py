"""Names of cached results: which file they mean, once a name on a backend means two."""

from __future__ import annotations

from typing import Any

from gateway.comfy.file_refs import FileRef
from gateway.files.index import FileIndex, Holder, Origin, Stored
from gateway.jobs.files import result_names
from gateway.jobs.files.result_names import ResultNames, saver_of
from gateway.jobs.state.job import Job
from tests.support.ledgers import admit, new_ledger
from tests.support.workflows import slow

THERE = FileRef("output", "", "ComfyUI_00001_.png")
NEW = FileRef("output", "", "ComfyUI_00001_~b1.png")
NOWHERE = FileRef("output", "", "ComfyUI_00001_~b1-2.png")
ETAG = '"17ab-10"'


def job(**prompt: Any) -> Job:
    """A job of tenant t."""
    return admit(new_ledger(), "t", prompt=prompt)


def renamed(seed: int, sampler: str, saver: str) -> dict[str, Any]:
    """A sampler and a saver under other ids."""
    prompt = slow(seed)
    prompt["2"]["inputs"]["images"] = [sampler, 0]
    return {saver: prompt["2"], sampler: prompt["1"]}


def test_a_saver_is_known_by_what_it_depends_on() -> None:
    first, other = job(**renamed(1, "1", "2")), job(**renamed(1, "8", "9"))
    assert len(saver_of(first, "2")) == 16
    assert saver_of(first, "2") == saver_of(other, "9")
    assert saver_of(job(**renamed(2, "1", "2")), "2") != saver_of(first, "2")
    # A node that node 2 made, and nodes that nobody knows.
    assert saver_of(first, "2.0.1") == f"{saver_of(first, '2')}.0.1"
    assert saver_of(first, "7") == saver_of(first, "") == ""


def test_the_saver_of_a_long_prompt_is_unknown(monkeypatch: Any) -> None:
    monkeypatch.setattr(result_names, "MAX_PROMPT", 10)
    assert saver_of(job(**slow()), "2") == ""


def test_a_cached_result_is_the_file_that_its_saver_wrote() -> None:
    files = FileIndex()
    names = ResultNames(files, are_stored=True)
    old, new, unknown = (job(**slow(seed)) for seed in (1, 2, 3))
    files.restore("t", THERE, Holder("b1", THERE, ETAG))
    names.note_origin(old, "b1", THERE, "2", Origin.WROTE, THERE)
    assert names.of_cached(old, "b1", THERE, "2") is None
    assert names.of_cached(unknown, "b1", THERE, "2") is None, "only one file ever had the name"
    files.restore_stored("t", THERE, Stored("key", 6, "digest"))
    assert files.claim("t", "b1", THERE) == (NEW, True)
    names.note_origin(new, "b1", THERE, "2", Origin.WROTE, NEW)
    names.note_origin(unknown, "b1", THERE, "2", Origin.EARLIER, NEW)
    assert names.of_cached(old, "b1", THERE, "2") == THERE
    assert names.of_cached(new, "b1", THERE, "2") is None
    assert names.of_cached(unknown, "b1", THERE, "2") == NOWHERE
    assert names.of_cached(old, "b2", THERE, "2") is None
    files.drop_stored("t", THERE)
    assert names.of_cached(old, "b1", THERE, "2") == THERE, "a name that means nothing now"
    assert files.find("t", THERE) is None


def test_a_secret_folder_is_of_one_saver() -> None:
    files = FileIndex()
    there = FileRef("output", f"o/{'0a' * 16}/f", "ComfyUI_00001_.png")
    files.left.add(("t", "b1", there))
    names = ResultNames(files, are_stored=True)
    each = job(**slow())
    names.note_origin(each, "b1", there, "2", Origin.WROTE, THERE)
    assert names.of_cached(each, "b1", there, "2") is None
    assert len(names) == 0


def test_the_last_names_are_kept(monkeypatch: Any) -> None:
    monkeypatch.setattr(result_names, "MAX_NAMES", 2)
    names = ResultNames(FileIndex(), are_stored=True)
    for saver in ("1", "2", "1", "3"):
        names.note("t", "b1", THERE, saver, THERE)
    assert len(names) == 2
