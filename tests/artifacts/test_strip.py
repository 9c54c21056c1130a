"""Pictures without embedded text: the same pixels, none of the text, whatever the file and its chunks."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import struct
import zlib
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from gateway.artifacts import strip
from gateway.artifacts.strip import NotStrippable, stripper

SECRET = "hunter2-workflow"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXIF_WORKFLOW = 0x010F
ORIENTATION = 0x0112


def stripped(name: str, content: bytes, sizes: Sequence[int] = ()) -> bytes:
    """Strip a file that comes in chunks of these sizes, and the rest."""

    async def chunks() -> AsyncIterator[bytes]:
        start = 0
        for size in sizes:
            yield content[start : start + size]
            start += size
        yield content[start:]

    async def run() -> bytes:
        function = stripper(name)
        assert function is not None
        return b"".join([piece async for piece in function(chunks())])

    return asyncio.run(run())


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    if mode == "P":
        return picture("RGB", seed).quantize(16)
    size = (19, 13)
    count = len(Image.new(mode, size).tobytes())
    return Image.frombytes(mode, size, bytes((index * 37 + seed * 11 + index // 7) % 256 for index in range(count)))


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[EXIF_WORKFLOW] = f"workflow:{SECRET}"
    found[ORIENTATION] = orientation
    return found


def png(mode: str = "RGB", frames: int = 1, *, has_profile: bool = False, orientation: int = 1) -> bytes:
    """A PNG file as ComfyUI saves it: text chunks, or for an animation its private chunk; and all the other ones."""
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", json.dumps({"1": SECRET}))
    info.add_text("workflow", SECRET, zip=True)
    info.add_itxt("parameters", SECRET, lang="en", tkey="x")
    info.add(b"comf", b"workflow\x00" + SECRET.encode(), after_idat=True)
    info.add(b"tIME", b"\x07\xea\x0b\x1b\x00\x00\x00")
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": [picture(mode, n) for n in range(1, frames)]} if frames > 1 else {}
    profile = PROFILE if has_profile else None
    picture(mode).save(buffer, "PNG", pnginfo=info, icc_profile=profile, exif=exif(orientation), dpi=(72, 72), **more)
    return buffer.getvalue()


def jpeg(mode: str = "RGB", *, progressive: bool = False, has_profile: bool = False, orientation: int = 1) -> bytes:
    buffer = io.BytesIO()
    profile = PROFILE if has_profile else None
    picture(mode).save(
        buffer,
        "JPEG",
        quality=85,
        progressive=progressive,
        icc_profile=profile,
        exif=exif(orientation),
        comment=SECRET,
        xmp=SECRET.encode(),
    )
    # A restart marker in a scan, IPTC, and a picture behind the picture.
    iptc = b"\xff\xed" + struct.pack(">H", 2 + len(SECRET)) + SECRET.encode()
    content = buffer.getvalue()
    return content[:2] + b"\xff" + iptc + content[2:] + SECRET.encode()


def webp(mode: str = "RGB", frames: int = 1, *, lossless: bool = True, has_profile: bool = False) -> bytes:
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": [picture(mode, n) for n in range(1, frames)]} if frames > 1 else {}
    profile = PROFILE if has_profile else None
    picture(mode).save(
        buffer, "WEBP", lossless=lossless, icc_profile=profile, exif=exif(1), xmp=SECRET.encode(), **more
    )
    content = buffer.getvalue()
    odd = b"note" + struct.pack("<I", 17) + SECRET.encode() + b"!\x00"
    return b"RIFF" + struct.pack("<I", len(content) - 8 + len(odd)) + content[8:] + odd + SECRET.encode()


FILES = {
    **{f"{mode}.png": png(mode) for mode in ("RGB", "RGBA", "L", "LA", "I;16", "P", "1")},
    "profile.png": png(has_profile=True),
    "animation.png": png("RGBA", 3),
    **{f"{mode}.jpg": jpeg(mode) for mode in ("RGB", "L", "CMYK")},
    "progressive.jpeg": jpeg(progressive=True, has_profile=True),
    **{f"turned{orientation}.jpg": jpeg(orientation=orientation) for orientation in (2, 6, 8)},
    **{f"{mode}.webp": webp(mode) for mode in ("RGB", "RGBA")},
    "lossy.webp": webp(lossless=False),
    "profile.webp": webp(has_profile=True),
    "animation.webp": webp("RGBA", 3),
}


def shown(content: bytes) -> tuple[object, ...]:
    """All that a viewer shows of a picture: its frames, their times, its colours and its orientation."""
    image = Image.open(io.BytesIO(content))
    count, frames = getattr(image, "n_frames", 1), []
    for frame in range(count):
        image.seek(frame)
        frames.append((image.mode, image.tobytes(), image.info.get("duration"), image.info.get("loop")))
    turned = image.getexif().get(ORIENTATION, 1) if image.format == "JPEG" else 1
    colours = image.info.get("icc_profile"), image.info.get("adobe_transform")
    return image.format, image.size, frames, colours, turned


@pytest.mark.parametrize("name", FILES)
def test_pixels_stay_and_text_goes(name: str) -> None:
    content = FILES[name]
    assert SECRET.encode() in content
    found = stripped(name, content)
    assert shown(found) == shown(content)
    for part in (found, *unpacked(found)):
        assert SECRET.encode() not in part
    image = Image.open(io.BytesIO(found))
    image.load()
    gone = {"xmp", "comment", "prompt", "workflow", "parameters"} | ({"exif"} if image.format != "JPEG" else set())
    assert not gone & image.info.keys()
    assert set(dict(image.getexif())) <= {ORIENTATION}
    assert stripped(name, found) == found
    if name.endswith(".webp"):
        assert len(found) == 8 + struct.unpack("<I", found[4:8])[0]
        # The flags of VP8X that tell of EXIF and XMP.
        assert found[12:16] == b"VP8X"
        assert not found[20] & 0b1100
        assert b"EXIF" not in found


def unpacked(content: bytes) -> list[bytes]:
    """The contents of all zlib streams in a file, where compressed text could hide."""
    found = []
    for start in range(len(content)):
        if content[start] == 0x78:
            try:
                found.append(zlib.decompressobj().decompress(content[start:]))
            except zlib.error:
                continue
    return found


@given(st.sampled_from(sorted(FILES)), st.lists(st.integers(0, 40), max_size=40))
def test_chunks_make_no_difference(name: str, sizes: list[int]) -> None:
    assert stripped(name, FILES[name], sizes) == stripped(name, FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_one_byte_at_a_time(name: str) -> None:
    assert stripped(name, FILES[name], [1] * len(FILES[name])) == stripped(name, FILES[name])


@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_file_that_breaks_off_is_refused(name: str, data: st.DataObject) -> None:
    whole = len(FILES[name]) - len(SECRET) if not name.endswith(".png") else len(FILES[name])
    cut = data.draw(st.integers(0, whole - 1))
    with pytest.raises(NotStrippable):
        stripped(name, FILES[name][:cut])


@given(st.sampled_from(sorted(FILES)), st.data())
def test_damage_raises_nothing_else(name: str, data: st.DataObject) -> None:
    content = bytearray(FILES[name])
    at = data.draw(st.integers(0, min(len(content), 400) - 1))
    content[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(NotStrippable):
        assert len(stripped(name, bytes(content))) <= len(content)


def test_a_file_in_too_many_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strip, "_MAX_PARTS", 100)
    tiny = png()[:33] + (struct.pack(">I", 0) + b"tEXt" + bytes(4)) * 100
    with pytest.raises(NotStrippable, match="too many"):
        stripped("a.png", tiny)


async def test_others_have_turns_while_a_file_in_many_parts_is_read() -> None:
    """All parts come in one chunk, so nothing else makes it wait."""
    parts, turns = 20_000, 0
    files = {
        "a.jpg": b"\xff\xd8" + b"\xff\xfe\x00\x02" * parts + b"\xff\xd9",
        "a.png": png()[:33] + (struct.pack(">I", 0) + b"tEXt" + bytes(4)) * parts + bytes(4) + b"IEND" + bytes(4),
        "a.webp": b"RIFF" + struct.pack("<I", 4 + 8 * parts) + b"WEBP" + (b"name" + bytes(4)) * parts,
    }

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def once(content: bytes) -> AsyncIterator[bytes]:
        yield content

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(count_turns())
        for name, content in files.items():
            function = stripper(name)
            assert function is not None
            before = turns
            assert [piece async for piece in function(once(content))]
            assert turns - before >= parts // 500
        counting.cancel()


@given(st.sampled_from(["a.png", "a.jpg", "a.webp"]), st.binary(max_size=300))
def test_anything_else_is_refused(name: str, content: bytes) -> None:
    with pytest.raises(NotStrippable):
        stripped(name, content)


def test_names() -> None:
    assert all(map(stripper, ("A.PNG", "b.JPeG", "c.jpg", "d.e.webp")))
    assert not any(map(stripper, ("video.mp4", "picture.gif", "png", "", "picture.png.txt", "latent.latent")))
