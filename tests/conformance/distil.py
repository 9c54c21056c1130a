"""Makes gateway/conformance/expected.json of the recordings: ``python -m tests.conformance.distil``.

A test fails when the two part. What one recording can't show (which keys are ids, what may be null, what a list that
was empty holds) stands in the tables here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.conformance.node_classes import distilled as distilled_class
from gateway.conformance.shapes import kind
from tests.conformance.replay import RECORDINGS, recording

TARGET = Path(__file__).parents[2] / "gateway" / "conformance" / "expected.json"
Shape = dict[str, Any]

# Not asked: /internal is for the web UI alone, its answers "may change at any time" (api_server/routes/internal), and
# a gateway keeps it for admins. /api/assets depends on a switch. /view of a file that the recording uploaded.
_LEFT_OUT = ("/internal/", "/api/assets", "/view?filename=pic.png")
_ASKED_OF_A_FILE = "/view?filename=pic.png&type=bogus"

# What stands at a path: "map" an object whose keys are ids, "tuple" a list in which each place has its meaning, "flags"
# an object in which any key may be absent, "open" an object with what nodes and clients put into it, "graph" a node of
# a workflow, "sections" the inputs of a node class by section.
_ENTRY = {"prompt": "tuple", "prompt[2]": "map", "prompt[2].*": "graph", "prompt[3]": "open", "outputs": "map"}
_ENTRY |= {"outputs.*": "open", "meta": "map", "status.messages[*]": "tuple", "status.messages[*][1]": "open"}
_QUEUE_ITEM = {"": "tuple", "[2]": "map", "[2].*": "graph", "[3]": "open"}
_MEANING: dict[str, dict[str, str]] = {
    "/history": {"$": "map"} | {f"$.*.{path}": meaning for path, meaning in _ENTRY.items()},
    "/queue": {
        f"$.queue_{state}[*]{path}": meaning
        for state in ("running", "pending")
        for path, meaning in _QUEUE_ITEM.items()
    },
    "/jobs": {"$.jobs[*].preview_output": "open", "$.jobs[*].execution_error": "open"},
    "/features": {"$": "flags", "$.extension": "flags"},
    "/node_replacements": {"$": "map", "$.*[*].input_mapping[*]": "open", "$.*[*].output_mapping[*]": "open"},
    "/users": {"$": "flags"},
    "description": {"$.input": "sections", "$.input_order": "open"},
}
# Versions of packages that may not be installed.
_NULLABLE = {
    "$.system.required_frontend_version",
    "$.system.installed_templates_version",
    "$.system.required_templates_version",
    "$.system.comfy_package_versions[*].installed",
    "$.system.comfy_package_versions[*].required",
}
_STRINGS: Shape = {"type": "array", "items": {"type": "string"}}
_OBJECT: Shape = {"type": "object"}
# A node of a graph. Clients add keys of their own.
_NODE: Shape = {
    "type": "object",
    "properties": {"class_type": {"type": "string"}, "inputs": _OBJECT},
    "required": ["class_type", "inputs"],
    "additionalProperties": {},
}
# Elided in the recordings, or empty there.
_KNOWN: dict[str, Shape] = {
    "/embeddings": _STRINGS,
    "/models/checkpoints": _STRINGS,
    "/extensions": _STRINGS,
    "/i18n": _OBJECT,
    "/workflow_templates": _OBJECT,
    "/global_subgraphs": _OBJECT,
}
# The directory of workflows is there as soon as one was saved.
_ALSO: dict[str, Shape] = {
    "/userdata?dir=workflows": {"status": 200, "media_type": "application/json", "shape": _STRINGS}
}


def shape_of(value: Any, meaning: dict[str, str], path: str = "$") -> Shape:
    """The shape of a recorded value. A null says nothing of what else may stand there."""
    means = meaning.get(path)
    type_ = kind(value)
    if value is None:
        return {}
    if means == "open":
        return _OBJECT
    if means == "graph":
        return _NODE
    if means == "sections":
        return {"type": type_, "additionalProperties": _OBJECT}
    if means == "tuple":
        return {
            "type": type_,
            "prefixItems": [shape_of(item, meaning, f"{path}[{n}]") for n, item in enumerate(value)],
        }
    if means == "map":
        values = [shape_of(item, meaning, f"{path}.*") for item in value.values()]
        return {"type": type_, "additionalProperties": _all_of(values)} if values else {"type": type_}
    if type_ == "array":
        items = [shape_of(item, meaning, f"{path}[*]") for item in value]
        return {"type": type_, "items": _all_of(items)} if items else {"type": type_}
    if type_ == "object":
        properties = {key: shape_of(item, meaning, f"{path}.{key}") for key, item in value.items()}
        required = [] if means == "flags" else sorted(properties)
        return {"type": type_, "properties": properties, "required": required} if properties else {"type": type_}
    return {"type": [type_, "null"] if path in _NULLABLE else type_}


def _all_of(shapes: list[Shape]) -> Shape:
    merged: Shape | None = None
    for shape in shapes:
        merged = shape if merged is None else merge(merged, shape)
    return merged or {}


def merge(one: Shape, other: Shape) -> Shape:
    """The shape that values of both shapes have."""
    if not one or not other:
        return {}
    types = sorted({*_list(one["type"]), *_list(other["type"])})
    merged: Shape = {"type": types[0] if len(types) == 1 else types}
    if "properties" in one or "properties" in other:
        mine, theirs = one.get("properties", {}), other.get("properties", {})
        merged["properties"] = {
            key: merge(mine[key], theirs[key]) if key in mine and key in theirs else mine.get(key, theirs.get(key))
            for key in sorted({*mine, *theirs})
        }
        merged["required"] = sorted({*one.get("required", ())} & {*other.get("required", ())})
    for word in ("items", "additionalProperties"):
        if word in one and word in other:
            merged[word] = merge(one[word], other[word])
        elif word in one or word in other:
            merged[word] = one.get(word, other.get(word))
    if "prefixItems" in one and "prefixItems" in other:
        merged["prefixItems"] = [merge(a, b) for a, b in zip(one["prefixItems"], other["prefixItems"], strict=True)]
    return merged


def _list(types: str | list[str]) -> list[str]:
    return [types] if isinstance(types, str) else types


def _route(path: str) -> str:
    return path.partition("?")[0].removeprefix("/api")


def _media_type(recorded: dict[str, Any]) -> str | None:
    named = recorded["headers"].get("Content-Type")
    return named.partition(";")[0] if named else None


def _recorded() -> list[dict[str, Any]]:
    """Every exchange that was recorded, those between events included."""
    plain = [e for name in ("misc_gets", "queue_lifecycle", "upload_and_view") for e in recording(f"{name}.json")]
    logs = [recording(path.name)["log"] for path in sorted(RECORDINGS.glob("ws_*.json"))]
    return plain + [entry["exchange"] for log in logs for entry in log if entry["dir"] == "http"]


def _is_asked(recorded: dict[str, Any]) -> bool:
    request = recorded["request"]
    if request["method"] != "GET" or recorded["status"] == 206:
        return False
    return request["path"] == _ASKED_OF_A_FILE or not request["path"].startswith(_LEFT_OUT)


def _is_of_one_job(path: str) -> bool:
    """It names an id that only the recorded server knows."""
    return path.startswith(("/history/", "/api/jobs/")) and not path.endswith("/unknown")


def _shapes(exchanges: list[dict[str, Any]]) -> dict[str, Shape]:
    """The shape of each route's answer; entries of single jobs count as entries of /history."""
    found: dict[str, list[Shape]] = {}
    for recorded in exchanges:
        request = recorded["request"]
        is_json = recorded["status"] == 200 and _media_type(recorded) == "application/json"
        if request["method"] == "GET" and is_json and recorded["body"] != "(elided)":
            route = _route(request["path"])
            if route.startswith("/history/") and recorded["body"]:
                route = "/history"
            found.setdefault(route, []).append(shape_of(recorded["body"], _MEANING.get(route, {})))
    shapes = {route: _all_of(shapes) for route, shapes in found.items()}
    jobs = shapes["/jobs"]["properties"]["jobs"]
    jobs["items"] = _all_of(
        [jobs["items"], *(_listed(recorded["body"]) for recorded in exchanges if _is_job(recorded))]
    )
    return shapes


def _is_job(recorded: dict[str, Any]) -> bool:
    return recorded["status"] == 200 and "execution_status" in (recorded["body"] or {})


def _listed(job: dict[str, Any]) -> Shape:
    """The shape of a recorded /api/jobs/{id}, as far as it stands in the list as well."""
    listed = {key: value for key, value in job.items() if key not in ("outputs", "execution_status", "workflow")}
    return shape_of(listed, _MEANING["/jobs"], "$.jobs[*]")


def _answer(recorded: dict[str, Any], shapes: dict[str, Shape]) -> Shape:
    route, media_type = _route(recorded["request"]["path"]), _media_type(recorded)
    answer: Shape = {"status": recorded["status"]}
    if media_type == "application/json":
        known = _KNOWN.get(route) or shapes.get(route)
        answer["media_type"] = media_type
        answer["shape"] = known if recorded["status"] == 200 else shape_of(recorded["body"], {})
    return answer


def distilled() -> dict[str, Any]:
    """What expected.json is to hold."""
    recorded = _recorded()
    shapes = _shapes(recorded)
    classes = {
        name: description
        for name, description in recording("object_info_subset.json").items()
        # Those of a custom node made for the recordings.
        if not description["python_module"].startswith("custom_nodes.")
    }
    exchanges: dict[str, dict[str, Any]] = {}
    for exchange in recorded:
        path = exchange["request"]["path"]
        if not _is_asked(exchange) or _is_of_one_job(path) or path in exchanges:
            continue
        answers = [_answer(exchange, shapes), *([_ALSO[path]] if path in _ALSO else [])]
        exchanges[path] = {"path": path, "answers": answers}
    map_of_classes = {"status": 200, "media_type": "application/json", "shape": {"type": "object"}}
    exchanges["/object_info/EmptyImage"] = {
        "path": "/object_info/EmptyImage",
        "answers": [map_of_classes],
        "node_classes": ["EmptyImage"],
    }
    exchanges["/object_info"] = {"path": "/object_info", "answers": [map_of_classes], "node_classes": sorted(classes)}
    descriptions = [shape_of(description, _MEANING["description"]) for description in classes.values()]
    return {
        "comfyui_version": _version(),
        "exchanges": list(exchanges.values()),
        "messages": _messages(),
        "description": _only_required(_all_of(descriptions)),
        "node_classes": {name: distilled_class(description) for name, description in sorted(classes.items())},
    }


def _only_required(shape: Shape) -> Shape:
    """What not all descriptions have is not compared, in those that have it neither."""
    always = {key: shape["properties"][key] for key in shape["required"]}
    return {**shape, "properties": {**{key: {} for key in shape["properties"]}, **always}}


def _version() -> str:
    versions = {recording(path.name)["comfyui_version"] for path in sorted(RECORDINGS.glob("ws_*.json"))}
    (version,) = versions
    return str(version)


def _messages() -> dict[str, Shape]:
    """The first two messages of a session."""
    log = recording("ws_success_with_preview_metadata.json")["log"]
    told = [entry["json"] for entry in log if entry["dir"] == "server->client" and "json" in entry]
    status = next(message for message in told if message["type"] == "status")
    flags = next(message for message in told if message["type"] == "feature_flags")
    shapes = {"status": shape_of(status, {}), "feature_flags": shape_of(flags, {"$.data": "flags"})}
    shapes["feature_flags"]["properties"]["data"] |= _shapes(_recorded())["/features"]
    return shapes


if __name__ == "__main__":
    TARGET.write_text(json.dumps(distilled(), indent=1) + "\n", "utf-8")
