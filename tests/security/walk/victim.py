"""The tenant whose files and prompts must not come back: her uploads, outputs and previews, and a file of the host."""

from __future__ import annotations

import hashlib
import io
import random
import wave
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from gateway.comfy.graph import MODEL_SUFFIXES
from gateway.comfy.name_checks import MODEL_FOLDERS
from tests.security.walk.attacks import Targets, node
from tests.security.walk.verdict import CELLS, Picture, Secrets
from tests.support.comfy_client import Comfy

# Playlists by kind and name: suffixes that make loaders take one for their own kind of file.
_PLAYLISTS = (
    ("concat", "concat.mp4"),
    ("concat", "concat.png"),
    ("concat", "concat.wav"),
    ("concat", "annas/concat.mp4"),
    ("below", "below.mp4"),
    ("m3u8", "list.mp4"),
    ("m3u8", "list.m3u8"),
    ("host", "host.mp4"),
)
_RATE = 8000


@dataclass(slots=True)
class Victim:
    """The victim's tenant, with what was made for it."""

    comfy: Comfy
    object_info: Mapping[str, Any]
    source: random.Random
    secrets: Secrets = field(default_factory=Secrets)
    _made: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def word(self, kind: str) -> str:
        """Return a word that only the victim writes."""
        made = "".join(self.source.choice("bcdfghjklmnpqrstvwxz") for _ in range(14))
        self.secrets.words[made] = kind
        return made

    def picture(self, name: str) -> bytes:
        """Return a new picture; the walk looks for it from now on."""
        colours = [self._colour(), self._colour()]
        code = tuple(self.source.randrange(2) for _ in range(CELLS * CELLS))
        made = Picture(name, (colours[0], colours[1]), code)
        self.secrets.pictures.append(made)
        return made.png()

    def _colour(self) -> tuple[int, int, int]:
        red, green, blue = (self.source.randrange(20, 236) for _ in range(3))
        return red, green, blue

    def sound(self, name: str) -> bytes:
        """Return a sound of one value; the walk looks for the value as tensors are printed."""
        level = self.source.randrange(4000, 28000)
        self.secrets.numbers[", ".join([f"{level / 32768:.4f}"] * 3)] = name
        return _wav(level)

    async def make(self, marker: Path, base: str) -> Targets:
        """Make all files and prompts; return the names that the attacker may know."""
        await upload(self.comfy, self.picture("upload"), "annas_00000.png")
        await upload(self.comfy, self.picture("sub"), "pic.png", "annas")
        await upload(self.comfy, self.word("file").encode(), "pic.txt", "annas")
        await upload(self.comfy, self.picture("numeric"), "1234567")
        await upload(self.comfy, self.picture("accented"), "ännä.png")
        await upload(self.comfy, self.sound("audio"), "anna.wav")
        model = f"# {self.word('file')}\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
        await upload(self.comfy, model.encode(), "anna.obj", "3d")
        unsent = f"{self.word('name')}.png"
        await upload(self.comfy, self.picture("unsent"), unsent)
        await upload(self.comfy, self.picture("unsent in a folder"), "x.png", self.word("name"))
        self._mark_host(marker)
        output = await self._saved("output", "SaveImage", "annao")
        output_sub = await self._saved("output in a folder", "SaveImage", "annas/annao")
        await self._saved("numbered output", "SaveImage", "annab0")
        await self._saved("unsent output", "SaveImage", f"{self.word('name')}/{self.word('name')}")
        temp = await self._saved("temp", "PreviewImage", "")
        await self._say()
        return Targets(
            upload="annas_00000.png",
            sub="annas/pic.png",
            numeric="1234567",
            accented="ännä.png",
            audio="anna.wav",
            model="3d/anna.obj",
            output=output,
            output_sub=output_sub,
            temp=temp,
            audio_output=await self._saved_sound(),
            folder="annas",
            marker=str(marker),
            base=base,
            overwritten="annas",
            own_image="bens.png",
            replaced=("annao/", "annao/.", "annao/x/..", "annas/annao//", "annab%batch_num%"),
        )

    def _mark_host(self, marker: Path) -> None:
        marker.parent.mkdir()
        marker.write_text(f"{self.word('marker')} " * 10)
        marker.with_suffix(".png").write_bytes(self.picture("host"))

    async def _run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        prompt_id = await self.comfy.prompt(prompt)
        self.secrets.words[prompt_id] = "id"
        return await self.comfy.entry(prompt_id)

    async def _saved(self, name: str, class_type: str, prefix: str) -> str:
        """Save a picture of its own that no upload under a known name has; return the file's name with its folder."""
        source = f"{self.word('name')}.png"
        await upload(self.comfy, self.picture(name), source)
        inputs: dict[str, Any] = {"images": ["1", 0]} | ({"filename_prefix": prefix} if prefix else {})
        entry = await self._run({"1": node("LoadImage", image=source), "2": node(class_type, **inputs)})
        (image,) = self.comfy.images(entry)
        self._made.append((image, await self.comfy.view(image)))
        return "/".join(filter(None, (image["subfolder"], image["filename"])))

    async def lost(self) -> list[str]:
        """Return the names of its outputs and previews that it can't read any more, or that are others now."""
        names = []
        for image, data in self._made:
            async with self.comfy.http.get(
                f"{self.comfy.url}/view", params=image, headers=self.comfy.headers
            ) as answer:
                if answer.status != 200 or await answer.read() != data:
                    names.append(image["filename"])
        return names

    async def _saved_sound(self) -> str:
        """Save a sound; return its name, or one that it would have."""
        source = f"{self.word('name')}.wav"
        await upload(self.comfy, self.sound("audio output"), source)
        if "SaveAudio" in self.object_info:
            saver = node("SaveAudio", audio=["1", 0], filename_prefix="annaa")
            entry = await self._run({"1": node("LoadAudio", audio=source), "2": saver})
            for file in entry["outputs"].get("2", {}).get("audio", ()):
                return str(file["filename"])
        return "annaa_00001.flac"

    async def _say(self) -> None:
        """Run a prompt with a word in it, and one that has failed."""
        says = {"1": node("PrimitiveString", value=self.word("prompt")), "2": node("PreviewAny", source=["1", 0])}
        await self._run(says)
        if "SaveText" in self.object_info:
            text = node("PrimitiveString", value=self.word("prompt"))
            await self._run({"1": text, "2": node("SaveText", text=["1", 0], filename_prefix="annat", format="txt")})


async def upload(comfy: Comfy, data: bytes, filename: str, subfolder: str = "") -> int:
    """Upload a file; return the status."""
    form = aiohttp.FormData({"overwrite": "true", "subfolder": subfolder})
    form.add_field("image", data, filename=filename)
    async with comfy.http.post(f"{comfy.url}/upload/image", data=form, headers=comfy.headers) as answer:
        await answer.read()
        return answer.status


async def attackers_files(comfy: Comfy, targets: Targets, base: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Upload the attacker's own files: what fills inputs validly, and playlists that name the victim's files."""
    with io.BytesIO() as buffer:
        Image.new("RGB", (64, 64), (250, 250, 250)).save(buffer, "PNG")
        await upload(comfy, buffer.getvalue(), targets.own_image)
    await upload(comfy, _wav(1), "bens.wav")
    image = targets.own_image
    widget = {"image": image, "mask": image, "normal": image, "recording": "", "camera_info": None}
    texts = _playlists(targets, base)
    for kind, name in _PLAYLISTS:
        folder, _, filename = name.rpartition("/")
        # What a tenant may not upload it may still name.
        await upload(comfy, texts[kind].encode(), filename, folder)
    own = {"WEBCAM": image, "AUDIO_RECORD": "bens.wav", "LOAD_3D": widget}
    return own, tuple(name for _, name in _PLAYLISTS)


def _playlists(targets: Targets, base: str) -> dict[str, str]:
    root = f"{base}/input" if base else ".."
    return {
        "concat": f"ffconcat version 1.0\nfile '{targets.upload}'\nduration 1\n",
        "below": f"ffconcat version 1.0\nfile '{targets.sub}'\nduration 1\n",
        "m3u8": f"#EXTM3U\n#EXTINF:1,\n../input/{targets.upload}\n#EXTINF:1,\n{root}/{targets.sub}\n#EXT-X-ENDLIST\n",
        "host": f"#EXTM3U\n#EXTINF:1,\n{targets.marker.rsplit('.', 1)[0]}.png\n#EXT-X-ENDLIST\n",
    }


def _wav(level: int) -> bytes:
    with io.BytesIO() as buffer:
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, _RATE, 0, "NONE", ""))
            file.writeframes(level.to_bytes(2, "little", signed=True) * (_RATE // 4))
        return buffer.getvalue()


@dataclass(slots=True)
class Disk:
    """ComfyUI's base directory and the host's folder beside it, as they were before the walk."""

    base: Path | None
    marker: Path
    _files: dict[Path, bytes] = field(default_factory=dict)
    _written: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        kept = [self.marker, self.marker.with_suffix(".png")]
        for kind in ("input", "output", "temp") if self.base is not None else ():
            kept += [path for path in (self.base / kind).rglob("*") if path.is_file()]  # type: ignore[operator]
        self._files = {path: hashlib.sha256(path.read_bytes()).digest() for path in kept}

    @property
    def names(self) -> set[str]:
        """Return the names of the files."""
        return {path.name for path in self._files}

    def changed(self) -> list[Path]:
        """Return the victim's and the host's files that are gone, or are others now; each once."""
        found = []
        for path, digest in list(self._files.items()):
            if not path.is_file() or hashlib.sha256(path.read_bytes()).digest() != digest:
                found.append(path)
                del self._files[path]
        return found

    def written(self, mark: str) -> list[Path]:
        """Return files outside output/ and temp/ whose names have the mark; each once."""
        found = list(self.marker.parent.rglob(f"*{mark}*"))
        if self.base is not None:
            free = {self.base / "output", self.base / "temp"}
            found += [path for path in self.base.rglob(f"*{mark}*") if not free & set(path.parents)]
            found += self.base.parent.glob(f"*{mark}*")
            # Models that are saved below output/ are listed for all. Other files there are listed to nobody.
            inside = (path for folder in MODEL_FOLDERS for path in (self.base / "output" / folder).rglob(f"*{mark}*"))
            found += [path for path in inside if path.suffix in MODEL_SUFFIXES]
        new = [path for path in found if path not in self._written]
        self._written |= set(new)
        return new
