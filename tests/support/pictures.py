"""Pictures: colours of saved files, and PNGs to upload."""

from __future__ import annotations

import io

from PIL import Image


def colour(data: bytes) -> tuple[int, ...]:
    """The colour of an image's first pixel."""
    with Image.open(io.BytesIO(data)) as image:
        pixel = image.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def png(rgb: tuple[int, int, int], size: int = 16) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), rgb).save(buffer, "PNG")
    return buffer.getvalue()
