"""The walk through node classes: what it sees, and a fixed part of it over the simulator.

All of it is run by hand, on a real ComfyUI: ``make walk``.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageFilter, ImageOps

from tests.security.walk.run import Case, Hit
from tests.security.walk.start import prepare
from tests.security.walk.verdict import Finding, Picture, Secrets
from tests.support.lab import Lab

WORD = "zebra-in-a-marker"
PICTURE = Picture("upload", ((201, 13, 77), (30, 140, 60)), tuple(int(n * n % 7 < 3) for n in range(64)))
SECRETS = Secrets(words={WORD: "marker"}, pictures=[PICTURE], numbers={"0.3014, 0.3014, 0.3014": "audio"})
# Inputs that open, run or write something, and the ways that once led to another tenant's files.
INPUTS = frozenset(
    {
        "LoadImage.image",
        "LoadImageMask.image",
        "LoadImageOutput.image",
        "LoadAudio.audio",
        "LoadVideo.file",
        "Load3D.image",
        "Load3D.model_file",
        "LoadImageDataSetFromFolder.folder",
        "LoadImageTextDataSetFromFolder.folder",
        "Painter.mask",
        "RecordAudio.audio",
        "WebcamCapture.image",
    }
)
WAYS = frozenset(
    {
        "output",
        "audio",
        "numeric",
        "number",
        "40 KB of ./ [output]",
        "trailing /.",
        "folder .",
        "switch folder .",
        "concatenate switch audio",
        "concatenate switch output",
        "unwrapped link output",
        "3d object output",
        "playlist concat.mp4",
    }
)
CODE = frozenset({"StringFormat.f_string", "ComfyMathExpression.expression"})
SAVERS = frozenset({"SaveImageTextDataSetToFolder.filename_prefix", "PreviewImage.filename_prefix"})
PREFIX = frozenset({"SaveImage.filename_prefix"})
PREFIX_WAYS = frozenset({"replace annao/", "replace annab%batch_num%", "string replace annas/annao//"})
SAVERS_WAYS = frozenset({"write ../input", "write over an upload", "string write ../../user", "switch output"})


def _png(image: Image.Image) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        return buffer.getvalue()


def _picture() -> Image.Image:
    return Image.open(io.BytesIO(PICTURE.png()))


@pytest.mark.parametrize(
    "image",
    [
        _picture(),
        ImageOps.invert(_picture()),
        _picture().convert("L"),
        _picture().resize((200, 90)),
        _picture().filter(ImageFilter.BoxBlur(2)),
        _picture().getchannel("R"),
        Image.new("RGB", (8, 8), PICTURE.colours[1]),
    ],
)
def test_a_planted_picture_is_found_however_it_is_changed(image: Image.Image) -> None:
    assert SECRETS.in_file(_png(image)) == {Finding("pixels", "upload")}


@pytest.mark.parametrize(
    "image", [Image.new("RGB", (64, 64), (1, 2, 3)), Image.linear_gradient("L"), Image.radial_gradient("L")]
)
def test_other_pictures_are_not_taken_for_it(image: Image.Image) -> None:
    assert SECRETS.in_file(_png(image)) == set()
    assert SECRETS.in_picture(b"no picture") == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"so {WORD}.", Finding("marker", WORD)),
        (str(list(WORD.encode())), Finding("marker", WORD)),
        (WORD.encode().hex(), Finding("marker", WORD)),
        ("tensor([[0.7882, 0.0510, 0.3020]])", Finding("pixels", "upload")),
        ("tensor([[[0.3014, 0.3014, 0.3014]]])", Finding("numbers", "audio")),
        ("zebra", None),
    ],
)
def test_planted_texts_are_found_as_texts_and_as_numbers(text: str, found: Finding | None) -> None:
    assert SECRETS.in_bytes(text.encode()) == ({found} if found else set())
    assert SECRETS.in_value({"a": [text]}) == ({found} if found else set())


async def _walk(
    lab: Lab,
    *inputs: tuple[frozenset[str], frozenset[str]],
    trust: tuple[str, ...] = (),
    is_checked: bool = True,
    stores: bool = False,
) -> list[Hit]:
    base: Path = lab.directory / "comfyui"
    url = (await lab.simulator("--base-dir", str(base))).url
    prepared = await prepare(lab, url, base, trust=trust, is_checked=is_checked, stores=stores)

    def is_chosen(case: Case) -> bool:
        name, way = f"{case.class_type}.{case.input_name}", case.variant.label
        return any(name in some and (not ways or way in ways) for some, ways in inputs) and (
            name not in CODE or bool(case.variant.objects)
        )

    chosen = [case for case in prepared.cases if is_chosen(case)]
    await prepared.walk.view_names(prepared.targets)
    await prepared.walk.run(chosen)
    prepared.walk.found_lost(await prepared.victim.lost())
    assert prepared.figures.counts["sent"] == len(chosen) > 20
    return list(prepared.walk.hits.values())


async def test_nothing_of_another_tenant_comes_back(lab: Lab) -> None:
    """Not even if the files of both are in object storage."""
    inputs = (INPUTS, WAYS), (CODE, frozenset()), (SAVERS, SAVERS_WAYS), (PREFIX, PREFIX_WAYS)
    hits = await _walk(lab, *inputs, stores=True)
    assert [hit.told() for hit in hits] == []


async def test_secret_folders_hold_where_no_name_is_checked(lab: Lab) -> None:
    hits = await _walk(lab, (INPUTS, WAYS), (SAVERS, SAVERS_WAYS), (PREFIX, PREFIX_WAYS), is_checked=False)
    assert [hit.told() for hit in hits] == []


async def test_the_walk_finds_what_trusted_classes_give_away(lab: Lab) -> None:
    hits = await _walk(lab, (CODE, frozenset()), trust=("*",))
    found = {(hit.case.class_type, hit.finding.kind) for hit in hits if hit.case is not None}
    assert {("StringFormat", "prompt"), ("StringFormat", "name"), ("ComfyMathExpression", "marker")} <= found
