"""Merge responses of several backends into one: /object_info, /system_stats, /features. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gateway.catalogue.worker import no_rest
from gateway.comfy import json_codec
from gateway.comfy.object_info import BOUNDS


def object_info(infos: Sequence[Mapping[str, Any]], rest: Callable[[], None] = no_rest) -> dict[str, Any]:
    """Return the union of /object_info: all node classes, and of a shared class all choices of each list.

    The first backend's description of a class stands, and its choices keep their order. Other backends' choices come
    after, up to as many as one backend may have. `rest` is called between classes.
    """
    merged: dict[str, Any] = {}
    for info in infos:
        for name, description in info.items():
            known = merged.get(name)
            merged[name] = description if known is None else _merge_class(known, description)
            rest()
    return merged


def _merge_class(known: Any, other: Any) -> Any:
    if known is other or known == other or not isinstance(known, dict) or not isinstance(other, dict):
        return known
    inputs, theirs = known.get("input"), other.get("input")
    if not isinstance(inputs, dict) or not isinstance(theirs, dict):
        return known
    return {**known, "input": {part: _merge_inputs(own, theirs.get(part)) for part, own in inputs.items()}}


def _merge_inputs(known: Any, other: Any) -> Any:
    if not isinstance(known, dict) or not isinstance(other, dict):
        return known
    return {name: _merge_input(spec, other.get(name)) for name, spec in known.items()}


def _merge_input(known: Any, other: Any) -> Any:
    """Merge an input: its choices are its type, or under ``options`` if the type is COMBO (comfy_api, io.Combo)."""
    if not (isinstance(known, list) and isinstance(other, list) and known and other):
        return known
    if isinstance(known[0], list) and isinstance(other[0], list):
        return [_all_choices(known[0], other[0]), *known[1:]]
    if known[0] == other[0] == "COMBO" and len(known) > 1 and len(other) > 1:
        mine, theirs = known[1].get("options"), other[1].get("options")
        if isinstance(mine, list) and isinstance(theirs, list):
            return [known[0], {**known[1], "options": _all_choices(mine, theirs)}, *known[2:]]
    return known


def _all_choices(known: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    # A longer list takes the interpreter too long where it is encoded or sorted.
    return union([known, other], spelling)[: BOUNDS.max_choices]


def spelling(choice: Any) -> Any:
    """Return a choice's common spelling: Windows lists a model in a subfolder with ``\\``, others with ``/``."""
    return choice.replace("\\", "/") if isinstance(choice, str) else choice


def union(lists: Iterable[Sequence[Any]], key: Callable[[Any], Any] = lambda item: item) -> list[Any]:
    """Return all items, each once (by `key`), in the order in which they are first seen."""
    seen: list[Any] = []
    known: set[Any] = set()
    for items in lists:
        for item in items:
            own = key(item)
            if isinstance(own, (dict, list)):
                # Custom nodes list choices with pictures. Compared by their encoding, because objects have no hash.
                own = json_codec.dumps_sorted(own)
            if own not in known:
                known.add(own)
                seen.append(item)
    return seen


def system_stats(named: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return one /system_stats: the first backend's system, and each device, named after its backend."""
    system = dict(named[0][1].get("system") or {}) if named else {}
    told = [(name, stats.get("devices")) for name, stats in named]
    devices = [
        {**device, "name": f"{name}: {device.get('name', '')}", "index": place}
        for place, (name, device) in enumerate(
            (name, device)
            for name, listed in told
            for device in (listed if isinstance(listed, list) else ())
            if isinstance(device, dict)
        )
    ]
    return {"system": system, "devices": devices}


def features(flags: Sequence[Mapping[str, Any]], max_upload_size: int) -> dict[str, Any]:
    """Return the flags that all backends share. The upload limit is the one of the backend that takes most."""
    merged = dict(flags[0]) if flags else {}
    for other in flags[1:]:
        merged = {key: value for key, value in merged.items() if key in other and other[key] == value}
    merged["max_upload_size"] = upload_limit(flags, max_upload_size)
    # Ours, whatever the backends do: previews are given in the form that the client declares.
    merged["supports_preview_metadata"] = True
    return merged


def upload_limit(flags: Iterable[Mapping[str, Any]], own: int) -> int:
    """Return how many bytes an upload may have: as many as some backend takes (``--max-upload-size``), `own` at most.

    Not the smallest limit, because a backend that says a small one would keep everybody from uploading. Prompts that
    name a larger file go to the others.
    """
    told = [int(limit) for each in flags if (limit := each.get("max_upload_size")) is not None]
    return min(max(told, default=own), own)
