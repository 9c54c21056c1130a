"""The review of ComfyUI's stock node classes: what each input opens, writes or evaluates.

The data are in ``node_review.json``, with the version of ComfyUI whose source was read for it. An input that the review
does not mention is judged by its declared type alone (`gateway.comfy.class_profiles`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any


class Kind(StrEnum):
    """Treatment of an input whose value an isolated tenant chooses. ``node_review.json`` describes each.

    COUNT, CHOICE and OBJECT follow from the declared type; UNREVIEWED is a type that may carry a name or code.
    """

    COUNT = "count"
    CHOICE = "choice"
    OBJECT = "object"
    UNREVIEWED = "unreviewed"
    TEXT = "text"
    ANY = "any"
    DATA = "data"
    FILE = "file"
    FILES = "files"
    FOLDER = "folder"
    MODEL = "model"
    DATASETS = "datasets"
    OUTPUT_PREFIX = "output_prefix"
    UNCHECKED_FOLDER = "unchecked_folder"
    UNCHECKED_PREFIX = "unchecked_prefix"
    MODEL_PREFIX = "model_prefix"
    REPLACING = "replacing"
    PATH_PART = "path_part"
    FORMAT = "format"
    EXPRESSION = "expression"
    NUMBER = "number"


# Kinds of inputs that name files which a class opens.
OPENING = frozenset({Kind.FILE, Kind.FILES, Kind.FOLDER})
_EMPTY: Mapping[str, Kind] = {}
_STOCK = ("comfy_extras.", "comfy_api_nodes.")
_CUSTOM = "custom_nodes."


@dataclass(frozen=True, slots=True)
class Review:
    """The review of one version of ComfyUI.

    Attributes:
        version: the version of ComfyUI whose source was read.
        classes: for each stock class, the kinds of its inputs by name; ``name.*`` stands for a dynamic input's members.
    """

    version: str
    classes: Mapping[str, Mapping[str, Kind]]

    def inputs(self, class_type: str, module: str) -> Mapping[str, Kind] | None:
        """Return the kinds of a class's inputs, None if no review covers the class.

        A custom node may take a stock class's name on a ComfyUI without that class, so its module counts too.
        """
        return self.classes.get(class_type) if is_stock(module) else None


def is_stock(module: str) -> bool:
    """Return True if ComfyUI itself brings a class of this ``python_module`` (nodes.py, load_custom_node)."""
    return module == "nodes" or module.startswith(_STOCK)


def pack_of(module: str) -> str:
    """Return the name of the pack of a ``python_module``: a custom node's folder, or ComfyUI's own module."""
    return module.removeprefix(_CUSTOM)


def kind_of(inputs: Mapping[str, Kind], name: str) -> Kind | None:
    """Return the reviewed kind of an input, None if the review does not mention it.

    A member of a dynamic input (``values.a``) is covered by ``values.*``.
    """
    found = inputs.get(name)
    while found is None and "." in name:
        name = name.rpartition(".")[0]
        found = inputs.get(f"{name}.*")
    return found


@cache
def review() -> Review:
    """Return the review that this package brings."""
    text = (resources.files("gateway.comfy") / "node_review.json").read_text("utf-8")
    value: dict[str, Any] = json.loads(text)
    classes = {
        name: {key: Kind(kind) for key, kind in inputs.items()} if inputs else _EMPTY
        for name, inputs in value["classes"].items()
    }
    return Review(value["comfyui"], classes)


@cache
def file_inputs() -> frozenset[tuple[str, str]]:
    """Return the (class, input) that the review knows to name a file, or to hold an object of such names."""
    return frozenset(
        (name, input_name)
        for name, inputs in review().classes.items()
        for input_name, kind in inputs.items()
        if kind in (Kind.FILE, Kind.FILES)
    )
