"""Steer a prompt's savers, so that they write into secret folders below output/. Pure.

A literal prefix gets the folder before it. For a linked prefix, the gateway adds two stock nodes to the prompt, which
put the folder before it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.class_profiles import ClassProfile
from gateway.comfy.name_checks import BARE_NAME
from gateway.comfy.subgraph import OpenedNode, digests
from gateway.comfy.true_types import is_link, unwrapped

# The stock classes that steer a linked prefix (comfy_extras/nodes_string.py).
REPLACE, JOIN = "RegexReplace", "StringConcatenate"
# The name for a prefix that would lead out of its folder.
SAFE_NAME = "ComfyUI"
# The prefix that clients see for one that names no file: ComfyUI calls such files "._00001_.png". And the prefix that
# goes upstream instead.
NO_NAME, UNNAMED = ".", "=.="
# Windows takes any character before a colon for a drive (ntpath.splitdrive).
_DRIVE = re.compile(r".:", re.DOTALL)
_SECRET_FOLDERS = re.compile(r"\A(?:o/[0-9a-f]{32}/f/)+")
_JSON_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
# Parts of a linked text that may lead out of a folder: "..", a drive at the start of a name (os.path.join of Windows
# begins anew there), and a last part that is empty or a dot, of which normpath would make the name of the folder.
LEADS_OUT = r"\.\.|(?:^|(?<=[/\\]))(?:[^/\\]:|\.?\Z)"
INSTEAD = "__"

_Input = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """Inputs of a prompt that name the place that its savers write to.

    Attributes:
        inputs: each as node id, input name and value: a link, or a value that ComfyUI makes a text of. If the node
            leaves an input out, its value is the default.
        refused: the inputs, as node id and input name, that can't be steered.
        has_links: True if a value is a link, so that nodes will be added.
    """

    inputs: tuple[tuple[str, str, Any], ...] = ()
    refused: tuple[_Input, ...] = ()
    has_links: bool = False

    @property
    def linked(self) -> Iterator[_Input]:
        """Yield the inputs whose values are links."""
        return ((node_id, name) for node_id, name, value in self.inputs if isinstance(value, list))


NO_PLAN = Plan()


@dataclass(frozen=True, slots=True)
class Steering:
    """Changes to a prompt, by which its savers write into secret folders alone.

    Attributes:
        changed: the new values of inputs, by node id and input name: texts, and links to added nodes.
        added: the added nodes, by id.
        folders: the node ids of savers, by secret folder. Equal savers share a folder, which has the first one's id.
        is_literal: True if each change is of a text that the prompt holds, and all are of inputs with one name.
    """

    changed: Mapping[_Input, Any]
    added: Mapping[str, dict[str, Any]]
    folders: Mapping[str, str]
    is_literal: bool = False

    @property
    def savers(self) -> dict[str, str]:
        """Return the added nodes, each with the id of the saver for whose sake it was added."""
        found: dict[str, str] = {}
        for (saver, _), value in self.changed.items():
            if isinstance(value, list):
                joined = value[0]
                for node_id in (joined, self.added[joined]["inputs"]["string_b"][0]):
                    found.setdefault(node_id, saver)
        return found

    def applied(self, prompt: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the prompt with these changes. The nodes that do not change are those of `prompt` itself."""
        if not self.changed:
            return prompt
        nodes = dict(prompt)
        for (node_id, name), value in self.changed.items():
            if nodes[node_id] is prompt[node_id]:
                nodes[node_id] = {**prompt[node_id], "inputs": dict(prompt[node_id]["inputs"])}
            nodes[node_id]["inputs"][name] = value
        nodes.update(self.added)
        return nodes


UNCHANGED = Steering({}, {}, {})


def plan(
    prompt: Mapping[str, Any],
    savers: Mapping[str, ClassProfile],
    has_class: Callable[[str], bool],
    is_spared: Callable[[ClassProfile], bool] = lambda _: False,
) -> Plan:
    """Return the inputs of a prompt that are to be steered.

    Args:
        prompt: the graph as the client sent it, nodes by id, each an object.
        savers: the nodes that write where their inputs say, with the profiles of their classes.
        has_class: returns True if the backend that will run the prompt has a class.
        is_spared: returns True for a class that writes where the prompt says.
    """
    found: list[tuple[str, str, Any]] = []
    refused: list[_Input] = []
    has_links = False
    for node_id, profile in savers.items():
        inputs = prompt[node_id].get("inputs")
        if not isinstance(inputs, dict) or is_spared(profile):
            continue
        for name, value in _given(inputs, profile):
            if isinstance(value, list):
                # ComfyUI takes any list for a link, and refuses one that is none.
                if not (is_link(value) and has_class(REPLACE) and has_class(JOIN)):
                    refused.append((node_id, name))
                    continue
                has_links = True
            found.append((node_id, name, value))
    return Plan(tuple(found), tuple(refused), has_links) if found or refused else NO_PLAN


def steer(
    prompt: Mapping[str, Any],
    planned: Plan,
    folder_of: Callable[[bytes], str],
    node_id_of: Callable[[bytes, str], str],
    opened: dict[str, OpenedNode] | None = None,
    *,
    is_plain: bool = False,
) -> Steering:
    """Return the changes to a prompt by which each saver writes into a secret folder.

    Args:
        prompt: the graph as the client sent it, nodes by id, each an object.
        planned: the inputs to steer.
        folder_of: returns the secret folder for the digest of a saver's part of the graph (`gateway.comfy.subgraph`).
        node_id_of: returns the id of a node to add, by the digest of the saver and the node's role. No two of these
            share an id.
        opened: nodes that were taken apart (`gateway.comfy.subgraph.digests`).
        is_plain: True if no number in the graph is NaN or infinite.
    """
    if not planned.inputs:
        return UNCHANGED
    changed: dict[_Input, Any] = {}
    added: dict[str, dict[str, Any]] = {}
    folders: dict[str, str] = {}
    names: set[str] = set()
    is_literal = True
    wanted = dict.fromkeys([node_id for node_id, _, _ in planned.inputs])
    found = digests(prompt, wanted, opened, is_plain=is_plain)
    for node_id, name, value in planned.inputs:
        digest = found[node_id]
        folder = folder_of(digest)
        if isinstance(value, list):
            changed[node_id, name] = _joined(folder, value, digest, prompt, added, node_id_of)
            is_literal = False
        else:
            is_text = type(value) is str
            is_bare = is_text and BARE_NAME.fullmatch(value) is not None
            changed[node_id, name] = f"{folder}/{value if is_bare else _placed(unwrapped(value))}"
            is_literal = is_literal and is_text and name in prompt[node_id]["inputs"]
        names.add(name)
        folders.setdefault(folder, node_id)
    return Steering(changed, added, folders, is_literal and len(names) == 1)


def spliced(raw: bytes, steering: Steering) -> bytes | None:
    """Return an encoded prompt with the changes put in, without parsing it; None if that is not safe.

    Args:
        raw: the prompt, encoded without blanks (`gateway.comfy.json_codec.dumps`), of which `steering` was made.
    """
    if not steering.is_literal:
        return None
    (_, name), *_ = steering.changed
    # A quote within a text has a backslash before it, so these bytes are a key wherever they are.
    key = f'"{name}":'.encode()
    first, *pieces = raw.split(key)
    # Each saver has the input. If there are no more keys of the name, each piece begins with one saver's text.
    if len(pieces) != len(steering.changed):
        return None
    parts: list[bytes | memoryview] = [first]
    for piece, text in zip(pieces, steering.changed.values(), strict=True):
        match = _JSON_TEXT.match(piece)
        if match is None:
            return None
        # Copy each piece once at most, because a prompt may hold pictures.
        parts += (key, json_codec.dumps(text), memoryview(piece)[match.end() :])
    return b"".join(parts)


def _given(inputs: Mapping[str, Any], profile: ClassProfile) -> Iterator[tuple[str, Any]]:
    """Yield the inputs that decide where a node writes, with their values.

    If a node leaves out an optional one, yield its default. If it leaves out a required one, ComfyUI refuses the node.
    """
    for name in profile.savers:
        if name in inputs:
            yield name, inputs[name]
        elif (default := profile.inputs[name].default) is not None and profile.inputs[name].is_in(inputs):
            yield name, default


def _placed(value: Any) -> str:
    """Return a literal prefix as it is to be below its secret folder.

    ComfyUI makes a text of the prefix (execution.py, validate_inputs) and normalises that (folder_paths.py,
    get_save_image_path). Backslashes separate, because a backend may run on Windows.
    """
    # Remove an earlier secret folder, because a prompt that was saved in a tenant's picture has one before its prefix.
    text = _SECRET_FOLDERS.sub("", str(value).replace("\\", "/"))
    if "\0" in text:
        return SAFE_NAME
    path = posixpath.normpath(text)
    if path == ".":
        return UNNAMED
    # Replace a name of dots and blanks, because Windows removes these at the end of a name.
    if any(part.strip(" .") == "" or _DRIVE.match(part) for part in path.split("/")):
        return SAFE_NAME
    return path


def _joined(
    folder: str,
    link: Any,
    digest: bytes,
    prompt: Mapping[str, Any],
    added: dict[str, dict[str, Any]],
    node_id_of: Callable[[bytes, str], str],
) -> list[Any]:
    """Add the nodes that put a folder before a linked text, and return the link to their result.

    Equal savers with one link have one pair of nodes.
    """

    def add(role: str, class_type: str, **inputs: Any) -> list[Any]:
        number = 0
        # Skip ids that are in the prompt, because a client may know the ids of its earlier prompts from saved files.
        while (node_id := node_id_of(digest, f"{role}{number} {link[1]} {link[0]}")) in prompt:
            number += 1
        added[node_id] = {"class_type": class_type, "inputs": inputs}
        return [node_id, 0]

    cleaned = add("clean", REPLACE, string=link, regex_pattern=LEADS_OUT, replace=INSTEAD)
    return add("join", JOIN, string_a=f"{folder}/", string_b=cleaned, delimiter="")
