"""The input, output and temp folders: names, counters, uploads (folder_paths.py, nodes.py, server.py)."""

from __future__ import annotations

import copy
import hashlib
import mimetypes
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gateway.comfy import json_codec

KINDS = ("input", "output", "temp")
# The letters of ComfyUI's marks (nodes.py, PreviewImage): all but one.
_MARK_LETTERS = "abcdefghijklmnopqrstuvxyz"
_AUDIO = frozenset({"audio", "video"})
_MODELS_3D = frozenset(".gltf .glb .obj .fbx .stl .spz .splat .ply .ksplat".split())


class OutsideFolder(ValueError):
    """A name that leads out of its folder."""


@dataclass(slots=True)
class Files:
    """The folders of one simulated ComfyUI."""

    base: Path

    def __post_init__(self) -> None:
        self.base = self.base.absolute()
        for kind in (*KINDS, "user/default", "datasets"):
            (self.base / kind).mkdir(parents=True, exist_ok=True)

    def folder(self, kind: str) -> Path:
        """Return a folder by its type."""
        return self.base / kind

    @property
    def datasets(self) -> Path:
        """Return the folder of training datasets, which is no output folder (nodes_dataset.py)."""
        return self.base / "datasets"

    def inputs(self) -> list[str]:
        """Return the files that LoadImage lists."""
        return sorted(entry.name for entry in self.folder("input").iterdir() if entry.is_file())

    def listed_in(self, object_info: dict[str, Any]) -> dict[str, Any]:
        """Return the node classes, with the input files that there are at this moment."""
        info = dict(object_info)
        for (node_class, name), choices in self._lists().items():
            if node_class in info:
                info[node_class] = copy.deepcopy(info[node_class])
                spec = info[node_class]["input"]["required"][name]
                if isinstance(spec[0], list):
                    spec[0] = choices()
                else:
                    spec[1]["options"] = choices()
        return info

    def _lists(self) -> dict[tuple[str, str], Callable[[], list[str]]]:
        """Return the inputs that list files or folders, each with the function that lists them."""
        return {
            ("LoadImage", "image"): self.inputs,
            ("LoadImageMask", "image"): self.inputs,
            ("PickNode", "picture"): self.inputs,
            ("LoadAudio", "audio"): lambda: self._media(_AUDIO),
            ("LoadVideo", "file"): lambda: self._media(frozenset({"video"})),
            ("Load3D", "model_file"): self._models,
            ("LoadImageDataSetFromFolder", "folder"): self._folders,
            ("LoadImageTextDataSetFromFolder", "folder"): self._folders,
            ("LoadTrainingDataset", "folder_name"): self._datasets,
        }

    def _media(self, kinds: frozenset[str]) -> list[str]:
        return [name for name in self.inputs() if (mimetypes.guess_type(name)[0] or "").split("/")[0] in kinds]

    def _models(self) -> list[str]:
        root = self.folder("input")
        files = (path for path in (root / "3d").rglob("*") if path.suffix.lower() in _MODELS_3D)
        return ["none", *sorted(path.relative_to(root).as_posix() for path in files)]

    def _folders(self) -> list[str]:
        root = self.folder("input")
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir())

    def _datasets(self) -> list[str]:
        found = (path.parent for path in self.datasets.rglob("metadata.json"))
        return sorted(path.relative_to(self.datasets).as_posix() for path in found)

    def within(self, root: Path, name: str) -> Path:
        """Return a path below `root`.

        Raises:
            OutsideFolder: the path is not below it.
        """
        path = Path(os.path.abspath(root / name))
        if root.resolve() not in (path, *path.parents) and root not in (path, *path.parents):
            raise OutsideFolder(name)
        return path

    def annotated(self, name: str, default: str) -> tuple[str, str]:
        """Return a name and its folder: ``pic.png [output]`` has both (folder_paths.py, annotated_filepath)."""
        for kind in KINDS:
            if name.endswith(f"[{kind}]"):
                return name[: -len(kind) - 3], kind
        return name, default

    def path_of(self, name: str, default: str = "input") -> Path:
        """Return the path of the file that an input's value names.

        Raises:
            OutsideFolder: the path leads out of its folder.
        """
        plain, kind = self.annotated(name, default)
        return self.within(self.folder(kind), plain)

    def open_image(self, name: str) -> Image.Image:
        """Return an image, read whole."""
        with Image.open(self.path_of(name)) as image:
            image.load()
            return image.copy()

    def save_images(
        self,
        images: Sequence[Image.Image],
        prefix: str,
        prompt: dict[str, Any],
        extra_data: dict[str, Any],
        temp_mark: str = "",
    ) -> list[dict[str, str]]:
        """Save a batch with ComfyUI's names and counters, the prompt in the PNG's text chunks (nodes.py, SaveImage).

        With a `temp_mark` the images are previews.
        """
        kind = "temp" if temp_mark else "output"
        prefix = f"{prefix}_temp_{temp_mark}" if temp_mark else prefix
        folder, filename, counter, subfolder = self.place(kind, prefix, images[0].size)
        info = PngInfo()
        info.add_text("prompt", json_codec.dumps(prompt).decode())
        for key, value in (extra_data.get("extra_pnginfo") or {}).items():
            info.add_text(key, json_codec.dumps(value).decode())
        saved = []
        for number, image in enumerate(images):
            name = f"{filename.replace('%batch_num%', str(number))}_{counter + number:05}_.png"
            image.save(folder / name, pnginfo=info, compress_level=1 if temp_mark else 4)
            saved.append({"filename": name, "subfolder": subfolder, "type": kind})
        return saved

    def place(self, kind: str, prefix: str, size: tuple[int, int]) -> tuple[Path, str, int, str]:
        """Return folder, file name, counter and subfolder of a prefix (folder_paths.py, get_save_image_path).

        Raises:
            OutsideFolder: the prefix leads out of its folder.
        """
        for name, value in _variables(size).items():
            prefix = prefix.replace(name, value)
        subfolder, filename = os.path.split(os.path.normpath(prefix))
        folder = self.within(self.folder(kind), subfolder)
        folder.mkdir(parents=True, exist_ok=True)
        length = len(os.path.basename(prefix))
        taken = [_counter(entry.name, filename, length) for entry in folder.iterdir()]
        return folder, filename, max(taken, default=0) + 1, subfolder

    def upload(self, kind: str, subfolder: str, filename: str, data: bytes, overwrite: bool) -> tuple[str, Path, bool]:
        """Place an upload (server.py, image_upload): (name, path, True if it must be written). Make its folder.

        Raises:
            OutsideFolder: the upload would leave its folder.
        """
        root = self.folder(kind)
        folder = self.within(root, subfolder)
        path = self.within(root, str(Path(subfolder) / filename))
        folder.mkdir(parents=True, exist_ok=True)
        stem, suffix = os.path.splitext(filename)
        name, attempt = filename, 1
        while not overwrite and path.exists():
            if hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(data).digest():
                return name, path, False
            name = f"{stem} ({attempt}){suffix}"
            path = folder / name
            attempt += 1
        return name, path, True


def _variables(size: tuple[int, int]) -> dict[str, str]:
    now = time.localtime()
    return {
        "%width%": str(size[0]),
        "%height%": str(size[1]),
        "%year%": str(now.tm_year),
        "%month%": f"{now.tm_mon:02}",
        "%day%": f"{now.tm_mday:02}",
        "%hour%": f"{now.tm_hour:02}",
        "%minute%": f"{now.tm_min:02}",
        "%second%": f"{now.tm_sec:02}",
    }


def _counter(name: str, prefix: str, length: int) -> int:
    """Return the counter in a file's name; 0 if the name is not of this prefix (folder_paths.py, get_save_image_path).

    ComfyUI takes the prefix's length before it makes a normal path of it. So ``a/`` always counts from 1 and replaces
    the files of the prefix ``a``.
    """
    if name[: length + 1] != f"{prefix}_":
        return 0
    digits = name[length + 1 :].split(".")[0].split("_")[0]
    return int(digits) if digits.isdecimal() else 0


def temp_mark(source: random.Random) -> str:
    """Return the five letters in the names of temporary files."""
    return "".join(source.choice(_MARK_LETTERS) for _ in range(5))
