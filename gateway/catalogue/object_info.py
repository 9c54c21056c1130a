"""The merged /object_info, encoded once, with each tenant's own uploads in the lists that offer files. Pure."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.catalogue import merging
from gateway.catalogue.capabilities import FILE_INPUTS, UPLOAD_FLAGS, Capabilities, choice_lists, compare
from gateway.catalogue.class_profiles import Profiles, make_profiles
from gateway.catalogue.worker import Stopped, no_rest
from gateway.comfy import json_codec
from gateway.comfy.file_refs import MODELS_3D, FileRef
from gateway.comfy.graph import FOLDER_INPUTS
from gateway.comfy.node_review import review

_MEDIA = {"image_upload": ("image",), "video_upload": ("video",), "audio_upload": ("audio", "video")}


@dataclass(frozen=True, slots=True)
class FileList:
    """A list that offers files: of a node class's input, with the option that says which kind of file."""

    node_class: str
    input_name: str
    flag: str
    choices: tuple[Any, ...]

    def offered(self, uploads: Iterable[FileRef]) -> list[Any]:
        """Return the choices with a tenant's uploads, sorted as ComfyUI lists a folder (nodes.py, LoadImage)."""
        own = {name for ref in uploads if (name := _offer(self.flag, ref)) is not None}
        if not own:
            return list(self.choices)
        # Not a set, because its order is lost: what is sorted already takes a tenth of the time.
        return sorted(dict.fromkeys([*(choice for choice in self.choices if isinstance(choice, str)), *own]))


def _offer(flag: str, ref: FileRef) -> str | None:
    """Return an upload's name in a list; None if the list does not offer it."""
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
class MergedCatalogue:
    """One merged /object_info: parsed, with the differences between backends, and encoded parts between the file lists.

    Attributes:
        mark: an object of this catalogue alone. An object that outlives the catalogue holds this mark, not all of it.
    """

    classes: Mapping[str, Any]
    capabilities: Capabilities
    profiles: Profiles
    file_lists: tuple[FileList, ...]
    parts: tuple[bytes, ...]
    mark: object = field(default_factory=object, compare=False)

    def body(self, uploads: Sequence[FileRef]) -> Body:
        """Return the whole, encoded for a tenant with these uploads."""
        lists = [json_codec.dumps(file_list.offered(uploads)) for file_list in self.file_lists]
        pieces = [self.parts[0]]
        for listed, part in zip(lists, self.parts[1:], strict=True):
            pieces += (listed, part)
        plain = b"".join(pieces)
        etag = f'"{hashlib.sha256(plain).hexdigest()[:32]}"'
        return Body(plain, gzip.compress(plain, 6, mtime=0), etag)

    def node_class(self, name: str, uploads: Sequence[FileRef]) -> Any:
        """Return a class as a tenant with these uploads sees it; None if there is no class of that name."""
        description = self.classes.get(name)
        for file_list in self.file_lists:
            if file_list.node_class == name:
                description = with_list(description, file_list.input_name, file_list.offered(uploads))
        return description


def make_view(
    infos: Mapping[str, Mapping[str, Any]], is_upload: Callable[[FileRef], bool], rest: Callable[[], None] = no_rest
) -> MergedCatalogue:
    """Merge descriptions, the first backend's first; leave out capabilities and profiles, by which prompts are judged.

    `is_upload` tells the files that the gateway put on a backend. Only their own tenants see them, under their own
    names. `rest` is called between classes.
    """
    merged = merging.object_info(list(infos.values()), rest)
    encoder = _Encoder()
    for name, description in merged.items():
        rest()
        shown = description
        marks: dict[str, FileList] = {}
        for input_name, options, choices in choice_lists(description):
            flag = _flag_of(name, input_name, options) or _flag_by(choices, is_upload)
            if flag is not None:
                left = tuple(choice for choice in choices if not _is_placed(choice, flag, is_upload))
                marks[input_name] = FileList(name, input_name, flag, left)
                shown = with_list(shown, input_name, list(left))
        encoder.add(name, shown, marks)
        merged[name] = shown
    return MergedCatalogue(merged, Capabilities(), Profiles(), tuple(encoder.lists), encoder.parts())


def merge_catalogue(
    infos: Mapping[str, Mapping[str, Any]],
    is_upload: Callable[[FileRef], bool],
    known: Profiles | None = None,
    rest: Callable[[], None] = no_rest,
) -> MergedCatalogue:
    """Merge descriptions, as `make_view` does, and add capabilities and profiles, by which prompts are judged.

    `known` are the profiles of an earlier merged catalogue.
    """
    view = make_view(infos, is_upload, rest)
    return replace(view, capabilities=compare(infos, rest), profiles=make_profiles(infos, review(), known, rest))


Make = Callable[[Mapping[str, Mapping[str, Any]], Callable[[FileRef], bool]], MergedCatalogue]


def merge_sound_parts(
    infos: Mapping[str, Mapping[str, Any]], is_upload: Callable[[FileRef], bool], make: Make = merge_catalogue
) -> tuple[MergedCatalogue, Mapping[str, Exception]]:
    """Merge descriptions, but leave out backends that can't be merged; return these with their exceptions.

    Their descriptions were read with care. If the merge raises all the same, the fault is the gateway's: the other
    backends must not pay for it.

    Raises:
        Stopped: the merged catalogue is not wanted any more.
    """
    # If any exception comes, merge them one by one, because it does not tell whose description it comes of.
    try:
        return make(infos, is_upload), {}
    except Stopped:
        raise
    except Exception:  # noqa: BLE001, S110
        pass
    sound: dict[str, Mapping[str, Any]] = {}
    broken: dict[str, Exception] = {}
    for name, info in infos.items():
        try:
            make({**sound, name: info}, is_upload)
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001
            # If any exception comes now, leave this backend out, because those before it were merged without one.
            broken[name] = error
        else:
            sound[name] = info
    return make(sound, is_upload), broken


class _Encoder:
    """Encodes a catalogue class by class, in parts between the lists of files.

    Attributes:
        lists: the lists of files, in the order of the bytes: a custom node may describe its optional inputs before its
            required ones.
    """

    def __init__(self) -> None:
        # If a mark could be guessed, a backend could write one into its own lists, and the body would be cut there.
        self._token = secrets.token_hex(16)
        self._marked = re.compile(rb'\["file-list-%s-(\d+)"\]' % self._token.encode())
        self._parts: list[bytes] = []
        self._pieces: list[bytes] = []
        self.lists: list[FileList] = []

    def add(self, name: str, description: Any, lists: Mapping[str, FileList]) -> None:
        """Add a class with its lists of files, by their inputs' names."""
        listed = list(lists.values())
        for place, each in enumerate(listed):
            description = with_list(description, each.input_name, [f"file-list-{self._token}-{place}"])
        self._pieces += (b"," if self._pieces or self._parts else b"{", json_codec.dumps(name), b":")
        encoded = json_codec.dumps(description)
        found: list[bytes] = self._marked.split(encoded) if listed else [encoded]
        self._pieces.append(found[0])
        for number, behind in zip(found[1::2], found[2::2], strict=True):
            self.lists.append(listed[int(number)])
            self._parts.append(b"".join(self._pieces))
            self._pieces = [behind]

    def parts(self) -> tuple[bytes, ...]:
        """Return the parts: one before each list, and one behind the last."""
        opened = [] if self._pieces or self._parts else [b"{"]
        # One join, because it gives the interpreter back, which putting two long pieces together does not.
        return (*self._parts, b"".join([*opened, *self._pieces, b"}"]))


def _flag_of(node_class: str, input_name: str, options: Mapping[str, Any]) -> str | None:
    """Return the kind of file that a list offers; None if its class does not say so."""
    if (node_class, input_name) in FOLDER_INPUTS:
        return "folder"
    if FILE_INPUTS.get(node_class) == input_name:
        return "latent"
    return next((flag for flag in UPLOAD_FLAGS if options.get(flag)), None)


def _flag_by(choices: Iterable[Any], is_upload: Callable[[FileRef], bool]) -> str | None:
    """Return the kind of file of a list that does not say it, but has uploads: a custom node's, of the input folder.

    Judge by media alone, because an upload named like a sampler or a model must take neither from anybody's list.
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


def with_list(description: Any, input_name: str, choices: list[Any]) -> Any:
    """Return a copy of a class's description with other choices for an input."""
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
