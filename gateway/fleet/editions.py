"""The merged /object_info, encoded once, with each tenant's own uploads in the lists that offer files. Pure."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import mimetypes
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.comfy import wire
from gateway.comfy.graph import FOLDER_INPUTS
from gateway.comfy.node_review import review
from gateway.comfy.outputs import MODELS_3D, FileRef
from gateway.fleet import merging
from gateway.fleet.abilities import FILE_INPUTS, UPLOAD_FLAGS, Abilities, choice_lists, compare
from gateway.fleet.profiles import Profiles, make_profiles

_MEDIA = {"image_upload": ("image",), "video_upload": ("video",), "audio_upload": ("audio", "video")}


@dataclass(frozen=True, slots=True)
class FileList:
    """A list that offers files: of a node class's input, with the option that says which kind of file."""

    node_class: str
    input_name: str
    flag: str
    choices: tuple[Any, ...]

    def offered(self, uploads: Iterable[FileRef]) -> list[Any]:
        """The choices with a tenant's uploads, sorted as ComfyUI lists a folder (nodes.py, LoadImage)."""
        own = {name for ref in uploads if (name := _offer(self.flag, ref)) is not None}
        if not own:
            return list(self.choices)
        return sorted(own.union(choice for choice in self.choices if isinstance(choice, str)))


def _offer(flag: str, ref: FileRef) -> str | None:
    """What an upload is called in a list, if the list offers it."""
    if ref.kind != "input":
        return None
    if flag == "folder":
        return ref.subfolder or None
    if flag == "latent":
        return ref.filename if not ref.subfolder and ref.filename.endswith(".latent") else None
    if flag == "file_upload":
        is_model = ref.subfolder == "3d" and ref.filename.lower().endswith(MODELS_3D)
        return f"3d/{ref.filename}" if is_model else None
    media = (mimetypes.guess_type(ref.filename)[0] or "").partition("/")[0]
    return ref.filename if not ref.subfolder and media in _MEDIA[flag] else None


@dataclass(frozen=True, slots=True)
class Body:
    """An encoded /object_info: plain, compressed, and its ETag."""

    plain: bytes
    compressed: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Edition:
    """One merged /object_info: parsed, what differs between backends, and its encoded parts between the file lists."""

    classes: Mapping[str, Any]
    abilities: Abilities
    profiles: Profiles
    file_lists: tuple[FileList, ...]
    parts: tuple[bytes, ...]

    def body(self, uploads: Sequence[FileRef]) -> Body:
        """The encoded whole, as it is for a tenant with these uploads."""
        lists = [wire.dumps(file_list.offered(uploads)) for file_list in self.file_lists]
        pieces = [self.parts[0]]
        for listed, part in zip(lists, self.parts[1:], strict=True):
            pieces += (listed, part)
        plain = b"".join(pieces)
        etag = f'"{hashlib.sha256(plain).hexdigest()[:32]}"'
        return Body(plain, gzip.compress(plain, 6, mtime=0), etag)

    def node_class(self, name: str, uploads: Sequence[FileRef]) -> Any:
        """One class as it is for a tenant with these uploads; None if there is none of that name."""
        description = self.classes.get(name)
        for file_list in self.file_lists:
            if file_list.node_class == name:
                description = with_list(description, file_list.input_name, file_list.offered(uploads))
        return description


def make_edition(infos: Mapping[str, Mapping[str, Any]], is_upload: Callable[[FileRef], bool]) -> Edition:
    """Merge what backends say, the first one's words first.

    `is_upload` tells the files that the gateway put on a backend: they are shown to those whose they are, under the
    names that those know.
    """
    merged = merging.object_info(list(infos.values()))
    file_lists: list[FileList] = []
    # If a mark could be guessed, a backend could write one into its own lists, and the body would be cut there.
    token = secrets.token_hex(16)
    marked = dict(merged)
    for name, description in merged.items():
        for input_name, options, choices in choice_lists(description):
            flag = _flag_of(name, input_name, options) or _flag_by(choices, is_upload)
            if flag is None:
                continue
            shown = tuple(choice for choice in choices if not _is_placed(choice, flag, is_upload))
            file_lists.append(FileList(name, input_name, flag, shown))
            merged[name] = with_list(merged[name], input_name, list(shown))
            marked[name] = with_list(marked[name], input_name, [_mark(token, len(file_lists) - 1)])
    parts, order = _split(wire.dumps(marked), token)
    return Edition(
        merged, compare(infos), make_profiles(infos, review()), tuple(file_lists[place] for place in order), parts
    )


def make_sound_edition(
    infos: Mapping[str, Mapping[str, Any]], is_upload: Callable[[FileRef], bool]
) -> tuple[Edition, Mapping[str, Exception]]:
    """Merge what backends say, without those that can't be merged; return these with what they raised.

    Their descriptions were read with care. If the merge raises all the same, the fault is the gateway's: the other
    backends must not pay for it.
    """
    # If any exception comes, merge them one by one, because it does not tell whose description it comes of.
    with contextlib.suppress(Exception):
        return make_edition(infos, is_upload), {}
    sound: dict[str, Mapping[str, Any]] = {}
    broken: dict[str, Exception] = {}
    for name, info in infos.items():
        try:
            make_edition({**sound, name: info}, is_upload)
        except Exception as error:  # noqa: BLE001
            # If any exception comes now, leave this backend out, because those before it were merged without one.
            broken[name] = error
        else:
            sound[name] = info
    return make_edition(sound, is_upload), broken


def _flag_of(node_class: str, input_name: str, options: Mapping[str, Any]) -> str | None:
    """Which kind of file a list offers; some do not say so."""
    if (node_class, input_name) in FOLDER_INPUTS:
        return "folder"
    if FILE_INPUTS.get(node_class) == input_name:
        return "latent"
    return next((flag for flag in UPLOAD_FLAGS if options.get(flag)), None)


def _flag_by(choices: Iterable[Any], is_upload: Callable[[FileRef], bool]) -> str | None:
    """The same of a list that does not say so, but has uploads in it: a custom node's, which reads the input folder.

    By media alone: an upload that is called as a sampler is, or a model, must take neither from anybody's list.
    """
    for choice in choices:
        if isinstance(choice, str) and "." in choice[-6:]:
            media = (mimetypes.guess_type(choice)[0] or "").partition("/")[0]
            if f"{media}_upload" in _MEDIA and _is_placed(choice, media, is_upload):
                return f"{media}_upload"
    return None


def _is_placed(choice: Any, flag: str, is_upload: Callable[[FileRef], bool]) -> bool:
    if not isinstance(choice, str):
        return False
    if flag == "folder":
        return is_upload(FileRef("input", choice, ""))
    folder, _, filename = choice.replace("\\", "/").rpartition("/")
    return is_upload(FileRef("input", folder, filename))


def _mark(token: str, place: int) -> str:
    return f"file-list-{token}-{place}"


def _split(encoded: bytes, token: str) -> tuple[tuple[bytes, ...], list[int]]:
    """Cut an encoded catalogue at the marked lists; return the parts between them, and the lists in their order.

    The order is that of the bytes: a custom node may describe its optional inputs before its required ones.
    """
    pieces = re.split(rb'\["file-list-%s-(\d+)"\]' % token.encode(), encoded)
    return tuple(pieces[::2]), [int(place) for place in pieces[1::2]]


def with_list(description: Any, input_name: str, choices: list[Any]) -> Any:
    """A copy of a class's description with other choices for an input."""
    inputs = {}
    for part, named in description["input"].items():
        spec = named.get(input_name) if isinstance(named, dict) else None
        if spec:
            replaced = (
                [choices, *spec[1:]]
                if isinstance(spec[0], list)
                else [spec[0], {**spec[1], "options": choices}, *spec[2:]]
            )
            named = {**named, input_name: replaced}
        inputs[part] = named
    return {**description, "input": inputs}
