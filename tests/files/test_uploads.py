"""Uploads' names, placements, and what the lists offer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.catalogue.object_info import merge_catalogue
from gateway.comfy import json_codec
from gateway.comfy.file_refs import FileRef, rename
from gateway.files.index import FileIndex, Holder, Upload
from gateway.files.placements import TRUST_SECONDS, Placement, Placements

PIC = FileRef("input", "", "pic.png")
A, B = Upload("a" * 64, 1), Upload("b" * 64, 2)


def put(files: FileIndex, tenant: str, upload: Upload, overwrite: bool = False) -> str:
    """Upload a pic.png."""
    ref = files.allot(tenant, PIC, upload.digest, overwrite)
    files.put_upload(tenant, ref, upload)
    return ref.filename


def test_names_are_comfyuis_and_a_tenants_own() -> None:
    files = FileIndex()
    assert put(files, "t", A) == "pic.png"
    assert put(files, "t", A) == "pic.png"
    assert put(files, "t", B) == "pic (1).png"
    assert put(files, "t", B) == "pic (1).png"
    assert put(files, "t", B, overwrite=True) == "pic.png"
    assert put(files, "other", B) == "pic.png"
    assert files.find("t", PIC) == B
    files.drop_upload("t", PIC)
    assert files.find("t", PIC) is None
    assert files.find("other", PIC) == B


def test_an_upload_and_an_output_never_share_a_name() -> None:
    files = FileIndex()
    output = FileRef("output", "", "x.png")
    files.claim("t", "b1", output)
    ref = files.allot("t", output, A.digest, overwrite=False)
    assert ref.filename == "x (1).png"
    files.put_upload("t", ref, A)
    assert files.claim("t", "b1", ref) == (FileRef("output", "", "x (1)~b1.png"), True)
    assert files.find("t", output) == Holder("b1", FileRef("output", "", "x.png"), None)


def test_a_backend_that_got_a_lost_file_again() -> None:
    """What it said of its files before then counts no more; what it got for the first time was not lost."""
    placements, there = Placements(), Placement(PIC, "etag")
    placements.put("b1", PIC, A.digest, there)
    placements.put("b2", PIC, A.digest, there, now=5.0)
    assert not any(placements.was_put_again(name, 0.0) for name in ("b1", "b2"))
    placements.put("b1", PIC, A.digest, there, now=7.0)
    assert placements.was_put_again("b1", 7.0)
    assert not placements.was_put_again("b1", 7.1)
    assert not placements.was_put_again("b2", 0.0)


def test_a_placed_name_is_somebodys_in_every_spelling() -> None:
    placements = Placements()
    assert not placements.is_name(PIC)
    with placements.arriving(PIC):
        assert placements.is_name(PIC)
        assert placements.is_name(FileRef("input", "", "pic (3).png"))
    assert not placements.is_name(PIC)
    placements.put("b1", PIC, A.digest, Placement(FileRef("input", "", "pic (1).png"), "etag"))
    assert placements.is_name(FileRef("input", "", "PIC (1).png"))
    assert placements.is_name(FileRef("input", "", "pic (1).png."))
    assert not placements.is_name(PIC)


def test_overwritten_placements_do_not_count() -> None:
    placements = Placements()
    there = Placement(PIC, "etag")
    placements.put("b1", PIC, A.digest, there)
    assert placements.find("b1", PIC, A.digest) == there
    placements.put("b1", PIC, B.digest, there)
    assert placements.find("b1", PIC, A.digest) is None
    placements.trust("b1", there, 100)
    assert placements.is_trusted("b1", there, 100 + TRUST_SECONDS - 1)
    assert not placements.is_trusted("b1", there, 100 + TRUST_SECONDS)
    placements.doubt("b1")
    assert not placements.is_trusted("b1", there, 100)


def test_each_tenants_lists_offer_its_own() -> None:
    info = {
        "LoadImage": {"input": {"required": {"image": [["hand.png", "placed.png"], {"image_upload": True}]}}},
        "LoadVideo": {"input": {"required": {"file": ["COMBO", {"options": [], "video_upload": True}]}}},
        "Other": {"input": {"required": {"x": [["hand.png", "placed.png"], {}]}}},
        "Sampler": {"input": {"required": {"x": [["euler", "x.safetensors"], {}]}}},
    }
    merged_catalogue = merge_catalogue(
        {"b1": info}, lambda ref: ref.filename in ("placed.png", "euler", "x.safetensors")
    )
    own = [PIC, FileRef("input", "", "film.mp4"), FileRef("input", "sub", "y.png"), FileRef("output", "", "z.png")]
    for uploads, images, films in (([], ["hand.png"], []), (own, ["hand.png", "pic.png"], ["film.mp4"])):
        body = merged_catalogue.body(uploads)
        shown = json_codec.loads(body.plain)
        assert shown["LoadImage"]["input"]["required"]["image"] == [images, {"image_upload": True}]
        assert shown["LoadVideo"]["input"]["required"]["file"][1]["options"] == films
        # It does not say that it offers files; but those of a tenant are in it.
        assert shown["Other"]["input"]["required"]["x"] == [images, {}]
        assert shown["Sampler"] == info["Sampler"]
        assert merged_catalogue.node_class("LoadImage", uploads) == shown["LoadImage"]
    assert merged_catalogue.body([]).etag != merged_catalogue.body(own).etag


def test_files_in_outputs_of_all_kinds() -> None:
    seen: list[FileRef] = []

    def name(ref: FileRef, made: bool) -> FileRef:
        seen.append(ref)
        assert made is not (ref.filename in ("mesh.glb", "other.obj", "bg_1.png", "told.png"))
        return replace(ref, filename=f"new-{ref.filename}")

    output = {
        "gifs": [{"filename": "a.mp4", "subfolder": "v", "type": "temp", "workflow": "a.png", "format": "video/h264"}],
        "custom": {"deep": [[{"filename": "b.latent"}]]},
        "result": ["mesh.glb", "3d/other.obj [output]", "temp/bg_1.png", {"filename": "told.png"}, None],
        "text": ["a model.glb in a text", {"filename": "t.txt", "type": "output"}],
        "animated": [True],
    }
    renamed = rename(output, name)
    assert renamed["gifs"][0] == {**output["gifs"][0], "filename": "new-a.mp4", "workflow": "new-a.png"}
    assert renamed["custom"] == {"deep": [[{"filename": "new-b.latent"}]]}
    assert renamed["result"][:3] == ["new-mesh.glb", "3d/new-other.obj [output]", "temp/new-bg_1.png"]
    assert renamed["text"] == ["a model.glb in a text", {"filename": "new-t.txt", "type": "output"}]
    assert FileRef("temp", "v", "a.png") in seen
    assert FileRef("temp", "", "bg_1.png") in seen
    assert FileRef("output", "3d", "other.obj") in seen
    assert rename(output, lambda ref, _: ref) is output


def test_lists_of_folders_and_latents_show_a_tenant_its_own() -> None:
    """They have no upload flag (nodes.py, LoadLatent; comfy_extras/nodes_dataset.py)."""
    placements = Placements()
    for name in (FileRef("input", "annas/x", "a.png"), FileRef("input", "", "anna.latent")):
        placements.put("b1", name, "digest", Placement(name, ""))
    folders = ["COMBO", {"options": ["3d", "annas", "annas/x"]}]
    info = {
        "LoadImageDataSetFromFolder": {"input": {"required": {"folder": folders}}},
        "LoadLatent": {"input": {"required": {"latent": [["anna.latent", "old.latent"]]}}},
    }
    merged_catalogue = merge_catalogue({"b1": info}, placements.is_name)
    own = [FileRef("input", "bens", "b.png"), FileRef("input", "", "ben.latent")]

    def offered(node_class: str) -> object:
        description: Any = merged_catalogue.node_class(node_class, own)
        return next(iter(description["input"]["required"].values()))

    assert offered("LoadImageDataSetFromFolder") == ["COMBO", {"options": ["3d", "bens"]}]
    assert offered("LoadLatent") == [["ben.latent", "old.latent"]]


@pytest.mark.parametrize(
    ("folder", "name"), [("a", "SECRE\u0301T.PNG"), ("A. ", "secr\u00e9t.png"), ("a", "secr\u00e9t.png. ")]
)
def test_names_that_some_file_system_takes_for_the_same(folder: str, name: str) -> None:
    placements = Placements()
    placed = FileRef("input", "a", "secr\u00e9t.png")
    placements.put("b1", placed, "digest", Placement(placed, ""))
    assert placements.is_name(FileRef("input", folder, name))
    assert not placements.is_name(FileRef("input", folder, f"x{name}"))
