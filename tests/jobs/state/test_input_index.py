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
