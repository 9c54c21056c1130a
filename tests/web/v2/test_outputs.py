"""Outputs of jobs as the Comfy API v2 shows them: every kind, none dropped, each under an id of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.file_refs import FileRef
from gateway.web.v2.outputs import job_of, outputs_of

JOB = "722f03dd-788b-4385-a0c2-d138ca2384fe"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=20,
)


def file(name: str, **more: str) -> dict[str, str]:
    """A file in a node's result."""
    return {"filename": name, "subfolder": "", "type": "output", **more}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"images": [file("a.png")], "animated": [False]}, [("a.png", "image", "image/png")]),
        ({"images": [file("a.webp")], "animated": [True]}, [("a.webp", "image", "image/webp")]),
        ({"images": [file("a.mp4")], "animated": [True]}, [("a.mp4", "video", "video/mp4")]),
        ({"gifs": [file("a.mp4", format="video/h264-mp4")]}, [("a.mp4", "video", "video/mp4")]),
        ({"video": [file("a.webm")]}, [("a.webm", "video", "video/webm")]),
        ({"videos": [file("a.webm")]}, [("a.webm", "video", "video/webm")]),
        ({"audio": [file("a.flac")]}, [("a.flac", "audio", "audio/flac")]),
        ({"latents": [file("a.latent")]}, [("a.latent", "latent", "application/octet-stream")]),
        ({"files": [file("a.txt")]}, [("a.txt", "file", "text/plain")]),
        ({"3d": [file("a.glb")]}, [("a.glb", "file", "model/gltf-binary")]),
        ({"result": ["sub/a.glb", {"x": 1}]}, [("a.glb", "file", "model/gltf-binary")]),
        ({"a_images": [file("a.png")], "b_images": [file("b.png")]}, [("a.png", "image", "image/png"),
                                                                     ("b.png", "image", "image/png")]),
        ({"ui": {"deep": [[file("a.wav")]]}}, [("a.wav", "audio", "audio/x-wav")]),
        ({"text": ["one", ["two"]]}, [("node-7-text-1.txt", "text", "text/plain; charset=utf-8"),
                                      ("node-7-text-2.txt", "text", "text/plain; charset=utf-8")]),
        ({"text": "alone"}, [("node-7-text-1.txt", "text", "text/plain; charset=utf-8")]),
        ({"text": ["model.glb"]}, [("node-7-text-1.txt", "text", "text/plain; charset=utf-8")]),
        ({"unknown": [file("a.xyz1")]}, [("a.xyz1", "file", "application/octet-stream")]),
        ({"images": [file("a.png"), file("a.png")]}, [("a.png", "image", "image/png")]),
        ({"width": [512], "seed": "5", "images": [None, 3, {}]}, []),
    ],
)  # fmt: skip
def test_each_kind(result: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    found = outputs_of(JOB, {"7": result})
    shown = [(each.name, each.kind, each.content_type.replace("audio/wav", "audio/x-wav")) for each in found]
    assert shown == expected
    assert {each.node_id for each in found} <= {"7"}


def test_an_id_leads_to_its_job_and_stays() -> None:
    results = {"7": {"images": [file("a.png"), file("a.png", type="temp"), file("a.png", subfolder="x")]},
               "8": {"images": [file("a.png")], "text": ["a", "a"]}}  # fmt: skip
    found = outputs_of(JOB, results)
    assert len({each.id for each in found}) == len(found) == 6
    assert [each.id for each in outputs_of(JOB, results)] == [each.id for each in found]
    assert {job_of(each.id) for each in found} == {JOB}
    assert found[2].ref == FileRef("output", "x", "a.png")
    for wrong in ("", "out_", "out_!", "out_AAAA", JOB, found[0].id[:-3], "x" * 9_999):
        assert job_of(wrong) is None


@given(JSON)
def test_any_result_is_read(results: Any) -> None:
    for each in outputs_of(JOB, {"1": {"text": results, "images": results}, "2": results}):
        json.dumps([each.name, each.kind, each.content_type])
        assert job_of(each.id) == JOB
