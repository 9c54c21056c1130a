"""Values that nodes hand to each other. As ComfyUI's own, they have methods that open and write files.

Format fields and expressions of the stock classes reach these methods, and through `Video.save_to` this module's
globals and so all of the process (comfy_extras/nodes_string.py, comfy_extras/nodes_math.py).
"""

from __future__ import annotations

import io
import os
import wave
from collections import UserList
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

# A playlist may name a playlist.
MAX_PLAYLISTS = 5
MAX_SHOWN_SAMPLES = 8
# A pixel of an image is three floats of 32 bits, of a mask one.
_CHANNEL_BYTES = 4


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a node: its outputs, and the data for the UI."""

    outputs: tuple[Any, ...]
    ui: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ModelPart:
    """MODEL, CLIP or VAE: a part of the weights in a model file. `kind` tells which."""

    kind: str
    name: str


class Storage:
    """Bytes, as torch.UntypedStorage."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = data

    def from_file(self, filename: str, _shared: bool = False, nbytes: int = 0) -> Storage:
        """Return the first bytes of any file of the host, zeros behind its end."""
        with Path(filename).open("rb") as file:
            return Storage(file.read(nbytes).ljust(nbytes, b"\0"))

    def tolist(self) -> list[int]:
        """Return the bytes as numbers."""
        return list(self._data)


class Tensor:
    """The methods of a torch.Tensor that expressions can reach."""

    def untyped_storage(self) -> Storage:
        """Return the bytes below it; none, since expressions use it to reach `Storage.from_file` alone."""
        return Storage()


class Images(UserList[Image.Image], Tensor):
    """A batch of images, as a tensor [batch, height, width, channels]."""

    def __repr__(self) -> str:
        shown = [image.convert("RGB").getpixel((0, 0)) for image in self[:MAX_SHOWN_SAMPLES]]
        pixels = ", ".join(f"[{part / 255:.4f}]" for pixel in shown if isinstance(pixel, tuple) for part in pixel)
        return f"tensor([{pixels}])"


class Samples(UserList[float], Tensor):
    """A waveform, as a tensor [batch, channels, samples]."""

    def __repr__(self) -> str:
        return f"tensor([[[{', '.join(f'{sample:.4f}' for sample in self[:MAX_SHOWN_SAMPLES])}]]])"


def load_audio(path: Path) -> dict[str, Any]:
    """Return the AUDIO in a WAV file of 16 bits, the only format here.

    Raises:
        ValueError: it is no such file.
    """
    try:
        with wave.open(str(path), "rb") as file:
            frames, rate = file.readframes(file.getnframes()), file.getframerate()
    except (wave.Error, EOFError):
        raise ValueError(f"[Errno 1094995529] Invalid data found when processing input: '{path}'") from None
    samples = (int.from_bytes(frames[n : n + 2], "little", signed=True) for n in range(0, len(frames) - 1, 2))
    return {"waveform": Samples(sample / 32768 for sample in samples), "sample_rate": rate}


class Video:
    """A VIDEO: of frames, or a file that is read when its frames are needed."""

    def __init__(self, frames: Images | None = None, path: Path | None = None, fps: float = 30.0) -> None:
        self.frames = frames
        self.path = path
        self.fps = fps

    def get_components(self) -> Images:
        """Return the frames.

        Raises:
            ValueError: the file is neither an image nor a playlist of one.
        """
        return self.frames if self.frames is not None else _play(self.path or Path(), MAX_PLAYLISTS)

    def save_to(self, path: str) -> None:
        """Write the first frame to any path of the host."""
        with io.BytesIO() as buffer:
            self.get_components()[0].save(buffer, "PNG")
            Path(os.fspath(path)).write_bytes(buffer.getvalue())


def _play(path: Path, playlists: int) -> Images:
    """Return the frames of a file, as FFmpeg: an ffconcat or m3u8 file plays others, whatever its suffix is."""
    data = path.read_bytes()
    lines = data.decode("utf-8", "replace").splitlines() if playlists else []
    named: list[Path] = []
    if data.startswith(b"ffconcat"):
        names = [line.split(None, 1)[1].strip().strip("'") for line in lines if line.startswith("file ")]
        # FFmpeg's concat demuxer is safe by default: relative, and no folder further up.
        named = [path.parent / name for name in names if not name.startswith("/") and ".." not in name.split("/")]
    elif data.startswith(b"#EXTM3U"):
        named = [path.parent / line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if named:
        return Images(frame for each in named for frame in _play(each, playlists - 1))
    try:
        with Image.open(io.BytesIO(data)) as image:
            return Images([image.convert("RGB")])
    except OSError:
        raise ValueError(f"[Errno 1094995529] Invalid data found when processing input: '{path}'") from None


class File3D:
    """A FILE_3D: a model's file."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def get_bytes(self) -> bytes:
        """Return the file's bytes."""
        return self.source.read_bytes()

    def save_to(self, path: str) -> str:
        """Write the file's bytes to any path of the host."""
        Path(path).write_bytes(self.get_bytes())
        return path

    def __repr__(self) -> str:
        return f"File3D(source='{self.source}', format='{self.source.suffix.removeprefix('.')}')"


def pictures_of(value: Any) -> dict[int, float]:
    """Return the bytes that pictures take as tensors in RAM, by the picture's identity. Objects are not looked into."""
    if isinstance(value, Image.Image):
        channels = 1 if value.mode == "L" else 3
        return {id(value): float(value.width * value.height * channels * _CHANNEL_BYTES)}
    found: dict[int, float] = {}
    for item in value if isinstance(value, (list, tuple, Images)) else ():
        found.update(pictures_of(item))
    return found


def models_of(value: Any) -> set[ModelPart]:
    """Return the parts of models in a value."""
    if isinstance(value, ModelPart):
        return {value}
    return {part for item in value for part in models_of(item)} if isinstance(value, (list, tuple)) else set()
