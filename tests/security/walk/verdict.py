"""What of another tenant is in bytes, texts and pictures. Pure."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from PIL import Image, ImageSequence, UnidentifiedImageError

CELLS = 8
SIDE = 64
# Of an animation so many frames are looked at.
MAX_FRAMES = 4
_LIKE = 0.9
_COLOUR_SHARE = 0.1
_COLOUR_DISTANCE = 2
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of two colours in 8 x 8 cells. The code says which cell has which, and survives most changes."""

    name: str
    colours: tuple[Colour, Colour]
    code: tuple[int, ...]

    def png(self) -> bytes:
        """Return the picture."""
        small = Image.new("RGB", (CELLS, CELLS))
        small.putdata([self.colours[bit] for bit in self.code])
        with io.BytesIO() as buffer:
            small.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(buffer, "PNG")
            return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Finding:
    """One secret in something that came back: its kind (word, pixels, ...) and name."""

    kind: str
    name: str


@dataclass(slots=True)
class Secrets:
    """All that the attacker must not get, and never sent.

    Attributes:
        words: by word, what it is: "prompt", "name", "id", "marker", "file".
        pictures: the victim's pictures.
        numbers: by a text as tensors are printed, what it is.
        notes: texts that are not another tenant's, but should not be shown: absolute paths.
    """

    words: dict[str, str] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)
    _searched: tuple[int, re.Pattern[bytes], dict[bytes, Finding]] | None = None

    def _pattern(self) -> tuple[re.Pattern[bytes], dict[bytes, Finding]]:
        size = len(self.words) + len(self.pictures) + len(self.numbers) + len(self.notes)
        if self._searched is None or self._searched[0] != size:
            forms = {form: Finding(kind, word) for word, kind in self.words.items() for form in spellings(word)}
            for text, name in self.numbers.items():
                forms[text.encode()] = Finding("numbers", name)
            for picture in self.pictures:
                for colour in picture.colours:
                    forms[printed(colour).encode()] = Finding("pixels", picture.name)
            for text in self.notes:
                forms[text.encode()] = Finding("note", text)
            ordered = sorted(forms, key=len, reverse=True)
            self._searched = (size, re.compile(b"|".join(map(re.escape, ordered)) or b"(?!)"), forms)
        return self._searched[1], self._searched[2]

    def in_bytes(self, data: bytes) -> set[Finding]:
        """Return the secrets in an answer's or a file's bytes."""
        pattern, forms = self._pattern()
        return {forms[match.group()] for match in pattern.finditer(data)}

    def in_value(self, value: Any) -> set[Finding]:
        """Return the secrets in a JSON value, its escapes undone."""
        return self.in_bytes(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))

    def in_picture(self, data: bytes) -> set[Finding]:
        """Return the pictures that an image's bytes show; of what is no image, nothing."""
        found: set[Finding] = set()
        try:
            with Image.open(io.BytesIO(data)) as image:
                for frame in _frames(image):
                    found |= set(self._in_frame(frame))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
            return found
        return found

    def in_file(self, data: bytes) -> set[Finding]:
        """Return the secrets in a file: in its bytes, and in what it shows."""
        return self.in_bytes(data) | self.in_picture(data)

    def _in_frame(self, frame: Image.Image) -> Iterator[Finding]:
        rgb = frame.convert("RGB")
        counted = rgb.resize((SIDE, SIDE), Image.Resampling.NEAREST).getcolors(SIDE * SIDE) or []
        bands = [*rgb.split(), frame.getchannel("A")] if "A" in frame.getbands() else rgb.split()
        codes = [_centred(band.resize((CELLS, CELLS), Image.Resampling.BOX).tobytes()) for band in bands]
        for picture in self.pictures:
            share = sum(n for n, colour in counted if any(_near(colour, own) for own in picture.colours))
            if share > _COLOUR_SHARE * SIDE * SIDE or any(_is_like(code, picture.code) for code in codes):
                yield Finding("pixels", picture.name)


def spellings(word: str) -> set[bytes]:
    """Return a word as it may stand in bytes: plain, as numbers of its bytes, hexadecimal, base64, percent-encoded."""
    raw = word.encode()
    found = {raw, raw.hex().encode(), quote(word, safe="").encode(), word.encode("utf-16-le")}
    found |= {separator.join(str(byte) for byte in raw).encode() for separator in (", ", ",", " ")}
    for shift in range(3):
        # What is left of base64 wherever the word begins.
        text = base64.b64encode(b"\0" * shift + raw)
        found.add(text[4 if shift else 0 :].rstrip(b"=")[:-1])
    return {form for form in found if len(form) >= 8}


def printed(colour: Colour) -> str:
    """Return a colour as a tensor's pixel is printed."""
    return ", ".join(f"{part / 255:.4f}" for part in colour)


def _frames(image: Image.Image) -> Iterator[Image.Image]:
    for number, frame in enumerate(ImageSequence.Iterator(image)):
        if number >= MAX_FRAMES:
            return
        yield frame


def _near(colour: Any, other: Colour) -> bool:
    return all(abs(int(a) - b) <= _COLOUR_DISTANCE for a, b in zip(colour, other, strict=True))


def _centred(values: Iterable[int]) -> list[float]:
    numbers = list(values)
    mean = sum(numbers) / len(numbers)
    return [number - mean for number in numbers]


def _is_like(band: list[float], code: tuple[int, ...]) -> bool:
    """Return True if a band's cells go up and down, or down and up, with the code."""
    wanted = _centred(code)
    size = (sum(a * a for a in band) * sum(b * b for b in wanted)) ** 0.5
    return size > CELLS and abs(sum(a * b for a, b in zip(band, wanted, strict=True))) / size > _LIKE
