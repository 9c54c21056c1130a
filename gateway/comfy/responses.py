"""Readers of a ComfyUI's answers: typed values, or `Unreadable`.

A backend may be no ComfyUI, an odd one, or one whose custom nodes add to what it says. All results have
the declared types.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.json_stream import JsonStream, TooLarge, Unreadable

# The key of extra_data under which a gateway marks what it sends. ComfyUI keeps it in its queue and its history.
MARK = "gateway_assignment"
MAX_DEVICES = 64
MAX_ID = 256
# A number that every reader of JSON, and SQLite, can hold.
MAX_NUMBER = 2**53
# Of an item of /queue or of an entry's prompt, what is read if the answer is large. Its graph is passed over.
_READ_OF_EXTRA = ("client_id", MARK)
MAX_OUTPUT_IDS = 2**20
# Items of a large /queue.
MAX_ITEMS = 10_000
# A result may have as many values as ten thousand files take.
MAX_RESULT_VALUES = 42_000
_RESULT = ("outputs", "status", "meta")
# Bytes of a result that is read at once.
MAX_INLINE = 6 * 2**20
# Under this key an entry tells of the outputs that it lacks, with the bytes of each.
LEFT_OUT = "gateway_left_out"
# What begins so in /system_stats is a number of bytes.
_AMOUNTS = ("ram_", "vram_", "torch_vram_")


@dataclass(frozen=True, slots=True)
class Queue:
    """A backend's /queue: items are ``[number, prompt_id, prompt, extra_data, outputs]``, with a text as the id."""

    running: tuple[Sequence[Any], ...]
    pending: tuple[Sequence[Any], ...]

    @property
    def running_ids(self) -> frozenset[str]:
        """Return the prompt ids that run."""
        return frozenset(item[1] for item in self.running)

    @property
    def pending_ids(self) -> frozenset[str]:
        """Return the prompt ids that are pending."""
        return frozenset(item[1] for item in self.pending)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A history entry, and the encoder that keeps values for which JSON has no word (NaN).

    `entry` has a list as ``prompt`` or none, objects as ``outputs``, ``status`` and ``meta``. The graph of a large
    entry is not read: it is None in ``prompt``.

    Attributes:
        large: the result as it is written, in pieces, if it takes too long to be read at once. Nothing of it is in
            `entry`.
    """

    entry: dict[str, Any]
    encode: Callable[[Any], bytes]
    large: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class SystemStats:
    """A backend's /system_stats. `raw` is the answer, without the parts that are not of ComfyUI's form."""

    raw: Mapping[str, Any] = field(default_factory=lambda: {"system": {}, "devices": []})

    @property
    def system(self) -> Mapping[str, Any]:
        """Return the facts about the process and its machine."""
        system: Mapping[str, Any] = self.raw["system"]
        return system

    @property
    def devices(self) -> Sequence[Mapping[str, Any]]:
        """Return the devices, each with numbers for its memory."""
        devices: Sequence[Mapping[str, Any]] = self.raw["devices"]
        return devices

    @property
    def gpus(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield each device that has VRAM, with its place. A ComfyUI without a GPU tells its host's memory here."""
        return ((place, device) for place, device in enumerate(self.devices) if device.get("type") != "cpu")

    @property
    def version(self) -> str:
        """Return the version of ComfyUI; ``?`` if it does not say."""
        return str(self.system.get("comfyui_version", "?"))


# -- /queue --------------------------------------------------------------------------------------------------------


def read_queue(value: Any) -> Queue:
    """Read a /queue; items that are not of ComfyUI's form are left out.

    Raises:
        Unreadable: it is no queue.
    """
    if not isinstance(value, dict):
        raise Unreadable("it is no object")
    parts = [value.get(name) for name in ("queue_running", "queue_pending")]
    if not all(isinstance(part, list) for part in parts):
        raise Unreadable("queue_running and queue_pending are no lists")
    running, pending = (tuple(item for item in part or () if _is_item(item)) for part in parts)
    return Queue(running, pending)


async def read_large_queue(document: JsonStream) -> Queue:
    """Read a large /queue: of its items no more than tells their senders.

    Raises:
        Unreadable: it is no queue.
    """
    read: dict[str, list[Sequence[Any]]] = {}
    async for key in document.members():
        if key not in ("queue_running", "queue_pending"):
            await document.skip()
            continue
        items = read[key] = []
        async for place in document.items():
            if place >= MAX_ITEMS:
                raise TooLarge(f"it has more than {MAX_ITEMS} items", document.size)
            items.append(await _read_item(document))
    return read_queue(read)


def _is_item(item: Any) -> bool:
    return isinstance(item, list) and len(item) >= 2 and is_id(item[1])


def is_id(value: Any) -> bool:
    """Return True if a value may be a prompt's id: a text that is not too long."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ID


async def _read_item(document: JsonStream) -> list[Any]:
    """Read an item of a queue, or the prompt of an entry, which is of the same form, without its graph."""
    item: list[Any] = []
    if await document.kind() != b"[":
        await document.skip()
        return item
    async for place in document.items():
        if place < 2:
            item.append(await _read_small(document))
        elif place == 3 and await document.kind() == b"{":
            extra = {}
            async for key in document.members():
                if key in _READ_OF_EXTRA:
                    extra[key] = await _read_small(document)
                else:
                    await document.skip()
            item.append(extra)
        elif place == 4 and await document.kind() == b"[":
            item.append(await document.value(MAX_OUTPUT_IDS, MAX_RESULT_VALUES))
        else:
            await document.skip()
            if place <= 4:
                item.append(None)
    return item


async def _read_small(document: JsonStream) -> Any:
    """Read a number or a text; None for anything else."""
    if await document.kind() in (b"[", b"{"):
        await document.skip()
        return None
    return await document.value(2**12, 1)


# -- /history ------------------------------------------------------------------------------------------------------


def read_history_entry(value: Any, prompt_id: str, raw: bytes) -> HistoryEntry | None:
    """Read the answer to GET /history/{prompt_id}; None if there is no such entry.

    Raises:
        Unreadable: it is not of ComfyUI's form.
    """
    if not isinstance(value, dict):
        raise Unreadable("it is no object")
    if prompt_id not in value:
        return None
    entry = value[prompt_id]
    if not isinstance(entry, dict):
        raise Unreadable("it is no object")
    return HistoryEntry(checked(entry), json_codec.encoder_for(raw))


async def read_large_history_entry(document: JsonStream, prompt_id: str, maximum: int) -> HistoryEntry | None:
    """Read a large answer to GET /history/{prompt_id}, without the graph.

    Outputs that do not fit into `maximum` bytes with those before them are left out, and the entry says so.

    Raises:
        TooLarge: the rest of it has more.
        Unreadable: it is not of ComfyUI's form.
    """
    found: dict[str, Any] | None = None
    result: dict[str, list[bytes]] = {}
    async for key in document.members():
        if key != prompt_id or await document.kind() != b"{":
            await document.skip()
            continue
        found, result = {}, {}
        async for name in document.members():
            if name == "prompt":
                found[name] = await _read_item(document)
            elif name == "outputs" and await document.kind() == b"{":
                result |= await _read_outputs(document, maximum)
            elif name in _RESULT:
                pieces, _ = await document.raw(maximum)
                if pieces is None:
                    raise TooLarge(f"its {name} has more than {maximum} bytes", document.size)
                result[name] = pieces
            else:
                await document.skip()
    if found is None:
        return None
    whole = _object(result)
    is_long = sum(map(len, whole)) > MAX_INLINE
    if is_long or sum(map(json_codec.count_values, whole)) > MAX_RESULT_VALUES:
        return HistoryEntry(checked(found), document.encode, whole)
    # Each of these takes long, so others have their turn between.
    await asyncio.sleep(0)
    raw = b"".join(whole)
    encode = json_codec.encoder_for(raw)
    await asyncio.sleep(0)
    try:
        value = json_codec.loads(raw)
    except json_codec.MalformedJson as error:
        raise Unreadable("it is not JSON") from error
    await asyncio.sleep(0)
    return HistoryEntry(checked(found | value), encode)


async def _read_outputs(document: JsonStream, maximum: int) -> dict[str, list[bytes]]:
    """Read the outputs of an entry as they are written, and which are left out."""
    outputs: list[tuple[str, list[bytes]]] = []
    left_out: dict[str, int] = {}
    async for node_id in document.members():
        pieces, size = await document.raw(maximum)
        if pieces is None:
            left_out[node_id] = size
        else:
            outputs.append((node_id, pieces))
            maximum -= size
    read = {"outputs": _object(outputs)}
    return read | {LEFT_OUT: [json_codec.dumps(left_out)]} if left_out else read


def _object(members: Mapping[str, list[bytes]] | Sequence[tuple[str, list[bytes]]]) -> list[bytes]:
    """Return the pieces of a JSON object of encoded members."""
    pieces = [b"{"]
    for name, value in members.items() if isinstance(members, Mapping) else members:
        pieces += (b"," if len(pieces) > 1 else b"", json_codec.dumps_exact(name), b":", *value)
    return [*pieces, b"}"]


def checked(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry whose parts are of ComfyUI's types.

    Raises:
        Unreadable: its outputs or its status are not.
    """
    for name in _RESULT:
        part = entry.get(name)
        if part is not None and not isinstance(part, dict):
            raise Unreadable(f"its {name} are no object")
    checked = {**entry, "outputs": entry.get("outputs") or {}, "meta": entry.get("meta") or {}}
    if not all(isinstance(output, dict) for output in checked["outputs"].values()):
        raise Unreadable("an output is no object")
    if "prompt" in checked and not isinstance(checked["prompt"], list):
        del checked["prompt"]
    return checked


# -- /prompt -------------------------------------------------------------------------------------------------------


def read_taken(body: bytes) -> tuple[str | None, dict[str, Any]]:
    """Read a backend's 200 to POST /prompt: its own id for the prompt, and the node_errors of outputs left out."""
    try:
        value = json_codec.loads(body)
    except json_codec.MalformedJson:
        return None, {}
    if not isinstance(value, dict):
        return None, {}
    known_as, errors = value.get("prompt_id"), value.get("node_errors")
    return known_as if is_id(known_as) else None, errors if isinstance(errors, dict) else {}


# -- /system_stats, features -----------------------------------------------------------------------------------------


def read_system_stats(value: Any) -> SystemStats:
    """Read a /system_stats; numbers and devices that are not of ComfyUI's form are left out.

    Raises:
        Unreadable: it is not /system_stats.
    """
    system = value.get("system") if isinstance(value, dict) else None
    if not isinstance(system, dict):
        raise Unreadable("it has no system")
    listed = value.get("devices")
    devices = [device for device in listed if isinstance(device, dict)] if isinstance(listed, list) else []
    kept = [_with_amounts(device) for device in devices[:MAX_DEVICES]]
    return SystemStats({**value, "system": _with_amounts(system), "devices": kept})


def _with_amounts(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith(_AMOUNTS) or is_amount(value)}


def is_amount(value: Any) -> bool:
    """Return True for a whole number of bytes, or of anything else that can be counted."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER


def read_features(data: Mapping[str, Any]) -> dict[str, Any]:
    """Read the flags of a backend, without an upload limit that is none."""
    limit = data.get("max_upload_size")
    is_limit = is_amount(limit) and limit != 0
    return {key: value for key, value in data.items() if key != "max_upload_size" or is_limit}


# -- uploads -------------------------------------------------------------------------------------------------------


def read_stored(body: bytes) -> tuple[str, str]:
    """Read the answer to POST /upload/image: the subfolder and the name that the file has there.

    Raises:
        Unreadable: it names no file.
    """
    try:
        value = json_codec.loads(body)
    except json_codec.MalformedJson as error:
        raise Unreadable("it is not JSON") from error
    name, folder = (value.get("name"), value.get("subfolder") or "") if isinstance(value, dict) else (None, "")
    if not isinstance(name, str) or not isinstance(folder, str) or not 0 < len(name) <= 1024 or len(folder) > 1024:
        raise Unreadable("it names no file")
    return folder, name
