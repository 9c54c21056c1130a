"""The body of POST /api/v2/jobs: its checks in the API's order, and the body of POST /prompt made of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.json_members import members
from gateway.comfy.json_stream import Unreadable
from gateway.web.http.v2_errors import V2Error
from gateway.web.v2.labels import Note, note_of

RESERVED = ("webhook_url", "inputs")
PARTNER_KEY = "api_key_comfy_org"
MAX_KEY = 255
# Bytes of a body that is parsed at once, which is faster; and how deep it may lie (`dispatch.max_depth` is less).
SHORT, MAX_DEPTH = 32 * 1024, 450
# Bytes of a long body beside the graph.
MAX_BESIDE = 256 * 1024
_WORKFLOW = "workflow"
_NOT_JSON = "Body must be a JSON object."
_FIELDS = frozenset({*RESERVED, "metadata", "priority", "extra_data"})
_NO_WORKFLOW = "Missing 'workflow' (API-format graph)."


@dataclass(frozen=True, slots=True)
class NewJob:
    """A checked body: the encoded graph, the note, and the partner's key, which nobody keeps."""

    workflow: bytes
    note: Note
    partner_key: str | None = None

    def prompt_body(self, prompt_id: str, workflow: bytes) -> bytes:
        """Return the body of POST /prompt for it."""
        extra: dict[str, Any] = {"metadata": self.note.metadata} if self.note.metadata else {}
        if self.partner_key is not None:
            extra[PARTNER_KEY] = self.partner_key
        head = b'{"prompt_id":%b,"extra_data":%b,"prompt":' % (json_codec.dumps(prompt_id), json_codec.dumps(extra))
        return b"".join((head, workflow, b"}"))


def read(body: bytes, max_values: int) -> NewJob:
    """Check a body, which may have `max_values`. Of a repeated name the last one counts.

    Raises:
        V2Error: it can't be a job.
    """
    fields, workflow, is_ui_form = _split(body, max_values)
    if any(fields.get(name) is not None for name in RESERVED):
        raise V2Error(422, "invalid_workflow", "'webhook_url' and 'inputs' are reserved and not accepted.")
    if not workflow.startswith(b"{"):
        raise V2Error(422, "invalid_workflow", _NO_WORKFLOW)
    if is_ui_form:
        said = "This is a UI-export graph. Export the workflow in API format instead."
        raise V2Error(422, "workflow_format_ui", said)
    return NewJob(workflow, note_of(fields), _partner_key(fields.get("extra_data")))


def _split(body: bytes, max_values: int) -> tuple[dict[str, Any], bytes, bool]:
    """Return the fields beside the graph, the encoded graph, and True if it is in the form of the web UI.

    The graph is empty if there is none.
    """
    if len(body) > SHORT:
        if json_codec.count_values(body) > max_values:
            raise V2Error(413, "payload_too_large", f"The workflow has more than {max_values} values.")
        return _split_long(body)
    try:
        value, encode = json_codec.read_bounded(body, MAX_DEPTH, max_values)
    except json_codec.TooMuchJson as error:
        raise V2Error(413, "payload_too_large", f"The workflow is too large: {error}") from error
    except json_codec.MalformedJson as error:
        raise V2Error(400, "invalid_request", _NOT_JSON) from error
    if not isinstance(value, dict):
        raise V2Error(400, "invalid_request", _NOT_JSON)
    workflow = value.pop(_WORKFLOW, None)
    if not isinstance(workflow, dict):
        return value, b"", False
    return value, encode(workflow), isinstance(workflow.get("nodes"), list) and "links" in workflow


def _split_long(body: bytes) -> tuple[dict[str, Any], bytes, bool]:
    """Split a long body without parsing its graph, which another process does."""
    places: dict[str, tuple[int, int]] = {}
    try:
        for member in members(body, lambda: None):
            places[member.name] = member.start, member.end
    except Unreadable as error:
        raise V2Error(400, "invalid_request", _NOT_JSON) from error
    start, end = places.pop(_WORKFLOW, (0, 0))
    wanted = {name: place for name, place in places.items() if name in _FIELDS}
    if sum(stop - begin for begin, stop in wanted.values()) > MAX_BESIDE:
        raise V2Error(413, "payload_too_large", f"At most {MAX_BESIDE} bytes beside the workflow are taken.")
    try:
        fields = {name: json_codec.loads(body[begin:stop]) for name, (begin, stop) in wanted.items()}
    except json_codec.MalformedJson as error:
        raise V2Error(400, "invalid_request", _NOT_JSON) from error
    return fields, body[start:end], body[start : start + 1] == b"{" and _is_ui_form(body[start:end])


def _is_ui_form(workflow: bytes) -> bool:
    """Return True if a graph has a list of ``nodes``, and ``links``."""
    if b'"nodes"' not in workflow or b'"links"' not in workflow:
        return False
    try:
        found = {each.name: workflow[each.start : each.start + 1] for each in members(workflow, lambda: None)}
    except Unreadable as error:
        raise V2Error(400, "invalid_request", _NOT_JSON) from error
    return found.get("nodes") == b"[" and "links" in found


def _partner_key(extra: Any) -> str | None:
    if extra is None:
        return None
    if not isinstance(extra, dict) or not extra.keys() <= {PARTNER_KEY}:
        raise V2Error(400, "invalid_request", f"'extra_data' accepts only the '{PARTNER_KEY}' field.")
    key = extra.get(PARTNER_KEY)
    if PARTNER_KEY in extra and not isinstance(key, str):
        raise V2Error(400, "invalid_request", f"'extra_data.{PARTNER_KEY}' must be a string.")
    return key


def idempotency_key(given: str | None) -> str | None:
    """Return the Idempotency-Key of a request; None if it has none.

    Raises:
        V2Error: it is empty or too long.
    """
    if given is not None and not 1 <= len(given) <= MAX_KEY:
        raise V2Error(400, "invalid_request", f"Idempotency-Key must be 1-{MAX_KEY} characters.")
    return given


def error_of_refusal(status: int, body: Mapping[str, Any]) -> V2Error:
    """Return the refusal of a prompt, from ComfyUI's form, without what tells of a backend's host."""
    error = body.get("error")
    error = error if isinstance(error, dict) else {"message": str(error or "The workflow is refused")}
    type_, message, more = str(error.get("type", "")), str(error.get("message", "")), error.get("details")
    if status == 400 and type_ in ("invalid_json", "invalid_body"):
        return V2Error(400, "invalid_request", _NOT_JSON if type_ == "invalid_json" else f"{message}: {more}")
    if type_ in ("graph_too_large", "prompt_too_large") or status == 413:
        return V2Error(413, "payload_too_large", f"{message}: {more}" if more else message)
    if status == 403:
        return V2Error(403, "forbidden", f"{message}: {more}" if more else message)
    if status >= 500:
        return V2Error(502, "upstream_error", "The job could not be handed to a backend.", headers={"Retry-After": "5"})
    is_told = not more or type_ in ("prompt_outputs_failed_validation", "") or more == message
    shown = message if is_told else f"{message} ({more})"
    nodes = body.get("node_errors")
    return V2Error(422, "invalid_workflow", shown, {"node_errors": without_tracebacks(nodes) if nodes else {}})


def without_tracebacks(node_errors: Any) -> Any:
    """Return ComfyUI's errors of nodes without the tracebacks in them."""
    if not isinstance(node_errors, dict):
        return {}
    shown: dict[str, Any] = {}
    for node_id, node in node_errors.items():
        errors = node.get("errors") if isinstance(node, dict) else None
        if isinstance(errors, list):
            node = {**node, "errors": [_without_traceback(each) for each in errors]}
        shown[node_id] = node
    return shown


def _without_traceback(error: Any) -> Any:
    extra = error.get("extra_info") if isinstance(error, dict) else None
    if not isinstance(extra, dict) or "traceback" not in extra:
        return error
    return {**error, "extra_info": {key: value for key, value in extra.items() if key != "traceback"}}
