"""Choice of an answer's form: an output of a job, or JSON, by the request's Accept (RFC 9110, section 12.5.1). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

_RANGE = re.compile(r"\s*([\w!#$&^.+*-]{1,127})/([\w!#$&^.+*-]{1,127})\s*(?:;(.*))?", re.DOTALL)
_QUALITY = re.compile(r"(?:^|;)\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*(?:$|;)", re.IGNORECASE)
# Media ranges that are looked at.
MAX_RANGES = 50
JSON_TYPE = "application/json"


class Form(Enum):
    """Form of an answer that is no output. NONE: nothing fits."""

    JSON = auto()
    NONE = auto()


@dataclass(frozen=True, slots=True)
class MediaRange:
    """A media range of Accept, in lower case, and its quality. The smaller `width` is, the more exact it is."""

    major: str
    minor: str
    quality: float

    @property
    def width(self) -> int:
        """Return 0 for one type, 1 for all of a kind, 2 for ``*/*``."""
        return (self.major == "*") + (self.minor == "*")

    def fits(self, content_type: str) -> bool:
        """Return True if a type, in lower case and without parameters, is in the range."""
        major, _, minor = content_type.partition("/")
        return self.major in ("*", major) and self.minor in ("*", minor)


def ranges_of(accept: Sequence[str]) -> list[MediaRange]:
    """Return the media ranges of all Accept headers. What is malformed is left out."""
    found = []
    for part in ",".join(accept).split(",", MAX_RANGES)[:MAX_RANGES]:
        match = _RANGE.fullmatch(part)
        if match is None or (match[1] == "*" and match[2] != "*"):
            continue
        quality = _QUALITY.search(match[3] or "")
        found.append(MediaRange(match[1].lower(), match[2].lower(), min(float(quality[1]), 1.0) if quality else 1.0))
    return found


def choose(accept: Sequence[str], content_types: Sequence[str]) -> int | Form:
    """Return the place of the output to send, or JSON, or NONE.

    The first of the best outputs counts. A tie goes to the output only if Accept names its type, or its kind, because
    clients that accept anything expect JSON.

    Args:
        accept: the values of the request's Accept headers.
        content_types: the types of the outputs, the one to prefer first.
    """
    ranges = ranges_of(accept)
    if not ranges:
        return Form.JSON
    best: int | Form = Form.NONE
    quality = _best(ranges, JSON_TYPE).quality
    if quality > 0:
        best = Form.JSON
    is_json = True
    places: dict[str, int] = {}
    for place, content_type in enumerate(content_types):
        # Of outputs of one type the first counts.
        places.setdefault(content_type, place)
    for content_type, place in places.items():
        found = _best(ranges, content_type.partition(";")[0].strip().lower())
        if found.quality > quality or (is_json and 0 < found.quality == quality and found.width < 2):
            best, quality, is_json = place, found.quality, False
    return best


def _best(ranges: Sequence[MediaRange], content_type: str) -> MediaRange:
    """Return the most exact range of a type, which tells its quality; one of quality 0 if there is none."""
    fitting = [each for each in ranges if each.fits(content_type)]
    return min(fitting, key=lambda each: each.width, default=MediaRange("*", "*", 0.0))
