"""Which files open jobs name."""

from __future__ import annotations

from gateway.comfy.file_refs import FileRef
from gateway.jobs.state.input_index import InputIndex
from gateway.jobs.state.job import Job
from tests.support.ledgers import admit, loading, new_ledger

PIC, OTHER = FileRef("input", "", "pic.png"), FileRef("input", "", "other.png")


def job(tenant: str, image: str) -> Job:
    """A job that names an image twice."""
    return admit(new_ledger(), tenant, prompt=loading(image))


def test_a_file_is_named_until_the_last_job_that_names_it_is_gone() -> None:
    named = InputIndex()
    first, second, others = job("t", "pic.png"), job("t", "pic.png"), job("other", "pic.png")
    for each in (first, second, others):
        named.enter(each)
    named.leave(first)
    assert named.has("t", PIC)
    assert not named.has("t", OTHER)
    named.leave(second)
    assert not named.has("t", PIC)
    assert named.has("other", PIC)
    named.leave(others)
    assert len(named) == 0


def test_a_file_may_be_opened_by_its_name_its_folder_or_a_path_that_leads_out() -> None:
    named, deep = InputIndex(), FileRef("input", "a/b", "pic.png")
    folder = {"1": {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": "a"}}}
    assert not named.may_open(PIC)
    for image, opens in (("pic.png", [PIC]), ("a/b/pic.png", [deep]), ("../any/x.png [temp]", [PIC, OTHER, deep])):
        each = job("t", image)
        named.enter(each)
        assert [ref for ref in (PIC, OTHER, deep) if named.may_open(ref)] == opens
        named.leave(each)
    each = admit(new_ledger(), "t", prompt=folder)
    named.enter(each)
    assert [ref for ref in (PIC, OTHER, deep) if named.may_open(ref)] == [deep]
    named.leave(each)
    assert not any(map(named.may_open, (PIC, OTHER, deep)))
