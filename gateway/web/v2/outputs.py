"""Outputs of jobs as the Comfy API v2 shows them, from nodes' results. Pure.

An output's id is made of the job's id and of the output's place in it, so that the id is the same at each look, and
needs no store. It is no secret: each look-up checks that the job is the caller's.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from gateway.comfy.file_refs import MODELS_3D, FileRef, can_be_asked_for, finished, folder_of, ref_of

# Outputs of a job that are shown, and how deep files may lie in a result.
MAX_OUTPUTS, MAX_DEPTH = 10_000, 8
# Outputs after which others have their turn.
STEP = 100
_PREFIX, _DIGEST = "out_", 9
TEXT_TYPE, UNKNOWN_TYPE = "text/plain; charset=utf-8", "application/octet-stream"
# Types of files that Python does not know everywhere.
_TYPES = {
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".obj": "model/obj",
    ".stl": "model/stl",
    ".opus": "audio/ogg",
    ".flac": "audio/flac",
    ".mkv": "video/x-matroska",
    ".latent": UNKNOWN_TYPE,
}
# Kinds by the key of a node's result. A file under any other key is of the kind that its type tells.
_KINDS = {
    "images": "image",
    "gifs": "video",
    "video": "video",
    "videos": "video",
    "audio": "audio",
    "text": "text",
    "latents": "latent",
    "files": "file",
    "3d": "file",
}
_BY_TYPE = ("image", "video", "audio", "text")
# Keys whose texts are results. Under other keys nodes tell their widgets' values.
_TEXT_KEYS = ("text", "texts", "string", "strings")
# A flag about the pictures beside it.
_FLAG = "animated"


@dataclass(frozen=True, slots=True)
class Output:
    """An output of a job: a file, or a text that is no file (`ref` is None)."""

    id: str
    node_id: str
    name: str
    kind: str
    content_type: str
    ref: FileRef | None
    text: str = ""


def outputs_of(prompt_id: str, results: Any) -> list[Output]:
    """Return the outputs in the results of a job's nodes, each file of a node once."""
    return finished(finding_outputs(prompt_id, results))


def finding_outputs(prompt_id: str, results: Any) -> Generator[None, None, list[Output]]:
    """Find the outputs as `outputs_of` does, in steps that are short."""
    found: dict[str, Output] = {}
    for place, output in enumerate(_outputs(prompt_id, results), start=1):
        found.setdefault(output.id, output)
        if len(found) >= MAX_OUTPUTS:
            break
        if place % STEP == 0:
            yield
    return list(found.values())


def _outputs(prompt_id: str, results: Any) -> Iterator[Output]:
    for node_id, node in results.items() if isinstance(results, dict) else ():
        if not isinstance(node, dict):
            continue
        texts = 0
        for key, items in node.items():
            if key == _FLAG:
                continue
            for item in _leaves(items):
                if isinstance(item, dict):
                    ref = ref_of(item)
                elif item.lower().endswith(MODELS_3D) and key not in _TEXT_KEYS:
                    ref = _bare(item)
                elif key in _TEXT_KEYS:
                    texts += 1
                    yield _text(prompt_id, str(node_id), texts, item)
                    continue
                else:
                    continue
                if ref is not None and can_be_asked_for(ref.subfolder + ref.filename):
                    yield _file(prompt_id, str(node_id), key, ref)


def _leaves(items: Any, depth: int = 0) -> Iterator[dict[str, Any] | str]:
    """Yield the texts and the objects that name a file in a node's result."""
    if isinstance(items, str) or (isinstance(items, dict) and "filename" in items):
        yield items
    elif isinstance(items, (list, dict)) and depth < MAX_DEPTH:
        for item in items.values() if isinstance(items, dict) else items:
            yield from _leaves(item, depth + 1)


def _bare(item: str) -> FileRef:
    """Return the 3D model of a bare name (comfy_api/latest/_ui.py, PreviewUI3D)."""
    folder, _, filename = item.replace("\\", "/").rpartition("/")
    return FileRef("output", folder_of(folder), filename)


def _file(prompt_id: str, node_id: str, key: str, ref: FileRef) -> Output:
    content_type = type_of(ref.filename)
    kind = _KINDS.get(key)
    if kind is None or (kind == "image" and content_type.startswith(("video/", "audio/"))):
        major = content_type.partition("/")[0]
        kind = major if major in _BY_TYPE else "file"
    id_ = _id(prompt_id, node_id, ref.kind, ref.subfolder, ref.filename)
    return Output(id_, node_id, ref.filename, kind, content_type, ref)


def _text(prompt_id: str, node_id: str, place: int, text: str) -> Output:
    id_ = _id(prompt_id, node_id, "text", str(place))
    return Output(id_, node_id, f"node-{node_id}-text-{place}.txt", "text", TEXT_TYPE, None, text)


def type_of(filename: str) -> str:
    """Return the content type of a file by its name."""
    suffix = "." + filename.lower().rpartition(".")[2]
    return _TYPES.get(suffix) or mimetypes.guess_type(filename)[0] or UNKNOWN_TYPE


def _id(prompt_id: str, *parts: str) -> str:
    digest = blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()
    return _PREFIX + base64.urlsafe_b64encode(uuid.UUID(prompt_id).bytes + digest).decode().rstrip("=")


def job_of(output_id: str) -> str | None:
    """Return the id of the job that an output's id names; None if it is no such id."""
    if not output_id.startswith(_PREFIX):
        return None
    encoded = output_id[len(_PREFIX) :]
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return str(uuid.UUID(bytes=raw[:16])) if len(raw) == 16 + _DIGEST else None


def results_of(events: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the results by node in the data of ``executed`` events, the last of each node."""
    return {str(data.get("node")): data["output"] for data in events if isinstance(data.get("output"), dict)}
