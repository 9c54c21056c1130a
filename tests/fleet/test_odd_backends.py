"""One backend's odd /object_info, beside a good one's: the good one's catalogue stays what it is."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from gateway.catalogue import merging, tenant_view
from gateway.catalogue.object_info import merge_catalogue, merge_sound_parts
from gateway.catalogue.tenant_view import without_models
from gateway.comfy import json_codec
from gateway.comfy.file_refs import FileRef
from gateway.comfy.object_info import read_object_info
from gateway.settings import TenantSettings
from gateway.simulator.catalogue import load_object_info
from gateway.simulator.options import SimulatorOptions
from gateway.tenants.policy import Policies
from tests.support.odd_info import DROPPED, KEPT, REPAIRED

GOOD = load_object_info(SimulatorOptions())
ODD = {**DROPPED, **REPAIRED, **KEPT}
UPLOADS = [FileRef("input", "", "own.png"), FileRef("input", "", "own.latent"), FileRef("input", "bens", "b.png")]
# Of the good backend's classes, some of each kind: with lists of files and of models, with links, with none of these.
SOME = (
    "CheckpointLoaderSimple",
    "CreateVideo",
    "KSampler",
    "LoadAudio",
    "LoadImage",
    "LoadImageDataSetFromFolder",
    "SaveImage",
    "StringFormat",
)
FEW = {name: GOOD[name] for name in SOME}
POLICY = Policies(TenantSettings.model_validate({"default": {"models": {"deny": ["*.ckpt", "a*"]}}}), []).default


@functools.cache
def alone() -> Any:
    """Return what the gateway tells of the few classes if their backend is alone."""
    return json_codec.loads(merge_catalogue({"good": FEW}, lambda _: False).body(UPLOADS).plain)


def read(value: Any) -> Any:
    """The classes that a backend's answer comes to."""
    return read_object_info(json_codec.loads(json_codec.dumps_exact(value))).classes


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["Odd", "LoadImage", "LoadLatent", "LoadImageDataSetFromFolder"])
def test_the_good_ones_classes_stand(odd: str, name: str) -> None:
    """Whoever of the two is first in the file; also where the odd description is of a class that both have."""
    odd_info = read({name: ODD[odd]})
    for infos in ({"odd": odd_info, "good": FEW}, {"good": FEW, "odd": odd_info}):
        merged_catalogue = merge_catalogue(infos, lambda ref: ref.filename == "a.png")
        encoded = json_codec.loads(merged_catalogue.body(UPLOADS).plain)
        kept = FEW.keys() if odd in DROPPED or next(iter(infos)) == "good" else FEW.keys() - {name}
        assert {each: encoded[each] for each in kept - {name}} == {each: alone()[each] for each in kept - {name}}
        assert (name in encoded) == (name in FEW or odd not in DROPPED)
        for each in encoded:
            assert json_codec.loads(json_codec.dumps(merged_catalogue.node_class(each, UPLOADS))) == encoded[each]
        seen = tenant_view.seen(infos, POLICY)
        merge_catalogue(seen, lambda _: False).body(UPLOADS)
        for description in merging.object_info(list(infos.values())).values():
            without_models(description, POLICY)


def test_a_backend_that_breaks_the_merge_all_the_same_is_left_out() -> None:
    """With descriptions that no reader has seen: the other backends' catalogue is as if it were not there."""
    for raw in DROPPED.values():
        for name in ("LoadImage", "LoadLatent"):
            infos: Any = {"odd": {name: raw}, "good": GOOD, "odder": {name: raw, 5: None}}
            merged_catalogue, broken = merge_sound_parts(infos, lambda _: False)
            assert "good" not in broken
            assert merged_catalogue.classes.keys() >= GOOD.keys()
    two_parts: Any = {"LoadImage": REPAIRED["an input and a hidden input"]}
    merged_catalogue, broken = merge_sound_parts({"odd": two_parts, "good": GOOD}, lambda _: False)
    assert list(broken) == ["odd"]
    assert merged_catalogue.body([]).plain == merge_catalogue({"good": GOOD}, lambda _: False).body([]).plain
    assert merge_sound_parts({"odd": two_parts}, lambda _: False)[0].classes == {}


def test_lists_of_files_stand_where_they_are_whatever_the_order_of_the_parts() -> None:
    """A custom node may say ``optional`` before ``required``."""
    info = read({"Odd": KEPT["optional before required"]})
    body = json_codec.loads(merge_catalogue({"b1": info}, lambda _: False).body(UPLOADS[:1]).plain)
    assert body["Odd"]["input"]["required"]["image"][0] == ["a.png", "b.png", "own.png"]
    assert body["Odd"]["input"]["optional"]["mask"][0] == ["m.png", "own.png"]


def test_a_choice_that_looks_like_the_gateways_mark_is_a_choice() -> None:
    info = read({"A": KEPT["the gateway's own mark"], "B": REPAIRED["all three"]})
    body = json_codec.loads(merge_catalogue({"b1": info}, lambda _: False).body(UPLOADS[:1]).plain)
    assert body["A"]["input"]["required"]["x"][0] == ["\x00file-list-0\x00"]
    assert body["B"]["input"]["required"]["image"][0] == ["a.png", "b.png", "own.png"]


def test_many_choices_that_are_objects_are_merged_in_time() -> None:
    """By what they hold: to look each one up in a list of all would take minutes."""
    choices = [{"content": str(n)} for n in range(60_000)]
    info = {"A": {"input": {"required": {"x": [choices]}}, "output": []}}
    other = {"A": {"input": {"required": {"x": [[*choices[:10], {"content": "more"}]]}}, "output": []}}
    merged = merging.object_info([info, other])
    assert merged["A"]["input"]["required"]["x"][0] == [*choices, {"content": "more"}]
