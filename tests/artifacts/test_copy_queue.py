"""Which copy is made next, when one is tried again, and how objects are called."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.artifacts import job_files
from gateway.artifacts import queue as queue_module
from gateway.artifacts.job_files import JobFiles
from gateway.artifacts.keys import job_folder, new_key, shared_key, spool_name
from gateway.artifacts.model import SPOOL, Copy, State, disposition_of, expected_of
from gateway.artifacts.queue import CopyQueue
from gateway.artifacts.restoring import StoredNames
from gateway.artifacts.schedule import MAX_PROBE, MAX_WAIT, Slots, StoreHealth, wait_after
from gateway.comfy.file_refs import FileRef
from gateway.files.identity import UNTOLD, is_same
from gateway.files.index import FileIndex, Holder, Stored, Upload
from gateway.store.artifact_records import ArtifactDeletion, ArtifactRecord
from gateway.tenants.secret_names import SecretNames


def record(key: str, tenant: str = "t", backend: str = "b1", state: State = State.PENDING) -> ArtifactRecord:
    """Return a row of a file that is called as its key."""
    return ArtifactRecord(key, tenant, "output", "", f"{key}.png", "job", backend, "", f"{key}.png", "e", state)


def copy(key: str, tenant: str = "t", backend: str = "b1", state: State = State.PENDING) -> Copy:
    """Return a copy that is to be made."""
    return Copy(record(key, tenant, backend, state), None)


def taken(queue: CopyQueue, *usable: str, now: float = 0.0) -> list[str]:
    """Take all copies whose turn it is, of these sources."""
    found = []
    while (one := queue.take(now, usable.__contains__)) is not None:
        found.append(one.key)
    return found


def test_each_tenant_and_each_source_has_its_turn() -> None:
    queue = CopyQueue()
    for key, tenant, backend in ("1a1", "2a1", "3a1", "4b1", "5b1", "6a2", "7a2"):
        queue.add(copy(key, tenant, f"b{backend}"))
    assert taken(queue, "b1", "b2") == ["1", "6", "4", "7", "2", "5", "3"]
    assert (len(queue), taken(queue, "b1", "b2")) == (7, [])


def test_a_source_that_is_away_holds_up_nothing_and_its_copies_wait() -> None:
    queue = CopyQueue()
    for key, backend in ("11", "22", "31"):
        queue.add(copy(key, backend=f"b{backend}"))
    queue.add(copy("4", state=State.SPOOLED))
    assert taken(queue, "b2") == ["2"]
    assert taken(queue, SPOOL) == ["4"]
    assert taken(queue, "b1") == ["1", "3"]


def test_a_copy_waits_for_its_time_and_urgent_ones_for_none() -> None:
    queue, one, urgent = CopyQueue(), copy("1"), copy("2")
    queue.add(one)
    assert taken(queue, "b1") == ["1"]
    queue.put_back(one, 5.0)
    assert (queue.next_at(), taken(queue, "b1", now=4.9)) == (5.0, [])
    urgent.tried = asyncio.Event()
    queue.add(copy("3"))
    queue.add(urgent)
    assert taken(queue, "b1", now=5.0) == ["2", "3", "1"]
    urgent.tried.set()
    queue.put_back(urgent)
    queue.put_back(one)
    assert taken(queue, "b1") == ["2", "1"], "an end waits for it no more"
    assert queue.next_at() is None


def test_a_copy_that_was_taken_out_is_never_made() -> None:
    queue, ready, later, gone = CopyQueue(), copy("1"), copy("2"), copy("3")
    for each in (ready, later):
        queue.add(each)
    assert taken(queue, "b1") == ["1", "2"]
    queue.put_back(later, 1.0)
    queue.put_back(ready)
    for each in (ready, later):
        queue.remove(each)
    queue.put_back(gone)
    assert (taken(queue, "b1", now=2.0), queue.next_at(), len(queue)) == ([], None, 0)
    assert queue.of_name("t", FileRef("output", "", "1.png")) is None


def test_a_name_has_the_copy_that_was_planned_last() -> None:
    queue, first = CopyQueue(), copy("1")
    second = Copy(replace(first.record, key="2"), None)
    queue.add(first)
    queue.add(second)
    queue.remove(first)
    assert queue.of_name("t", FileRef("output", "", "1.png")) is second
    assert (queue.get("1"), queue.get("2")) == (None, second)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_waits_grow_up_to_a_bound(tries: int, chance: float) -> None:
    assert 1.0 <= wait_after(tries, chance) <= MAX_WAIT * 1.25
    assert wait_after(tries, chance) <= wait_after(tries + 1, chance)


def test_a_source_leaves_slots_for_others() -> None:
    slots = Slots(3)
    for _ in range(2):
        assert slots.has_one("b1", is_alone=False)
        slots.take("b1")
    assert [slots.has_one(source, is_alone=False) for source in ("b1", "b2")] == [False, True]
    assert slots.has_one("b1", is_alone=True)
    slots.take("b2")
    assert not slots.are_left
    slots.give_back("b1")
    assert slots.has_one("b1", is_alone=False)


def test_one_attempt_at_a_time_finds_out_if_a_store_is_back() -> None:
    health = StoreHealth()
    health.begin()
    assert (health.admits(0.0), health.failed(0.0, 0.0), health.is_up) == (True, True, False)
    assert (health.admits(0.9), health.admits(1.0)) == (False, True)
    health.begin()
    assert not health.admits(1.0)
    assert not health.failed(1.0, 0.0)
    assert (health.admits(2.9), health.admits(3.0)) == (False, True)
    health.begin()
    health.ended()
    assert health.admits(3.0), "its source was away, which tells nothing of the store"
    for _ in range(20):
        health.failed(3.0, 0.0)
    assert health.probe_at == 3.0 + MAX_PROBE
    assert (health.succeeded(), health.succeeded(), health.admits(0.0)) == (True, False, True)


def test_keys_tell_nothing_and_never_come_twice() -> None:
    names = SecretNames(bytes(range(32)))
    folder, job = names.storage_folder("anna"), job_folder()
    assert folder == names.storage_folder("anna") != names.storage_folder("ben")
    keys = {new_key(folder, job, "Mein Bild.PNG") for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert re.fullmatch(rf"{folder}/{job}/[0-9a-f]{{32}}\.png", key)
        assert shared_key(key) not in keys
        assert re.fullmatch(rf"{folder}/{job}/[0-9a-f]{{32}}\.png", shared_key(key))
        assert re.fullmatch("[0-9a-f]{32}", spool_name(key))
    for filename in ("a", "a.", ".png", "a.annas-secret", "a.p/ng", "a.exe", "a.png\n"):
        assert "." not in new_key(folder, job, filename), filename


def test_a_browser_is_told_to_save_what_it_might_run() -> None:
    assert disposition_of("a.png").startswith("inline; ")
    for filename in ("a.svg", "a.html", "a", "a.json"):
        assert disposition_of(filename).startswith("attachment; ")


@given(st.text(max_size=20))
def test_a_disposition_is_one_header_of_ascii(filename: str) -> None:
    told = disposition_of(filename)
    assert told.isascii()
    assert told.isprintable()
    assert told.count('"') == 2


def test_a_start_gives_back_names_and_drops_copies_of_other_files() -> None:
    files, stored = FileIndex(), State.STORED
    own, alone, other, waiting = (record(key, state=stored) for key in ("own", "alone", "other", "waiting"))
    names = StoredNames([own, alone, other, replace(waiting, state=State.PENDING), record("x", state=State.DELETING)])
    refs = {key: FileRef("output", "", f"{key}.png") for key in ("own", "other", "waiting")}
    names.restore_alone(files, (("t", ref) for ref in refs.values()))
    for key, etag in (("own", "e"), ("other", "e2"), ("waiting", "e")):
        files.restore("t", refs[key], Holder("b1", refs[key], etag))
    assert names.attach(files) == [ArtifactDeletion("other")]
    assert files.find("t", refs["own"]) == Holder("b1", refs["own"], "e", stored=Stored("own", 0, ""))
    assert files.find("t", refs["other"]) == Holder("b1", refs["other"], "e2")
    assert files.find("t", refs["waiting"]) == Holder("b1", refs["waiting"], "e")
    assert files.find("t", FileRef("output", "", "alone.png")) == Stored("alone", 0, "")
    assert files.find("t", FileRef("output", "", "x.png")) is None
    assert files.trim(3, lambda _: True) == [("t", FileRef("output", "", "alone.png"))], "it is the oldest"


def test_a_start_gives_uploads_their_copies_back() -> None:
    files = FileIndex()
    rows = [replace(record(key, state=State.STORED, backend=""), kind="input", etag=f"d{key}") for key in "abcd"]
    names = StoredNames(rows)
    refs = {key: FileRef("input", "", f"{key}.png") for key in "abcd"}
    names.restore_alone(files, ())
    assert names.attach(files) == []
    files.put_upload("t", refs["a"], Upload("da", 1))
    files.put_upload("t", refs["b"], Upload("other", 1))
    files.restore("t", refs["c"], Holder("b1", refs["c"], "e"))
    assert names.attach_uploads(files) == [ArtifactDeletion("b"), ArtifactDeletion("c")]
    assert files.uploads("t")[refs["a"]].stored == Stored("a", 0, "", upload="da")
    assert files.find("t", refs["d"]) == Stored("d", 0, "", upload="dd")


def test_one_tenant_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "MAX_PENDING", 3)
    monkeypatch.setattr(queue_module, "MAX_OF_TENANT", 2)
    queue, copies = CopyQueue(), [copy(key, tenant) for key, tenant in (("1", "t"), ("2", "t"), ("3", "u"))]
    queue.add(copies[0])
    queue.add(copies[0])
    assert not queue.is_full("t")
    queue.add(copies[1])
    assert [queue.is_full(tenant) for tenant in "tu"] == [True, False]
    queue.add(copies[2])
    assert queue.is_full("u")
    for _ in range(2):
        queue.remove(copies[0])
    assert [queue.is_full(tenant) for tenant in "tu"] == [False, False]


def test_a_file_without_an_etag_must_not_be_younger_than_the_plan_to_copy_it() -> None:
    """Because it may be another tenant's by then."""
    planned = replace(record("1"), etag=UNTOLD, created_at=1_800_000_000_000)
    times = {1_799_999_990: True, 1_800_000_001: True, 1_800_000_003: False}
    for written, is_it in times.items():
        headers = {"Last-Modified": formatdate(written, usegmt=True)}
        assert is_same(expected_of(planned, headers), headers) is is_it
    assert is_same(expected_of(planned, {}), {})
    told = {"ETag": '"1-1"', "Last-Modified": formatdate(0, usegmt=True)}
    assert expected_of(replace(planned, etag='"1-1"'), told) == '"1-1"'


def test_files_of_a_job_go_in_short_steps_and_not_with_another_job_of_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_files, "AT_ONCE", 10)
    files, given_up, named = FileIndex(), list[str](), set[FileRef]()

    def name(number: int) -> FileRef:
        return FileRef("output", "", f"{number}.png")

    of_jobs = JobFiles(files, CopyQueue(), lambda one: given_up.append(one.key), lambda _, visible: visible in named)
    for number in range(40):
        files.restore("t", name(number), Holder("b1", name(number), '"1-1"'))
        assert files.restore_stored("t", name(number), Stored(f"k{number}", 1, "d"))
        if number < 25:
            of_jobs.add("t", "p", name(number), f"k{number}")
    named.add(name(3))
    of_jobs.drop("t", "p")
    # The id comes again before the files are gone.
    for number in range(25, 40):
        of_jobs.add("t", "p", name(number), f"k{number}")
    assert [len(changes) for changes in of_jobs.delete()] == [3 * 9, 3 * 10, 3 * 5]
    assert [number for number in range(40) if files.find("t", name(number)) is not None] == [3, *range(25, 40)]
    named.clear()
    assert [len(changes) for changes in of_jobs.delete()] == [3]
    assert files.find("t", name(3)) is None
    of_jobs.drop("t", "p")
    assert len(list(of_jobs.delete())) == 2
