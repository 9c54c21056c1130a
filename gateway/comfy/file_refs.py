"""Files as ComfyUI names them, and those in a node's output.

In an output, a file is any object with a ``filename``, however deep and whatever the key above it is called; the name
of another media file in such an object (VHS_VideoCombine's ``workflow``); or the bare name of a 3D model.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode

_T = TypeVar("_T")
MAX_DEPTH = 32
# Items of a list or an object that are looked at in one step.
STEP = 64
MAX_PATH = 1024
# No file system has longer ones.
MAX_NAME = 4096
# Parts at the end of a path that leads out of its folder, of which a file's own path may be made.
_MAX_PARTS = 16
KINDS = ("input", "output", "temp")
MODELS_3D = (".obj", ".fbx", ".gltf", ".glb", ".usdz", ".stl", ".ply", ".splat", ".spz", ".ksplat")
# "pic.png [output]" names the folder too; one character before the bracket goes with it (folder_paths.py,
# annotated_filepath).
ANNOTATED = re.compile(r"^(?P<path>.*).\[(?P<kind>input|output|temp)\]\Z", re.DOTALL)
# Not a name alone: a pattern, or what Windows takes for another name ("C:a.png", "a.png::$DATA", "A~1.PNG").
_PATTERN = re.compile(r"[%*?\[\]{}:]|~(?=[0-9])")
_SIBLING = re.compile(
    r"^[^/\\]+\.(png|jpe?g|webp|gif|mp4|webm|mkv|mov|avi|wav|mp3|flac|ogg|opus|m4a|glb|latent)$", re.I
)


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file as ComfyUI names it: `kind` is its ``type`` (input, output or temp)."""

    kind: str
    subfolder: str
    filename: str


def view_path(ref: FileRef) -> str:
    """Return the path and query that a ComfyUI gives a file for (server.py, view_image)."""
    folder = {"subfolder": ref.subfolder} if ref.subfolder else {}
    return "/view?" + urlencode({"filename": ref.filename, **folder, "type": ref.kind})


# For a file in an output, and whether the prompt made it: the folder and name that it gets.
NewName = Callable[[FileRef, bool], FileRef]


def file_ref(kind: str, subfolder: str, path: str) -> FileRef | None:
    """Return the file at a path below a folder, in its one spelling; None if the path leads out of the folder.

    Return None, too, if no query can carry the path: a NUL, half a surrogate pair. ``\\`` separates as ``/`` does,
    because a backend may run on Windows.
    """
    whole = posixpath.normpath(posixpath.join(subfolder or ".", path).replace("\\", "/"))
    folder, _, filename = whole.rpartition("/")
    if not filename or filename in (".", "..") or whole.startswith(("/", "../")) or not can_be_asked_for(whole):
        return None
    return FileRef(kind, folder, filename)


def leads_to(value: str) -> list[FileRef]:
    """Return the files that a path may mean which leads out of its folder.

    Such are ``../input/pic.png`` and ``/any/input/pic.png``. Nobody tells where a backend's folders lie, so each end of
    the path counts, in each folder.
    """
    match = ANNOTATED.match(value) if len(value) <= MAX_NAME else None
    path = match["path"] if match else value
    if len(path) > MAX_NAME or not can_be_asked_for(path):
        return []
    parts = posixpath.normpath(path.replace("\\", "/")).split("/")
    ends = [parts[place:] for place in range(max(len(parts) - _MAX_PARTS, 0), len(parts))]
    return [FileRef(kind, "/".join(end[:-1]), end[-1]) for end in ends if end[-1] for kind in KINDS]


def is_pattern(ref: FileRef) -> bool:
    """Return True if a file's name may open files of other names.

    PyAV takes it for a pattern, numbered (``%05d``) in all versions, a glob up to FFmpeg 8.0 (libavformat/img2dec.c).
    Windows takes ``:`` for a drive or a stream of a file, and ``~1`` may belong to the short form of a long name.
    """
    return _PATTERN.search(ref.subfolder + ref.filename) is not None


def without_pattern(ref: FileRef) -> FileRef:
    """Return a file's name with ``_`` for each character that may turn it into a pattern."""
    return FileRef(ref.kind, _PATTERN.sub("_", ref.subfolder), _PATTERN.sub("_", ref.filename))


def can_be_asked_for(path: str) -> bool:
    """Return True if a query can carry a path. On Linux a name may be no text: no client can ask for such a file."""
    try:
        return b"\0" not in path.encode()
    except UnicodeEncodeError:
        return False


def ref_of(value: dict[str, Any]) -> FileRef | None:
    """Return the file that an object of an output names; None if it names none."""
    filename = value.get("filename")
    if not isinstance(filename, str) or not 0 < len(filename) <= MAX_NAME:
        return None
    kind, subfolder = value.get("type", "output"), value.get("subfolder", "")
    if not isinstance(kind, str) or not isinstance(subfolder, str) or len(subfolder) > MAX_NAME:
        return None
    return FileRef(kind, folder_of(subfolder), filename)


def folder_of(subfolder: str) -> str:
    """Return a subfolder in its one spelling: empty, or parts joined by ``/``."""
    folder = posixpath.normpath(subfolder.replace("\\", "/")) if subfolder else "."
    return "" if folder == "." else folder


# Under these keys nodes repeat their inputs, and any file may be named there (comfy_api/latest/_ui.py,
# PreviewUI3D; comfy_extras/nodes_curve.py, nodes_bounding_boxes.py, nodes_compositor.py).
_REPEATED = frozenset(
    {"result", "histogram", "input_bboxes", "compositor_inputs", "compositor_bboxes", "camera_info", "model_3d_info"}
)


def rename(value: Any, new_name: NewName) -> Any:
    """Return a copy of an output in which each file has the folder and name that `new_name` gives it.

    Untouched parts are shared. The kind of a file stays. The second argument of `new_name` is False for a file that the
    prompt may only have named.
    """
    return finished(renaming(value, new_name))


def finished(steps: Generator[None, None, _T]) -> _T:
    """Take all steps at once, and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            outcome: _T = end.value
            return outcome


def renaming(
    value: Any, new_name: NewName, depth: int = 0, bare: bool = True, made: bool = True
) -> Generator[None, None, Any]:
    """Rename as `rename` does, in steps that are short.

    With `bare` a list's string may be a file's name. `made` goes to `new_name`.
    """
    if isinstance(value, dict) and depth <= MAX_DEPTH:
        return _renaming_object(value, new_name, depth, made)
    if isinstance(value, list) and depth <= MAX_DEPTH:
        return _renaming_list(value, new_name, depth, bare, made)
    return _leaving(value)


def _leaving(value: Any) -> Generator[None, None, Any]:
    return value
    yield


def _renaming_list(
    value: list[Any], new_name: NewName, depth: int, bare: bool, made: bool
) -> Generator[None, None, list[Any]]:
    yield
    copy = value
    for place, item in enumerate(value):
        if isinstance(item, (dict, list)):
            new = yield from renaming(item, new_name, depth + 1, bare, made)
        elif bare and isinstance(item, str):
            new = _rename_bare(item, new_name)
        else:
            continue
        if new is not item:
            copy = list(value) if copy is value else copy
            copy[place] = new
        if place % STEP == STEP - 1:
            yield
    return copy


def _renaming_object(
    value: dict[str, Any], new_name: NewName, depth: int, made: bool
) -> Generator[None, None, dict[str, Any]]:
    yield
    changed: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, (dict, list)):
            new = yield from renaming(item, new_name, depth + 1, key != "text", made and key not in _REPEATED)
            if new is not item:
                changed[key] = new
    if (ref := ref_of(value)) is not None:
        for place, (key, item) in enumerate(value.items()):
            if key == "filename" or (isinstance(item, str) and _is_sibling(item)):
                old = ref if key == "filename" else FileRef(ref.kind, ref.subfolder, item)
                named = new_name(old, made)
                if named.filename != item:
                    changed[key] = named.filename
                if key == "filename" and named.subfolder != old.subfolder:
                    changed["subfolder"] = named.subfolder
            if place % STEP == STEP - 1:
                yield
    return {**value, **changed} if changed else value


def _is_sibling(item: str) -> bool:
    return len(item) <= MAX_PATH and "." in item and _SIBLING.match(item) is not None


def _rename_bare(item: str, new_name: NewName) -> str:
    """Rename a 3D model, told by its name alone, or its background, ``temp/NAME``.

    See comfy_api/latest/_ui.py, PreviewUI3D.
    """
    if len(item) > MAX_PATH:
        return item
    match = ANNOTATED.match(item)
    path, kind = (match["path"], match["kind"]) if match else (item, "output")
    folder, slash, filename = path.rpartition("/")
    if path.startswith("temp/") and _SIBLING.match(filename):
        kind, subfolder = "temp", folder[5:]
    elif path.lower().endswith(MODELS_3D):
        subfolder = folder
    else:
        return item
    old = FileRef(kind, subfolder, filename)
    new = new_name(old, False)
    if new == old:
        return item
    if new.subfolder != subfolder:
        # What is before the subfolder is "temp/", if anything.
        folder = folder[: len(folder) - len(subfolder)] + new.subfolder
        slash = "/" if folder and not folder.endswith("/") else ""
    return folder + slash + new.filename + item[len(path) :]
