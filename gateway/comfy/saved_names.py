"""Names of the files that savers write: a prefix, a number that counts up, and the rest. Pure.

ComfyUI looks for the highest number of one prefix in one folder, whatever follows the number, and counts on
(folder_paths.py, get_save_image_path). On Windows it takes prefixes that differ in case for one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The last number of five digits or more that "_" or "." follows, as ComfyUI counts, or "-audio." as VHS_VideoCombine
# does. Longer ones are no counters, and cost Python much time to read.
_COUNTED = re.compile(r"(?P<prefix>.*)_(?P<number>[0-9]{5,18})(?P<tail>(?:[_.].*|-[a-z]+\..*)?)", re.DOTALL)
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Saved:
    """The parts of a saved file's name.

    Attributes:
        prefix: all before the number, without the "_" between them.
        number: the number, which has `digits` digits, zeros before it included.
        tail: all behind the number: "_.png", ".glb".
    """

    prefix: str
    number: int
    tail: str
    digits: int = _DIGITS

    @property
    def filename(self) -> str:
        """Return the name that has these parts."""
        return f"{self.prefix}_{self.number:0{self.digits}}{self.tail}"


def saved(filename: str) -> Saved | None:
    """Return the parts of a file's name, None if it holds no number that a saver counts up."""
    match = _COUNTED.fullmatch(filename)
    if match is None:
        return None
    number = match["number"]
    # A number that starts with zeros is as long as it is made to be. Any other may only be a large one.
    digits = len(number) if number.startswith("0") else _DIGITS
    return Saved(match["prefix"], int(number), match["tail"], digits)


def counted(filename: str, number: int) -> str | None:
    """Return a file's name with another number, of as many digits if that is possible; None if it holds none."""
    parts = saved(filename)
    return None if parts is None else Saved(parts.prefix, number, parts.tail, parts.digits).filename
