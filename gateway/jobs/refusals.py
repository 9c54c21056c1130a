"""What a tenant is told that may not use all of the fleet: what its prompt must not name, and no more. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.comfy import wire
from gateway.comfy.errors import error_body
from gateway.tenants.policy import Denied

# A prompt may name as many as it has inputs.
_MANY_DENIED = 100


def policy_error(found: Sequence[Denied]) -> dict[str, Any]:
    """The error of a prompt that names what its tenant may not use, at each node, in ComfyUI's form.

    It says the same whether a backend has such a class or model or not.
    """
    node_errors: dict[str, Any] = {}
    for each in found[:_MANY_DENIED]:
        own = node_errors.setdefault(
            each.node_id, {"errors": [], "dependent_outputs": [], "class_type": each.class_type}
        )
        own["errors"].append(_denied_error(each))
    first = _denied_error(found[0])
    title = {"node_id": found[0].node_id, "class_type": found[0].class_type, "node_title": found[0].title}
    extra = {**title, **first["extra_info"]}
    return error_body(first["type"], first["message"], f"Node ID '#{found[0].node_id}'", extra, node_errors)


def _denied_error(each: Denied) -> dict[str, Any]:
    if each.input_name is None:
        return {"type": "node_denied", "message": each.sentence, "details": "", "extra_info": {}}
    extra = {"input_name": each.input_name, "received_value": each.value}
    details = f"{each.input_name}: '{each.value}'"
    return {"type": "model_denied", "message": each.sentence, "details": details, "extra_info": extra}


def scrubbed(body: bytes) -> bytes:
    """A backend's refusal without what it lists of itself: a tenant that may not use all must not read it there."""
    try:
        value = wire.loads(body)
        for node in value["node_errors"].values():
            for error in node["errors"]:
                extra = error["extra_info"]
                extra.pop("input_config", None)
                if error["type"] == "value_not_in_list":
                    error["details"] = f"{extra.get('input_name')}: {extra.get('received_value')!r} not in list"
        if value["error"]["type"] == "prompt_outputs_failed_validation":
            value["error"]["details"] = "\n".join(
                f"{error['message']}: {error['details']}"
                for node in value["node_errors"].values()
                for error in node["errors"]
            )
    except (wire.MalformedJson, LookupError, TypeError, AttributeError):
        return wire.dumps(error_body("prompt_refused", "The backend refused this prompt"))
    return wire.dumps(value)
