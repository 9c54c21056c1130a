"""A prompt's graph: nodes by id, each with ``class_type`` and ``inputs`` (links are ``[node_id, slot]``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# An input value such as "pic.png [output]" names the folder it is in (folder_paths.py, annotated_filepath).
_ANNOTATED = re.compile(r"^(?P<path>.*?) ?\[(?P<kind>input|output|temp)\]$", re.DOTALL)
_FILE_NAME = re.compile(r"\.[A-Za-z0-9]{1,8}$")
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


def nodes_of(prompt: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Each well-formed node as (node_id, class_type, inputs)."""
    for node_id, node in prompt.items():
        if isinstance(node, dict) and isinstance(node.get("class_type"), str):
            inputs = node.get("inputs")
            yield node_id, node["class_type"], inputs if isinstance(inputs, dict) else {}


def file_inputs(prompt: Mapping[str, Any]) -> list[FileInput]:
    """The inputs that look like a file's name: annotated with a folder, or with a suffix that no model has."""
    found = []
    for node_id, _, inputs in nodes_of(prompt):
        for name, value in inputs.items():
            if isinstance(value, str) and len(value) <= 1024 and (file := _file_input(node_id, name, value)):
                found.append(file)
    return found


def _file_input(node_id: str, name: str, value: str) -> FileInput | None:
    match = _ANNOTATED.match(value)
    if match is None and (not _FILE_NAME.search(value) or value.lower().endswith(MODEL_SUFFIXES)):
        return None
    path, kind = (match["path"], match["kind"]) if match else (value, "input")
    subfolder, _, filename = path.replace("\\", "/").rpartition("/")
    return FileInput(node_id, name, kind, subfolder, filename, match is not None) if filename else None


def models_named(prompt: Mapping[str, Any]) -> frozenset[str]:
    """The model files that the graph loads, by the names it gives them."""
    return frozenset(
        value
        for _, _, inputs in nodes_of(prompt)
        for value in inputs.values()
        if isinstance(value, str) and len(value) <= 1024 and value.lower().endswith(MODEL_SUFFIXES)
    )


def output_nodes(
    nodes: Iterable[tuple[str, str]], object_info: Mapping[str, Any], targets: list[str] | None = None
) -> list[str]:
    """Of (node_id, class_type), the output nodes; of `targets` alone if given (execution.py, validate_prompt)."""
    return [
        node_id
        for node_id, class_type in nodes
        if (targets is None or node_id in targets) and (object_info.get(class_type) or {}).get("output_node") is True
    ]
