"""A prompt's graph: nodes by id, each with ``class_type`` and ``inputs`` (links are ``[node_id, slot]``)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from gateway.comfy.diffusion_model import diffusion_model
from gateway.comfy.file_refs import ANNOTATED, FileRef, file_ref, folder_of

# "v1.5" is a text: no kind of file is all digits.
_FILE_NAME = re.compile(r"\.(?![0-9]+$)[A-Za-z0-9]{1,8}$")
# Without a path these stand for a whole folder (folder_paths.py, annotated_filepath).
_BARE_KINDS = ("[input]", "[output]", "[temp]")
# Of an object that an input takes, these are files (comfy_extras/nodes_load_3d.py, Load3D.image).
_FILE_KEYS = ("image", "mask", "normal", "recording", "__value__")
# What stands for a file's name that is another node's to say.
LINKED = "(linked)"
# No system opens a longer path: PATH_MAX of Linux.
MAX_NAME = 4_096
# All that tells a model or a file by the end of its name is in so many characters.
_SUFFIX = 13
_NO_NAMES: frozenset[str] = frozenset()
MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft", ".gguf", ".onnx")
# These load all that is in a folder below input (comfy_extras/nodes_dataset.py).
FOLDER_INPUTS = frozenset(
    (f"Load{what}DataSetFromFolder", "folder") for what in ("Image", "ImageText", "Video", "VideoText")
)


@dataclass(frozen=True, slots=True)
class FileInput:
    """An input that may name a file: its place in the graph, its value, and the file that this means.

    `ref` is None if the path leads out of its folder. `declared`: its node class says that this input is a file.
    `path` are the keys and places that lead to the name inside an input that is no plain text. `linked`: another node
    will make the name, so nobody knows it yet. `folder`: all files in there are meant; `ref` has no filename.
    """

    node_id: str
    input_name: str
    value: str
    ref: FileRef | None
    annotated: bool
    declared: bool
    path: tuple[str | int, ...] = ()
    linked: bool = False
    folder: bool = False

    def renamed(self, ref: FileRef) -> str:
        """Return the value that names another file of the same kind."""
        path = f"{ref.subfolder}/{ref.filename}" if ref.subfolder else ref.filename
        return f"{path} [{ref.kind}]" if self.annotated else path


@dataclass(frozen=True, slots=True)
class Survey:
    """Contents of a prompt: each (node_id, class_type), the models it loads, the files it may name.

    `separated` are inputs, as (node_id, name, value), whose value is a model in a subfolder. A backend on another
    platform may list such a model with the other separator. `model` is the file of the diffusion model, `model_node`
    the node that loads it; both are empty if there is none.
    """

    nodes: tuple[tuple[str, str], ...]
    models: frozenset[str]
    files: tuple[FileInput, ...]
    separated: tuple[tuple[str, str, str], ...] = ()
    model: str = ""
    model_node: str = ""


def rename_files(prompt: Mapping[str, Any], files: Iterable[FileInput], renamed: Callable[[FileRef], FileRef]) -> bool:
    """Put other names in place of the files that a prompt names; return True if there was one.

    Args:
        prompt: the graph, which is changed.
        files: the files that it names (`survey`).
        renamed: returns the file to name instead, or the same.
    """
    is_changed = False
    for file in files:
        new = renamed(file.ref) if file.ref is not None and not file.folder else file.ref
        if new is None or new == file.ref:
            continue
        *path, last = (file.input_name, *file.path)
        inside: Any = prompt[file.node_id]["inputs"]
        for key in path:
            inside = inside[key]
        inside[last] = file.renamed(new)
        is_changed = True
    return is_changed


def survey(
    prompt: Mapping[str, Any], file_inputs: Collection[tuple[str, str]] = (), maximum: int | None = None
) -> Survey:
    """Survey a prompt. Skip nodes that are not well-formed.

    `file_inputs` are the (class_type, input name) that are known to take a file's name, with a suffix or without. Of
    an input that is no text, return at most one file more than `maximum`.
    """
    nodes: list[tuple[str, str]] = []
    loaded: list[tuple[str, str, str]] = []
    files: list[FileInput] = []
    by_class = _by_class(frozenset(file_inputs))
    for node_id, node in prompt.items():
        class_type = node.get("class_type") if isinstance(node, dict) else None
        if not isinstance(class_type, str):
            continue
        # Interned: ten thousand waiting prompts name the same few hundred classes.
        class_type = sys.intern(class_type)
        nodes.append((node_id, class_type))
        inputs = node.get("inputs")
        if not isinstance(inputs, dict):
            continue
        # Most classes name no file, and most inputs are numbers and links.
        names = by_class.get(class_type, _NO_NAMES)
        for name, value in inputs.items():
            kind = type(value)
            if kind is str and name not in names:
                end = value[-_SUFFIX:]
                if "." not in end and "]" not in end:
                    continue
                if end.lower().endswith(MODEL_SUFFIXES):
                    if len(value) <= MAX_NAME:
                        loaded.append((node_id, name, value))
                elif _may_name_file(value):
                    files.append(_file_input(node_id, name, value, declared=False))
            elif kind is dict or name in names:
                declared = name in names
                if kind is not str or (class_type, name) in FOLDER_INPUTS:
                    found = _other_files(node_id, class_type, name, value, declared=declared)
                    files += found if maximum is None else islice(found, max(maximum + 1 - len(files), 0))
                elif value and value != "none":
                    files.append(_file_input(node_id, name, value, declared=True))
    models = frozenset([value for _, _, value in loaded])
    separated = tuple([each for each in loaded if "/" in each[2] or "\\" in each[2]])
    model_node, model = diffusion_model(prompt, nodes, loaded)
    return Survey(tuple(nodes), models, tuple(files), separated, model, model_node)


@lru_cache(maxsize=4)
def _by_class(file_inputs: frozenset[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """Return the names of the inputs that name files or folders, by class."""
    found: dict[str, set[str]] = {}
    for class_type, name in file_inputs | FOLDER_INPUTS:
        found.setdefault(class_type, set()).add(name)
    return {class_type: frozenset(names) for class_type, names in found.items()}


def _other_files(node_id: str, class_type: str, name: str, value: Any, *, declared: bool) -> Iterator[FileInput]:
    """Yield the files in an input that is a folder, a link, or an object.

    An object is ``{"__value__": …}``, as execution.py unwraps it, or a widget's own.
    """
    if (class_type, name) in FOLDER_INPUTS:
        if isinstance(value, list):
            yield FileInput(node_id, name, LINKED, None, annotated=False, declared=True, linked=True, folder=True)
            return
        for _, text in texts(value):
            folder = folder_of(text)
            ref = None if folder.startswith(("/", "..")) else FileRef("input", folder, "")
            yield FileInput(node_id, name, text, ref, annotated=False, declared=ref is None, folder=True)
    elif isinstance(value, dict):
        for path, text in texts(value):
            if text and (declared or _may_name_file(text)):
                is_file = declared and path[-1] in _FILE_KEYS
                yield _file_input(node_id, name, text, declared=is_file, path=path)
        if declared and isinstance(value.get("__value__"), (int, float)):
            yield _number_input(node_id, name, value["__value__"])
    elif isinstance(value, list) and declared:
        yield FileInput(node_id, name, LINKED, None, annotated=False, declared=True, linked=True)
    elif isinstance(value, (int, float)) and declared:
        yield _number_input(node_id, name, value)


def _number_input(node_id: str, name: str, value: float) -> FileInput:
    """Return a file input whose name is a number: ComfyUI makes a text of it (execution.py, validate_inputs)."""
    return FileInput(node_id, name, str(value), None, annotated=False, declared=True)


def texts(value: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield every text in a value, with the keys and places that lead to it.

    Two paths of 200 keys take more memory than their texts, so a path is made for a text alone, when it is due.
    """
    if isinstance(value, str):
        yield (), value
        return
    path: list[str | int] = []
    left = [_items(value)]
    while left:
        for key, item in left[-1]:
            if isinstance(item, str):
                yield (*path, key), item
            elif isinstance(item, (dict, list)):
                path.append(key)
                left.append(_items(item))
                break
        else:
            left.pop()
            if path:
                path.pop()


def _items(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return iter(value.items())
    return enumerate(value) if isinstance(value, list) else iter(())


def _may_name_file(text: str) -> bool:
    """Return True if a text ends like a file's name, or tells its folder as ComfyUI's own names do."""
    end = text[-_SUFFIX:]
    return ANNOTATED.match(end) is not None or _FILE_NAME.search(end) is not None


def _file_input(node_id: str, name: str, value: str, *, declared: bool, path: tuple[str | int, ...] = ()) -> FileInput:
    if value in _BARE_KINDS:
        return FileInput(node_id, name, value, None, annotated=True, declared=declared, path=path)
    if len(value) > MAX_NAME:
        is_annotated = ANNOTATED.match(value[-_SUFFIX:]) is not None
        return FileInput(node_id, name, value, None, annotated=is_annotated, declared=declared, path=path)
    match = ANNOTATED.match(value)
    file, kind = (match["path"], match["kind"]) if match else (value, "input")
    return FileInput(node_id, name, value, file_ref(kind, "", file), match is not None, declared, path)


def output_nodes(
    nodes: Iterable[tuple[str, str]], object_info: Mapping[str, Any], targets: list[str] | None = None
) -> list[str]:
    """Return the output nodes of (node_id, class_type); of `targets` alone if given (execution.py, validate_prompt)."""
    # Of thousands of targets a list would be looked through for each of thousands of nodes.
    wanted = None if targets is None else frozenset(each for each in targets if isinstance(each, str))
    return [
        node_id
        for node_id, class_type in nodes
        if (wanted is None or node_id in wanted) and (object_info.get(class_type) or {}).get("output_node") is True
    ]
