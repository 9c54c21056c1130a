"""Redact refusals for restricted tenants, so that they reveal no node or model the tenant may not use. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.errors import clipped, error_body
from gateway.comfy.graph import LINKED, texts
from gateway.comfy.redaction import redact_value
from gateway.jobs.isolation.judgement import SETTING, Refusal
from gateway.tenants.policy import CALLER, Denied

# A prompt may name as many as it has inputs.
_MANY_DENIED = 100
_KINDS_OF_FILE = {"audio": "audio", "file": "video", "model_file": "3D model", "latent": "latent"}


def policy_error(found: Sequence[Denied]) -> dict[str, Any]:
    """Return the error of a prompt with forbidden node classes or models, at each node, in ComfyUI's form.

    The error is the same if a backend has such a class or model, and if none has.
    """
    return _error_of([(each, _denied_error(each)) for each in found[:_MANY_DENIED]])


def isolation_error(found: Sequence[Refusal]) -> dict[str, Any]:
    """Return the 400 of a prompt that shared backends may not run: each reason at its node, in ComfyUI's form."""
    return _error_of([(each, _isolation_error(each)) for each in found[:_MANY_DENIED]])


def requirement_error(required: str, backends: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the 400 of a prompt whose requirement no backend meets.

    Args:
        required: the prompt's own requirement; empty if only the operator requires something. The operator's conditions
            are told to nobody.
        backends: the facts about the backends by their names; None if the caller must not know them.
    """
    details = f"it requires {required}" if required else "the operator requires more for this caller than they have"
    extra: dict[str, Any] = {"require": required} if backends is None else {"require": required, "backends": backends}
    return error_body("requirement_unmet", f"No backend that {CALLER} may use meets the requirement", details, extra)


def _error_of(found: Sequence[tuple[Denied | Refusal, dict[str, Any]]]) -> dict[str, Any]:
    """Return an error body: `error` is the first error found, and `node_errors` holds all of them."""
    node_errors: dict[str, Any] = {}
    for each, error in found:
        own = {"errors": [], "dependent_outputs": [], "class_type": each.class_type}
        node_errors.setdefault(each.node_id, own)["errors"].append(error)
    each, first = found[0]
    title = {"node_id": each.node_id, "class_type": each.class_type, "node_title": each.title}
    extra = {**title, **first["extra_info"]}
    return error_body(first["type"], first["message"], f"Node ID '#{each.node_id}'", extra, node_errors)


def _denied_error(each: Denied) -> dict[str, Any]:
    if each.input_name is None:
        return {"type": "node_denied", "message": each.sentence, "details": "", "extra_info": {}}
    extra = {"input_name": each.input_name, "received_value": each.value}
    details = f"{each.input_name}: '{each.value}'"
    return {"type": "model_denied", "message": each.sentence, "details": details, "extra_info": extra}


def _isolation_error(each: Refusal) -> dict[str, Any]:
    extra: dict[str, Any] = {"pack": each.pack, "setting": SETTING}
    if each.input_name is None:
        return {"type": "node_not_trusted", "message": each.reason, "details": "", "extra_info": extra}
    message = f"{each.class_type}.{each.input_name}: {each.reason}"
    extra["input_name"] = each.input_name
    return {"type": "input_refused", "message": message, "details": each.input_name, "extra_info": extra}


# A predicate: (class, input, choices) is True if a tenant must not read the choices of that input.
Hides = Callable[[str, str, Sequence[Any]], bool]


def scrubbed(body: bytes, hides: Hides) -> bytes:
    """Return a backend's refusal without the lists of choices that `hides`."""
    try:
        value = json_codec.loads(body)
        _scrub_body(value, hides)
    except (json_codec.MalformedJson, LookupError, TypeError, AttributeError):
        return json_codec.dumps(error_body("prompt_refused", "The backend refused this prompt"))
    return json_codec.dumps(value)


def _scrub_body(value: Any, hides: Hides) -> bool:
    """Remove lists from a refusal's body. Return True if the body had any that must be hidden."""
    found = scrub(value["node_errors"], hides)
    if found and value["error"]["type"] == "prompt_outputs_failed_validation":
        # Write the details anew, because ComfyUI repeats each node's errors there (execution.py, validate_prompt).
        told = (error for node in value["node_errors"].values() for error in node["errors"])
        value["error"]["details"] = "\n".join(f"{error['message']}: {error['details']}" for error in told)
    return found


def scrub(node_errors: Any, hides: Hides) -> bool:
    """Remove lists from ``node_errors``, in place. Return True if there were any that must be hidden.

    Raises:
        LookupError, TypeError, AttributeError: the errors do not have ComfyUI's form.
    """
    found = False
    for node in node_errors.values():
        for error in node["errors"]:
            extra = error["extra_info"]
            if not hides(str(node["class_type"]), str(extra.get("input_name")), _choices(extra.get("input_config"))):
                continue
            found = _hide_list(error) or found
    return found


def _hide_list(error: dict[str, Any]) -> bool:
    """Remove an input's choices, and their number, from an error. Return True if the error revealed any."""
    extra = error["extra_info"]
    if "input_config" not in extra and error["type"] not in ("value_not_in_list", "return_type_mismatch"):
        return False
    extra.pop("input_config", None)
    if error["type"] == "value_not_in_list":
        error["details"] = f"{extra.get('input_name')}: {extra.get('received_value')!r} not in list"
    if error["type"] == "return_type_mismatch":
        # Replace a type that is a list, because the type of an input or output may be a list of choices.
        received = extra.get("received_type")
        extra["received_type"] = received if isinstance(received, str) else "COMBO"
        error["details"] = f"{extra.get('input_name')}, received_type({extra['received_type']}) mismatch"
    return True


def redacted(body: bytes, hides: Hides) -> bytes:
    """Return a refusal as an isolated tenant may read it: without lists that `hides`, and without absolute paths.

    If there is nothing to be hidden, the bytes stay as they are.
    """
    try:
        value = json_codec.loads(body)
        found, told = redact_body(value, hides)
    except (json_codec.MalformedJson, LookupError, TypeError, AttributeError):
        return json_codec.dumps(error_body("prompt_refused", "The backend refused this prompt"))
    return json_codec.dumps_exact(told) if found or told != value else body


def redact_body(value: Any, hides: Hides) -> tuple[bool, Any]:
    """Return a refusal's body as `redacted` does, and True before it if a list was hidden; `value` is changed.

    Raises:
        LookupError, TypeError, AttributeError: it is not of ComfyUI's form.
    """
    found = _scrub_body(value, hides)
    return found, redact_value(value)


def redact_node_errors(node_errors: Any, hides: Hides) -> Any:
    """Return ``node_errors`` as an isolated tenant may read them; they are changed.

    Raises:
        LookupError, TypeError, AttributeError: they are not of ComfyUI's form.
    """
    scrub(node_errors, hides)
    return redact_value(node_errors)


def _choices(config: Any) -> Sequence[Any]:
    """Return an input's choices, which are its type, or under ``options`` (execution.py, validate_inputs)."""
    for part in config if isinstance(config, list) else ():
        choices = part.get("options") if isinstance(part, dict) else part
        if isinstance(choices, list):
            return choices
    return ()


def file_check(wrong: frozenset[tuple[str, str]]) -> Callable[[Mapping[str, Any]], list[tuple[str, str]]]:
    """Return a node's own check of its inputs, which fails for each of these (input, file): the file is missing."""

    def check(inputs: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [
            (name, invalid_file(name, text))
            for name, value in inputs.items()
            for text in (LINKED, *(text for _, text in texts(value)))
            if (name, text) in wrong
        ]

    return check


def invalid_file(input_name: str, value: str) -> str:
    """Return ComfyUI's message for a missing file."""
    return f"{input_name} - Invalid {_KINDS_OF_FILE.get(input_name, 'image')} file: {clipped(value)}"
