"""Descriptions of node classes, from each backend's /object_info: read, compared with the last ones, kept on disk."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.catalogue.worker import no_rest
from gateway.comfy import json_codec
from gateway.comfy.object_info import ObjectInfo, ReadClass, Recall, read_document
from gateway.telemetry import logs

_log = logs.get("catalogue")


@dataclass(frozen=True, slots=True)
class Description:
    """Description of one backend's node classes, with the digest of its whole text."""

    digest: bytes
    info: ObjectInfo

    @property
    def classes(self) -> Mapping[str, Any]:
        """Return the node classes that could be read."""
        return self.info.classes

    def says_the_same(self, other: Description | None) -> bool:
        """Return True if all classes have the same text in both."""
        return other is not None and (
            self.digest == other.digest
            or (
                self.info.read.keys() == other.info.read.keys()
                and all(each.digest == other.info.read[name].digest for name, each in self.info.read.items())
            )
        )


def describe(
    pieces: list[bytes], known: Description | None, others: Iterable[Description], rest: Callable[[], None] = no_rest
) -> tuple[Description, bytes]:
    """Read the body of GET /object_info, which comes in pieces; return it as a whole, too. The pieces are let go.

    Classes that the backend, or another one, has said before are taken from there, so that equal backends share them.

    Raises:
        MalformedJson: it is not JSON, or no object.
    """
    body = b"".join(pieces)
    pieces.clear()
    digest = hashlib.sha256(body).digest()
    sources = [*([known] if known is not None else []), *others]
    same = next((each for each in sources if each.digest == digest), None)
    if same is not None:
        return same, body
    return Description(digest, read_document(body, _recall_from(sources), rest)), body


def patched(
    known: Description, answers: Iterable[bytes], others: Iterable[Description], rest: Callable[[], None] = no_rest
) -> Description:
    """Return a description with the classes of some answers to GET /object_info/{class}.

    If nothing is new, return `known` itself. An answer that can't be read, and a class that can't be read any more,
    change nothing.
    """
    sources = [known, *others]
    read = dict(known.info.read)
    for answer in answers:
        try:
            info = read_document(answer, _recall_from(sources), rest)
        except json_codec.MalformedJson:
            continue
        read.update((name, each) for name, each in info.read.items() if each.description is not None)
    earlier = known.info.read
    if all(name in earlier and earlier[name].digest == each.digest for name, each in read.items()):
        return known
    classes = {name: each.description for name, each in read.items() if each.description is not None}
    digest = hashlib.sha256(b"".join(each.digest for each in read.values())).digest()
    return Description(digest, ObjectInfo(classes, known.info.dropped, known.info.repaired, read))


def _recall_from(sources: Sequence[Description]) -> Recall:
    """Return the function that finds a class, by the digest of its text, in what backends have said."""

    def recall(name: str, text: bytes) -> ReadClass | None:
        for source in sources:
            each = source.info.read.get(name)
            if each is not None and each.digest == text:
                return each
        return None

    return recall


def keep(directory: Path, backend: str, body: bytes) -> None:
    """Keep a backend's answer for a start at which the backend is down. If it can't be written, go on without."""
    path = _kept(directory, backend)
    unfinished = path.with_suffix(".unfinished")
    try:
        directory.mkdir(exist_ok=True)
        unfinished.write_bytes(gzip.compress(body, 3, mtime=0))
        unfinished.replace(path)
    except OSError as error:
        _log.warning("object_info_not_kept", backend=backend, error=str(error))
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def read_kept(directory: Path, backends: Sequence[str]) -> dict[str, Description]:
    """Return the kept descriptions of backends, as far as they can be read."""
    found: dict[str, Description] = {}
    for backend in backends:
        try:
            said = gzip.decompress(_kept(directory, backend).read_bytes())
            description, _ = describe([said], None, found.values())
        except FileNotFoundError:
            continue
        except (OSError, EOFError, zlib.error, json_codec.MalformedJson) as error:
            _log.warning("object_info_unreadable", backend=backend, error=str(error))
            continue
        tell(backend, description.info)
        if description.classes:
            found[backend] = description
    return found


def _kept(directory: Path, backend: str) -> Path:
    return directory / f"{backend}.json.gz"


def tell(backend: str, read: ObjectInfo) -> None:
    """Write a line to the log if some of a backend's classes could not be read, or not as they are."""
    if read.dropped:
        _log.warning("object_info_partly_unreadable", backend=backend, **read.summary())
    elif read.repaired:
        # ComfyUI's own partner nodes have an input and a hidden input of the same name.
        _log.info("object_info_repaired", backend=backend, **read.summary())
