"""Parse and check the body of POST /prompt. Pure, from bytes to a `Submission` or a `Rejection`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.comfy import graph, json_codec
from gateway.comfy.errors import error_body, invalid_prompt_id, is_prompt_id, no_prompt
from gateway.comfy.file_refs import FileRef
from gateway.comfy.jobs_api import encoded_workflow_id
from gateway.comfy.node_review import file_inputs as reviewed_file_inputs
from gateway.comfy.pack_routes import INTERACTIVE
from gateway.jobs.routing.requirements import Requirement, joined
from gateway.jobs.routing.signature import NO_WORKLOAD, Workload, read_workload
from gateway.jobs.state import partner_keys, prompt_webhook
from gateway.jobs.state.prompt_bounds import (
    Bounds,
    Rejection,
    check_count,
    check_graph,
    check_targets,
    check_texts,
    check_values,
    drop_unreadable_meta,
    is_graph,
    is_web_workflow,
    name_of,
    rejection,
    web_workflow,
)
from gateway.jobs.state.prompt_requirement import decode_requirement, requirement_of

_OWN_KEYS = frozenset({"prompt", "prompt_id", "client_id", "extra_data", "number", "front"})
# The keys of extra_data that have fields of their own in a `Submission`.
_TAKEN_OUT = frozenset({*partner_keys.NAMES, prompt_webhook.NAME, "client_id"})
# A year, in seconds.
MAX_DEADLINE = 31_536_000
# The key of extra_data with the priority, and the highest one.
PRIORITY, MAX_PRIORITY = "gateway_priority", 9
# Bytes of client_id and partner keys, which are kept parsed and told again and again.
MAX_HEAD = 64 * 1024
# How deep in an input a file's name may lie: each keeps its path.
MAX_FILE_DEPTH = 32
# Bytes of memory that a node and a file's name take, beside those of the body.
_NODE_BYTES, _FILE_BYTES = 160, 1_024


_BOUNDS = Bounds()


def id_in_use() -> Rejection:
    """Conflict: the id that a client gave belongs to another prompt already."""
    return Rejection(
        409,
        error_body(
            "prompt_id_in_use",
            "prompt_id is in use for another prompt",
            "send each prompt with an id of its own, or without one to let the server generate it",
        ),
    )


@dataclass(frozen=True, slots=True)
class Submission:
    """Checked body of POST /prompt. Graph and extra_data stay encoded: a tenth of the memory of the parsed form.

    `number` is the client's own, if it gave one. `secrets` are the partner keys, kept in memory alone. `deadline` is in
    seconds from acceptance, `workflow_id` is encoded. A prompt `by_admin` may name and run everything. `judgement` is
    the result of `inspect` in `read`; the journal does not keep it. `more_bytes` is the size of `client_id` and
    `secrets`, if they are large. `is_plain` is True if orjson can write the whole body. `request_id` is the id of the
    request, for log lines; it is empty if an earlier version of the gateway accepted the prompt. `bound` are the
    backends that keep state which the prompt names, each with one of the ids; it can run on a backend with all of it.
    `model` is the file name of the diffusion model, "" if there is none. `workload` is what its run time depends on.
    `webhook` was `extra_data.webhook`, which `extra_data` has no more; only the journal's own column for it has it.
    `metadata` is `extra_data.metadata` as events have it, encoded; "" if there is none. `priority` is the one that the
    client asks for: `extra_data.gateway_priority`. `require` are the conditions that it puts to its backend.
    """

    prompt: bytes
    extra_data: bytes
    rest: bytes
    client_id: Any
    gave_client_id: bool
    prompt_id: str | None
    number: float | None
    front: bool
    targets: list[str] | None
    nodes: tuple[tuple[str, str], ...]
    models: frozenset[str]
    files: tuple[graph.FileInput, ...]
    separated: tuple[tuple[str, str, str], ...]
    digest: bytes | None
    secrets: Mapping[str, Any] = field(default_factory=dict)
    needs_secrets: bool = False
    deadline: float | None = None
    workflow_id: bytes | None = None
    by_admin: bool = False
    judgement: object = field(default=None, compare=False)
    more_bytes: int = field(default=0, compare=False)
    is_plain: bool = field(default=False, compare=False)
    request_id: str = field(default="", compare=False)
    bound: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    model: str = ""
    workload: Workload = field(default=NO_WORKLOAD, compare=False)
    webhook: prompt_webhook.PromptWebhook | None = None
    metadata: bytes = b""
    priority: int = 0
    require: Requirement = ()

    def graph(self) -> Any:
        """Return the graph, parsed anew."""
        return (json_codec.loads_plain if self.is_plain else json_codec.loads)(self.prompt)

    @property
    def size(self) -> int:
        """Return the bytes of memory that the submission takes, as far as its client controls them."""
        known = len(self.nodes) * _NODE_BYTES + len(self.files) * _FILE_BYTES
        return len(self.prompt) + len(self.extra_data) + len(self.rest) + known + self.more_bytes

    @property
    def kind(self) -> frozenset[str]:
        """Return the kind of work: the node classes and the models."""
        return frozenset(class_type for _, class_type in self.nodes) | self.models

    @property
    def is_interactive(self) -> bool:
        """Return True if a node waits for a request that names the node's id alone."""
        return any(class_type in INTERACTIVE for _, class_type in self.nodes)

    @property
    def lacks_secrets(self) -> bool:
        """Return True if a restart lost the prompt's partner keys, so that no backend can run it with them."""
        return self.needs_secrets and not self.secrets

    def without_secret(self, key: str) -> Submission:
        """Return the submission without the partner keys that equal `key`."""
        kept = {name: secret for name, secret in self.secrets.items() if secret != key}
        return self if len(kept) == len(self.secrets) else replace(self, secrets=kept, needs_secrets=bool(kept))

    def censor(self) -> partner_keys.Censor:
        """Return a censor that removes the prompt's partner keys from text and JSON."""
        return partner_keys.Censor(self.secrets, had_secrets=self.needs_secrets)

    @property
    def session_id(self) -> str | None:
        """Return the clientId whose sockets get the prompt's events, if any."""
        return self.client_id if isinstance(self.client_id, str) and self.client_id else None


def read(
    body: bytes,
    file_inputs: Collection[tuple[str, str]] = (),
    bounds: Bounds = _BOUNDS,
    *,
    by_admin: bool = False,
    inspect: Callable[[Mapping[str, Any], bool], object] | None = None,
    own_name: Callable[[FileRef], FileRef] | None = None,
    request_id: str = "",
) -> Submission:
    """Read a POST /prompt body. `file_inputs` are the (class_type, input) that are known to name a file.

    `inspect` gets the parsed graph, and True if the graph is plain (`Submission.is_plain`). Its result becomes the
    submission's `judgement`. `own_name` returns the tenant's name for one of its uploads that the prompt names by a
    secret folder, because pictures hold their prompts with such names.

    A backend gets JSON that is made from the parsed values, never from `body`: of a repeated key the last one counts,
    as in ComfyUI, and nothing parses the bytes again. If the body itself is a graph, as the web UI exports it, it is
    taken as the prompt; ComfyUI answers "No prompt provided".

    Raises:
        Rejection: the body can't be a prompt. Validation and the backend judge later if its graph can run.
    """
    try:
        # Measure only long bodies, because escaping makes no byte more than six times as long.
        if len(body) > bounds.bytes // 6 and (size := json_codec.escaped_size(body)) > bounds.bytes:
            raise json_codec.TooMuchJson(
                f"it has {size} bytes in ASCII; at most {bounds.bytes} (dispatch.max_prompt_bytes)"
            )
        value, dumps = json_codec.read_bounded(body, bounds.depth, bounds.body_values)
    except json_codec.TooMuchJson as error:
        raise rejection("graph_too_large", "The graph is too large", str(error)) from error
    except json_codec.MalformedJson as error:
        raise rejection("invalid_json", "The body is not JSON", str(error)) from error
    if not isinstance(value, dict):
        raise rejection("invalid_body", "The body must be a JSON object", f"got {name_of(value)}")
    if "prompt" not in value:
        if not is_graph(value):
            raise web_workflow() if is_web_workflow(value) else Rejection(400, no_prompt())
        value = {"prompt": value}
    prompt_id = value.get("prompt_id")
    if prompt_id is not None and not is_prompt_id(prompt_id):
        raise Rejection(400, invalid_prompt_id())
    prompt = value["prompt"]
    check_graph(prompt, bounds)
    drop_unreadable_meta(prompt)
    if len(body) > bounds.bytes // 6:
        check_texts(prompt, 2 * bounds.bytes)
    if len(body) > bounds.graph_values:
        check_values(body, prompt, dumps, bounds.graph_values)
    found = graph.survey(prompt, file_inputs, bounds.nodes)
    check_count("files that it names", len(found.files), bounds.nodes)
    if any(len(file.path) > MAX_FILE_DEPTH for file in found.files):
        details = f"it names a file more than {MAX_FILE_DEPTH} deep in an input"
        raise rejection("graph_too_large", "The graph is too large", details)
    check_targets(value.get("partial_execution_targets"), bounds.outputs)
    if own_name is not None and found.files and graph.rename_files(prompt, found.files, own_name):
        found = graph.survey(prompt, file_inputs, bounds.nodes)
    judgement = inspect(prompt, dumps is json_codec.dumps) if inspect is not None else None
    return _submission(value, found, dumps, body, by_admin, judgement, request_id)


def _submission(
    value: dict[str, Any],
    found: graph.Survey,
    dumps: Callable[[Any], bytes],
    body: bytes,
    by_admin: bool,
    judgement: object,
    request_id: str,
) -> Submission:
    extra = value.get("extra_data")
    if extra is None:
        extra = {}
    if not isinstance(extra, dict):
        raise rejection("invalid_extra_data", "extra_data must be an object", f"got {name_of(extra)}")
    gave_client_id = "client_id" in value or "client_id" in extra
    client_id = value["client_id"] if "client_id" in value else extra.get("client_id")
    secrets = {key: extra[key] for key in partner_keys.NAMES if key in extra}
    webhook = prompt_webhook.webhook_of(extra)
    more_bytes = _bytes_of(client_id, secrets) + (webhook.size if webhook is not None else 0)
    shown = {key: item for key, item in extra.items() if key not in _TAKEN_OUT}
    rest = {key: item for key, item in value.items() if key not in _OWN_KEYS}
    if (shown or rest) and partner_keys.may_hold(body):
        shown, rest = partner_keys.without(shown), partner_keys.without(rest)
    metadata = prompt_webhook.metadata_of(shown)
    targets, prompt_id = rest.get("partial_execution_targets"), value.get("prompt_id")
    return Submission(
        prompt=json_codec.packed(dumps(value["prompt"])),
        extra_data=json_codec.packed(dumps(shown)) if shown else b"{}",
        rest=json_codec.packed(dumps(rest)) if rest else b"{}",
        client_id=client_id,
        gave_client_id=gave_client_id,
        prompt_id=prompt_id,
        number=_number(value),
        front=bool(value.get("front")),
        targets=targets if isinstance(targets, list) else None,
        nodes=found.nodes,
        models=found.models,
        files=found.files,
        separated=found.separated,
        model=found.model,
        workload=read_workload(value["prompt"], found),
        digest=_digest(value) if prompt_id is not None else None,
        secrets=secrets,
        needs_secrets=bool(secrets),
        deadline=_deadline(extra),
        priority=_priority(extra),
        require=requirement_of(extra),
        workflow_id=encoded_workflow_id(shown),
        by_admin=by_admin,
        judgement=judgement,
        more_bytes=more_bytes + len(metadata),
        is_plain=dumps is json_codec.dumps,
        request_id=request_id,
        webhook=webhook,
        metadata=metadata,
    )


def _bytes_of(client_id: Any, secrets: Mapping[str, Any], *, is_new: bool = True) -> int:
    if not secrets and (client_id is None or (type(client_id) is str and len(client_id) < _NODE_BYTES)):
        return 0
    size = len(json_codec.dumps_exact([client_id, secrets]))
    if is_new and size > MAX_HEAD:
        details = f"client_id and partner keys have {size} bytes together; at most {MAX_HEAD} are taken"
        raise rejection("invalid_body", "The body can't be read", details)
    return size


def _number(value: Mapping[str, Any]) -> float | None:
    if "number" not in value:
        return None
    try:
        number = float(value["number"])
    except (TypeError, ValueError, OverflowError) as error:
        raise rejection("invalid_number", "number must be a number", str(error)) from error
    if not math.isfinite(number):
        raise rejection("invalid_number", "number must be finite", repr(value["number"])[:100])
    return number


def _deadline(extra: Mapping[str, Any]) -> float | None:
    seconds = extra.get("deadline_seconds")
    if seconds is None:
        return None
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds <= MAX_DEADLINE:
        raise rejection(
            "invalid_deadline",
            f"extra_data.deadline_seconds must be a number greater than 0 and at most {MAX_DEADLINE}",
            f"got {repr(seconds)[:100]}; give the seconds after which the job is to be cancelled, or leave it out",
        )
    return float(seconds)


def _priority(extra: Mapping[str, Any]) -> int:
    priority = extra.get(PRIORITY)
    if priority is None:
        return 0
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= MAX_PRIORITY:
        raise rejection(
            "invalid_priority",
            f"extra_data.{PRIORITY} must be a whole number from 0 to {MAX_PRIORITY}",
            f"got {repr(priority)[:100]}; the higher goes first; leave it out for 0",
        )
    return priority


def _digest(value: Mapping[str, Any]) -> bytes:
    """Return a digest of a body that does not depend on the order of its keys."""
    try:
        return hashlib.sha256(json_codec.dumps_sorted(value)).digest()
    except (TypeError, RecursionError) as error:
        raise rejection("invalid_body", "The body can't be read", str(error)) from error


def encode_for_journal(submission: Submission) -> bytes:
    """Return a submission without its webhook as the journal keeps it; `decode_from_journal` reads it."""
    return b"".join(
        (
            b'{"prompt":',
            submission.prompt,
            b',"extra_data":',
            submission.extra_data,
            b',"rest":',
            submission.rest,
            b',"head":',
            json_codec.dumps(
                {
                    "client_id": submission.client_id,
                    "gave_client_id": submission.gave_client_id,
                    "prompt_id": submission.prompt_id,
                    "number": submission.number,
                    "front": submission.front,
                    "needs_secrets": submission.needs_secrets,
                    "by_admin": submission.by_admin,
                    "file_inputs": _declared(submission),
                    "request_id": submission.request_id,
                    "bound": submission.bound,
                    "require": joined(submission.require),
                }
            ),
            b"}",
        )
    )


def _declared(submission: Submission) -> list[tuple[str, str]]:
    if not submission.files:
        return []
    classes = dict(submission.nodes)
    return sorted({(classes[file.node_id], file.input_name) for file in submission.files if file.declared})


def decode_from_journal(data: bytes, digest: bytes | None, webhook: bytes = b"") -> Submission:
    """Return a submission that an earlier run of the gateway accepted, without its partner keys.

    Args:
        webhook: its webhook, from the column of its own.
    """
    # Take the file inputs from the journal, because the catalogue is not known yet.
    value, is_plain = json_codec.loads_told(data)
    head, dumps = value["head"], json_codec.dumps if is_plain else json_codec.encoder_for(data)
    file_inputs = reviewed_file_inputs() | {(class_type, name) for class_type, name in head.get("file_inputs", ())}
    try:
        deadline = _deadline(value["extra_data"])
    except Rejection:
        # If the deadline is invalid, ignore it, because a version without deadlines accepted the prompt.
        deadline = None
    try:
        priority = _priority(value["extra_data"])
    except Rejection:
        priority = 0
    targets, found = value["rest"].get("partial_execution_targets"), graph.survey(value["prompt"], file_inputs)
    metadata, own = prompt_webhook.metadata_of(value["extra_data"]), prompt_webhook.decode_webhook(webhook)
    return Submission(
        prompt=json_codec.packed(dumps(value["prompt"])),
        extra_data=json_codec.packed(dumps(value["extra_data"])),
        rest=json_codec.packed(dumps(value["rest"])),
        client_id=head["client_id"],
        gave_client_id=head["gave_client_id"],
        prompt_id=head["prompt_id"],
        number=head["number"],
        front=head["front"],
        targets=targets if isinstance(targets, list) else None,
        nodes=found.nodes,
        models=found.models,
        files=found.files,
        separated=found.separated,
        model=found.model,
        workload=read_workload(value["prompt"], found),
        digest=digest,
        needs_secrets=head["needs_secrets"],
        deadline=deadline,
        priority=priority,
        require=decode_requirement(head.get("require")),
        workflow_id=encoded_workflow_id(value["extra_data"]),
        by_admin=bool(head.get("by_admin")),
        more_bytes=_bytes_of(head["client_id"], {}, is_new=False) + len(metadata) + (own.size if own else 0),
        is_plain=is_plain,
        request_id=str(head.get("request_id", "")),
        bound=tuple((backend, id_) for backend, id_ in head.get("bound", ())),
        webhook=own,
        metadata=metadata,
    )
