"""What backends say of their node classes: compared by its text, shared where it is the same, read in turns."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue.capabilities import spelled
from gateway.catalogue.class_profiles import make_profiles
from gateway.catalogue.descriptions import Description, describe
from gateway.catalogue.object_info import FileList, make_view, merge_catalogue
from gateway.catalogue.worker import Stopped, Worker
from gateway.comfy import json_codec
from gateway.comfy.file_refs import FileRef
from gateway.comfy.node_review import review
from gateway.simulator.catalogue import load_object_info
from gateway.simulator.options import SimulatorOptions

INFO = load_object_info(SimulatorOptions())
FEW = {name: INFO[name] for name in ("KSampler", "LoadImage", "SaveImage")}


def said(value: Any, *others: Description, known: Description | None = None) -> Description:
    """Return what a backend says whose answer comes in pieces."""
    body = json_codec.dumps(value)
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    found, whole = describe(pieces, known, others)
    assert (whole, pieces) == (body, [])
    return found


def test_equal_backends_share_what_they_say() -> None:
    first = said(FEW)
    assert said(FEW, first) is first
    changed = said({**FEW, "KSampler": {**FEW["KSampler"], "category": "other"}}, known=first)
    assert not changed.says_the_same(first)
    assert changed.classes["LoadImage"] is first.classes["LoadImage"]
    assert changed.classes["KSampler"]["category"] == "other"
    back = said(FEW, first, known=changed)
    assert back is first
    assert not first.says_the_same(None)


def test_other_spaces_or_another_order_are_no_news() -> None:
    """Only the text of each class counts."""
    first = said(FEW)
    body = b"{ %s }" % b" , ".join(b"%s : %s" % (json_codec.dumps(n), json_codec.dumps(FEW[n])) for n in reversed(FEW))
    again, _ = describe([body], first, [])
    assert again.digest != first.digest
    assert again.says_the_same(first)


def test_profiles_are_made_once_for_each_description() -> None:
    first = make_profiles({"a": FEW, "b": FEW}, review())
    again = make_profiles({"a": FEW}, review(), first)
    assert all(again.common[name] is first.common[name] for name in FEW)
    other = make_profiles({"a": json_codec.loads(json_codec.dumps(FEW))}, review(), first)
    assert other.common == first.common
    assert all(other.common[name] is not first.common[name] for name in FEW)


def test_a_view_is_a_catalogue_without_what_prompts_are_judged_by() -> None:
    whole, view = merge_catalogue({"a": INFO}, lambda _: False), make_view({"a": INFO}, lambda _: False)
    assert view.body([]) == whole.body([])
    assert json_codec.loads(whole.body([]).plain) == json_codec.loads(json_codec.dumps(INFO))
    assert list(json_codec.loads(whole.body([]).plain)) == list(INFO)
    assert not view.profiles.common
    assert view.mark is not whole.mark
    assert json_codec.loads(make_view({}, lambda _: False).body([]).plain) == {}


@given(st.lists(st.text("ab.", max_size=3) | st.integers()), st.lists(st.sampled_from(["a.png", "b.png"])))
def test_offered_files_are_sorted_and_each_is_there_once(choices: list[Any], own: list[str]) -> None:
    offered = FileList("LoadImage", "image", "image_upload", tuple(choices)).offered(
        [FileRef("input", "", name) for name in own]
    )
    expected = sorted({*own, *(each for each in choices if isinstance(each, str))}) if own else choices
    assert offered == expected


@given(st.lists(st.sampled_from(["a/b", "a\\b", "a", "c\\d/e", 5])), st.sampled_from(["a/b", "a\\b", "c/d/e", "x"]))
def test_a_choice_is_spelled_as_its_list_has_it(choices: list[Any], value: str) -> None:
    description = {"input": {"required": {"x": [choices]}}}
    same = [each for each in choices if isinstance(each, str) and each.replace("\\", "/") == value.replace("\\", "/")]
    assert spelled(description, "x", value) == (value if value in choices or not same else same[0])


async def test_work_is_done_one_after_the_other_and_ends_when_it_is_not_wanted() -> None:
    worker = Worker("test")
    threads = await asyncio.gather(*(worker.run(threading.get_ident) for _ in range(3)))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless() -> None:
        loop.call_soon_threadsafe(began.set)
        while True:
            worker.rest()

    working = asyncio.create_task(worker.run(endless))
    await began.wait()
    worker.close()
    with pytest.raises(Stopped):
        await working
