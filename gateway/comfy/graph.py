"""A prompt's graph: nodes by id, each with ``class_type`` and ``inputs`` (links are ``[node_id, slot]``)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# An input value such as "pic.png [output]" names the folder it is in (folder_paths.py, annotated_filepath).
_ANNOTATED = re.compile(r"^(?P<path>.*?) ?\[(?P<kind>input|output|temp)\]$", re.DOTALL)
_FILE_NAME = re.compile(r"\.[A-Za-z0-9]{1,8}$")
MAX_NAME = 1024
MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft", ".gguf", ".onnx")


@dataclass(frozen=True, slots=True)
class FileInput:
    """An input that may name a file: where in the graph, and what it names."""

    node_id: str
    input_name: str
    kind: str
    subfolder: str
    filename: str
    annotated: bool

    def renamed(self, filename: str) -> str:
        """The value that names `filename` in the same folder."""
        path = f"{self.subfolder}/{filename}" if self.subfolder else filename
        return f"{path} [{self.kind}]" if self.annotated else path


@dataclass(frozen=True, slots=True)
class Survey:
    """What a prompt is about: its (node_id, class_type), the models it loads, the files it may name."""

    nodes: tuple[tuple[str, str], ...]
    models: frozenset[str]
    files: tuple[FileInput, ...]


def survey(prompt: Mapping[str, Any]) -> Survey:
    """Look once through a prompt. Nodes that are not well-formed are passed over."""
    nodes: list[tuple[str, str]] = []
    models: set[str] = set()
    files: list[FileInput] = []
    for node_id, node in prompt.items():
        class_type = node.get("class_type") if isinstance(node, dict) else None
        if not isinstance(class_type, str):
            continue
        # Interned: ten thousand waiting prompts name the same few hundred classes.
        nodes.append((node_id, sys.intern(class_type)))
        inputs = node.get("inputs")
        if not isinstance(inputs, dict):
            continue
        for name, value in inputs.items():
            if not isinstance(value, str) or len(value) > MAX_NAME or not ("." in value[-13:] or value.endswith("]")):
                continue
            if value.lower().endswith(MODEL_SUFFIXES):
                models.add(value)
            elif (file := _file_input(node_id, name, value)) is not None:
                files.append(file)
    return Survey(tuple(nodes), frozenset(models), tuple(files))


def _file_input(node_id: str, name: str, value: str) -> FileInput | None:
    """An input that names a file: annotated with a folder, or with a suffix that no model has."""
    match = _ANNOTATED.match(value)
    if match is None and not _FILE_NAME.search(value):
        return None
    path, kind = (match["path"], match["kind"]) if match else (value, "input")
    subfolder, _, filename = path.replace("\\", "/").rpartition("/")
    return FileInput(node_id, name, kind, subfolder, filename, match is not None) if filename else None


def output_nodes(
    nodes: Iterable[tuple[str, str]], object_info: Mapping[str, Any], targets: list[str] | None = None
) -> list[str]:
    """Of (node_id, class_type), the output nodes; of `targets` alone if given (execution.py, validate_prompt)."""
    return [
        node_id
        for node_id, class_type in nodes
        if (targets is None or node_id in targets) and (object_info.get(class_type) or {}).get("output_node") is True
    ]
