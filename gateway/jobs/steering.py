"""Steer what a prompt's savers write into secret folders below output/. Pure.

A literal prefix gets the folder before it. A linked one gets it from two stock nodes, which are added to the prompt.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.comfy import wire
from gateway.comfy.class_profiles import ClassProfile
from gateway.comfy.subgraph import digests
from gateway.comfy.true_types import is_link, unwrapped
from gateway.comfy.writing import BARE_NAME

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
class Steering:
    """Changes to a prompt, by which its savers write into secret folders alone.

    Attributes:
        changed: the new values of inputs, by node id and input name: texts, and links to added nodes.
        added: the added nodes, by id.
        folders: the node ids of savers, by secret folder. Equal savers share a folder, which has the first one's id.
        refused: the inputs, as node id and input name, that can't be steered.
        is_literal: True if each change is of a text that the prompt holds, and all are of inputs with one name.
    """

    changed: Mapping[_Input, Any]
    added: Mapping[str, dict[str, Any]]
    folders: Mapping[str, str]
    refused: tuple[_Input, ...]
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


UNCHANGED = Steering({}, {}, {}, ())


def steer(
    prompt: Mapping[str, Any],
    profile: Callable[[str], ClassProfile | None],
    folder_of: Callable[[bytes], str],
    node_id_of: Callable[[bytes, str], str],
    has_class: Callable[[str], bool],
    is_spared: Callable[[ClassProfile], bool] = lambda _: False,
) -> Steering:
    """Return what to change in a prompt, so that each saver writes into a secret folder.

    Args:
        prompt: the graph as the client sent it, nodes by id, each an object.
        profile: returns a class's profile, None if no backend describes it.
        folder_of: returns the secret folder for the digest of a saver's part of the graph (`gateway.comfy.subgraph`).
        node_id_of: returns the id of a node to add, by the digest of the saver and the node's role. No two of these
            share an id.
        has_class: returns True if the backend that will run the prompt has a class.
        is_spared: returns True for a class that writes where the prompt says.
    """
    savers: dict[str, ClassProfile] = {}
    for node_id, node in prompt.items():
        class_type = node.get("class_type")
        known = profile(class_type) if isinstance(class_type, str) else None
        if known is not None and known.savers and isinstance(node.get("inputs"), dict) and not is_spared(known):
            savers[node_id] = known
    if not savers:
        return UNCHANGED
    changed: dict[_Input, Any] = {}
    added: dict[str, dict[str, Any]] = {}
    folders: dict[str, str] = {}
    refused: list[_Input] = []
    is_literal = True
    for node_id, digest in digests(prompt, savers).items():
        folder = folder_of(digest)
        for name, value in _given(prompt[node_id]["inputs"], savers[node_id]):
            is_literal = is_literal and type(value) is str and name in prompt[node_id]["inputs"]
            if not isinstance(value, list):
                changed[node_id, name] = f"{folder}/{_placed(unwrapped(value))}"
            elif is_link(value) and has_class(REPLACE) and has_class(JOIN):
                changed[node_id, name] = _joined(folder, value, digest, prompt, added, node_id_of)
            else:
                # ComfyUI takes any list for a link, and refuses one that is none.
                refused.append((node_id, name))
                continue
            folders.setdefault(folder, node_id)
    is_literal = is_literal and len({name for _, name in changed}) == 1
    return Steering(changed, added, folders, tuple(refused), is_literal)


def spliced(raw: bytes, steering: Steering) -> bytes | None:
    """Return an encoded prompt with the changes put in, without parsing it; None if that is not safe.

    Args:
        raw: the prompt, encoded without blanks (`gateway.comfy.wire.dumps`), of which `steering` was made.
    """
    if not steering.is_literal:
        return None
    (_, name), *_ = steering.changed
    # A quote within a text has a backslash before it, so these bytes are a key wherever they are.
    first, *pieces = raw.split(f'"{name}":'.encode())
    # Each saver has the input. If there are no more keys of the name, each piece begins with one saver's text.
    if len(pieces) != len(steering.changed):
        return None
    parts = [first]
    for piece, text in zip(pieces, steering.changed.values(), strict=True):
        match = _JSON_TEXT.match(piece)
        if match is None:
            return None
        parts.append(wire.dumps(text) + piece[match.end() :])
    return f'"{name}":'.encode().join(parts)


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
    """Return what a literal prefix becomes in its folder.

    ComfyUI makes a text of it (execution.py, validate_inputs) and normalises that (folder_paths.py,
    get_save_image_path). Backslashes separate, because a backend may run on Windows.
    """
    if type(value) is str and BARE_NAME.fullmatch(value):
        return value
    # A prompt out of a picture of the tenant's own has the secret folder of an earlier time before its prefix.
    text = _SECRET_FOLDERS.sub("", str(value).replace("\\", "/"))
    if "\0" in text:
        return SAFE_NAME
    path = posixpath.normpath(text)
    if path == ".":
        return UNNAMED
    # Windows takes dots and blanks away at the end of a name.
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
        # A client may know the ids of an earlier prompt of its own: they are in the files.
        while (node_id := node_id_of(digest, f"{role}{number} {link[1]} {link[0]}")) in prompt:
            number += 1
        added[node_id] = {"class_type": class_type, "inputs": inputs}
        return [node_id, 0]

    cleaned = add("clean", REPLACE, string=link, regex_pattern=LEADS_OUT, replace=INSTEAD)
    return add("join", JOIN, string_a=f"{folder}/", string_b=cleaned, delimiter="")
