"""What is fuzzed: functions of bytes that return, whatever the bytes are.

Each holds one reader of what strangers, or backends, send. An exception that its caller does not expect is a finding,
and so is an assertion about what came out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from multidict import CIMultiDict, MultiDict

from gateway.catalogue import capabilities
from gateway.catalogue.object_info import merge_catalogue
from gateway.catalogue.tenant_view import without_models
from gateway.comfy import error_causes, events, history, json_codec, previews
from gateway.comfy.client import Answer
from gateway.comfy.errors import told_as_text
from gateway.comfy.events import Frame, Kind
from gateway.comfy.file_refs import FileRef, file_ref, finished, rename
from gateway.comfy.jobs_api import JobsQuery, job_of_history, job_of_queue_item, list_jobs, parse_jobs_query
from gateway.comfy.object_info import read_document, read_object_info
from gateway.comfy.responses import MARK, Queue, read_taken
from gateway.comfy.validation import validate_prompt
from gateway.files.identity import Times, examine
from gateway.jobs.files.entry_files import cached_nodes, each_file, time_of
from gateway.jobs.isolation.secret_folders import UNCHANGED
from gateway.jobs.lifecycle.completion import _failure_of, _last_message
from gateway.jobs.scheduling.backend_prompts import Where, find_in, upstream_body
from gateway.jobs.state.job import Assignment, Job
from gateway.jobs.state.partner_keys import NAMES
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import decode_from_journal, encode_for_journal, read
from gateway.sessions.buffer_bounds import Shared, Total
from gateway.sessions.outbox import Outbox
from gateway.sessions.sequencer import Sequencer
from gateway.settings import AuthSettings, KeySettings, TenantSettings
from gateway.simulator.catalogue import load_object_info
from gateway.simulator.options import SimulatorOptions
from gateway.store.userdata import OutsideFolder, UnfitName, parts_of
from gateway.tenants.credentials import COOKIE, AmbiguousKey, presented_key
from gateway.tenants.keys import Keyring, digest_of
from gateway.tenants.policy import Policies
from gateway.tenants.roles import Access, Roles, plain
from gateway.web.http.v2_errors import V2Error
from gateway.web.routes.uploads import _original
from gateway.web.routes.view import requested_file
from gateway.web.v2 import references
from gateway.web.v2 import submission as submission_v2
from gateway.web.v2.outputs import job_of, outputs_of
from tests.fuzz import asset_references, seeds
from tests.fuzz.grown import TEXTS, Grown
from tests.support import answer_readers

Run = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Target:
    """Something to fuzz, with examples to begin with."""

    name: str
    run: Run
    seeds: tuple[bytes, ...]


# Read, from then on, by the first byte: as it stands, grown into a value, or grown into a well-formed one.
_RAW, _GROWN, _CHANGED = 0, 1, 2


def _json_of(data: bytes, examples: list[Any]) -> bytes:
    """The JSON that a fuzzer's bytes stand for."""
    how = data[0] % 3 if data else _RAW
    if how == _RAW:
        return data[1:]
    source = Grown(data[1:])
    if how == _GROWN:
        value = {source.text(): source.value() for _ in range(1 + source.byte() % 5)}
    else:
        value = source.put_into(examples[source.byte() % len(examples)])
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return data[1:]


def _raw(values: list[Any]) -> tuple[bytes, ...]:
    return (*(b"\x00" + json.dumps(value).encode() for value in values), *(bytes([2, n] * 20) for n in range(8)))


# -- a prompt's body ---------------------------------------------------------------------------------------------------

UPSTREAM = "22222222-2222-4333-8444-555555555555"
_INFO = load_object_info(SimulatorOptions())
# Beside an odd backend, a good one with some classes of each kind is enough, and a tenth of the work.
_FEW = {name: _INFO[name] for name in ("CheckpointLoaderSimple", "CreateVideo", "KSampler", "LoadImage", "SaveImage")}
_POLICY = Policies(TenantSettings.model_validate({"default": {"models": {"deny": ["*"]}}}), []).default
_CATALOGUE = merge_catalogue({"b1": _INFO, "b2": {k: v for k, v in _INFO.items() if k != "FailNode"}}, lambda _: False)


def graph(data: bytes) -> None:
    """POST /prompt's body, and all that is made of it before a backend sees it."""
    body = _json_of(data, seeds.bodies())
    try:
        submission = read(body, _CATALOGUE.capabilities.file_inputs)
    except Rejection as rejection:
        _refused(rejection)
        return
    kept = encode_for_journal(submission)
    again = decode_from_journal(kept, submission.digest)
    # Of a client_id that is not even text only its shape is kept: a NaN becomes null.
    assert again.client_id == json_codec.loads(json_codec.dumps(submission.client_id))
    for name in ("prompt", "extra_data", "rest", "front", "targets", "nodes", "models", "deadline", "workflow_id"):
        assert _plain(getattr(again, name)) == _plain(getattr(submission, name)), name
    prompt_id = submission.prompt_id or "11111111-2222-4333-8444-555555555555"
    job = Job("tenant", prompt_id, 1.0, 1.0, submission, 1, 0.0)
    shown = json_codec.loads(job.queue_item())
    for text in (kept, job.queue_item(), json_codec.dumps_exact(shown)):
        # Under another name it is a text as any other.
        assert seeds.SECRET.encode() not in text or seeds.SECRET not in submission.secrets.values()
    assert not any(key in shown[3] for key in NAMES)
    assignment = Assignment("b1", UPSTREAM, UPSTREAM)
    sent = json_codec.loads(upstream_body(job, assignment, "gateway", {}, UNCHANGED))
    assert (sent["prompt_id"], sent["extra_data"][MARK]) == (UPSTREAM, UPSTREAM)
    said = submission.censor().encoded(json_codec.dumps_exact({"a": [seeds.SECRET], "current_inputs": shown[3]}))
    assert _plain(submission.censor().value(json_codec.loads(said))) == _plain(json_codec.loads(said))
    json_codec.dumps(list_jobs([job_of_queue_item([1, job.prompt_id, {}, shown[3], []], "pending")], JobsQuery()))
    prompt = json_codec.loads(submission.prompt)
    capabilities.needs_of(prompt, _CATALOGUE.capabilities)
    found = validate_prompt(prompt, _CATALOGUE.classes, partial_execution_targets=submission.targets)
    if not found.valid:
        json_codec.dumps(found.body())
    for file in submission.files:
        assert file.ref is None or _is_inside(file.ref), file


def _refused(rejection: Rejection) -> None:
    assert 400 <= rejection.status < 500
    json_codec.dumps(rejection.body)


def _plain(value: Any) -> Any:
    """JSON in one spelling: a NaN is equal to no other."""
    return json_codec.dumps_exact(json_codec.loads(value) if isinstance(value, bytes) else repr(value))


# -- what a backend says -----------------------------------------------------------------------------------------------


def event(data: bytes) -> None:
    """A text message of a backend, on its way to a client's socket."""
    source = _json_of(data, seeds.messages())
    for message in (source, source.decode("utf-8", "surrogateescape")):
        try:
            found = events.parse(message)
        except UnicodeEncodeError:
            # Half a surrogate pair from an invalid byte: aiohttp closes a socket that sends it (RFC 6455, section 8.1).
            continue
        if found is None:
            continue
        assert found.ends_prompt in (True, False)
        frame = events.frame_of(found, "p", found.raw)
        rename(found.data.get("output"), lambda ref, made: ref)
        for interleave in (True, False):
            sequencer, outbox = Sequencer(interleave=interleave), Outbox(1 << 12, Shared(Total()))
            for each in (Frame(Kind.LIFECYCLE, b"{}", "other"), frame, events.end_frame("other"), frame):
                for due in sequencer.feed(each):
                    outbox.put(due)


def object_info(data: bytes) -> None:
    """GET /object_info of one backend, beside another's, and all that is made of it."""
    document = _json_of(data, seeds.object_infos())
    try:
        value = json_codec.loads(document)
    except json_codec.MalformedJson:
        return
    read = read_object_info(value)
    try:
        split = read_document(document, lambda *_: None)
    except json_codec.MalformedJson:
        # Python's json takes UTF-16 and UTF-32 as well.
        assert not isinstance(value, dict) or json.detect_encoding(document) not in ("utf-8", "utf-8-sig")
    else:
        assert json.dumps(split.classes) == json.dumps(read.classes)
    json.dumps(read.summary())
    again = read_object_info(read.classes)
    assert not again.dropped
    assert not again.repaired
    for infos in ({"odd": read.classes, "good": _FEW}, {"good": _FEW, "odd": read.classes}):
        merged_catalogue = merge_catalogue(infos, lambda ref: ref.filename == "a.png")
        told = json_codec.loads(merged_catalogue.body([FileRef("input", "", "own.png")]).plain)
        assert told.keys() == merged_catalogue.classes.keys()
        for description in merged_catalogue.classes.values():
            without_models(description, _POLICY)
    for name in read.classes:
        validate_prompt({"1": {"class_type": name, "inputs": {"image": "a.png", "x": ["1", 0]}}}, read.classes)


def preview(data: bytes) -> None:
    """A binary message of a backend."""
    kind, found = previews.event_type(data), previews.parse_with_metadata(data)
    legacy = previews.to_legacy(data)
    assert (found is None) == (legacy is None)
    if found is None or legacy is None:
        return
    assert kind == previews.PREVIEW_WITH_METADATA
    assert legacy == previews.encode_legacy(found)
    assert legacy.endswith(found.image)
    encoded = previews.parse_with_metadata(previews.encode_with_metadata(found))
    assert encoded is not None
    assert encoded.image == found.image
    found.metadata.get("prompt_id")
    # A name of another length, in what it says and not in its image.
    renamed = previews.parse_with_metadata(previews.replace(data, b"node", b"another-node"))
    assert renamed is not None
    assert renamed.image == found.image


def _last_and_cached(status: Any) -> None:
    assert all(isinstance(node_id, str) for node_id in cached_nodes(status))
    answer = Answer(
        200, CIMultiDict({"Last-Modified": "x", "Date": "Wed, 25 Nov 2026 12:00:00 GMT", "ETag": '"e"'}), b""
    )
    times = Times(time_of(status, ("execution_start",)), time_of(status, events.TERMINAL))
    assert examine(answer, times, wrote=True).etag == '"e"'


def entry(data: bytes) -> None:
    """A history entry of a backend."""
    source = _json_of(data, seeds.entries())
    try:
        value = json_codec.loads(source)
    except json_codec.MalformedJson:
        return
    if not isinstance(value, dict):
        return
    read_taken(source)
    if isinstance(item := value.get("prompt"), list) and len(item) > 1:
        assert find_in(Queue((item,), ()), "an id", UPSTREAM).where in (Where.RUNNING, Where.ABSENT)
    outcome = history.outcome_of(value)
    assert error_causes.failure_of_entry(value).cause in error_causes.Cause
    _last_and_cached(value.get("status"))
    renamed = each_file(
        value.get("outputs"), lambda ref, made, node_id: replace(ref, filename=f"x-{ref.filename}-{made}-{node_id}")
    )
    ours = {**value, "outputs": renamed, "prompt": [1, "id", {}, {"create_time": 1}, []]}
    _last_message(ours)
    _failure_of(ours, outcome)
    for whole in (False, True):
        json_codec.dumps_exact(job_of_history("id", ours, include_outputs=whole))
    json_codec.dumps_exact(list_jobs([job_of_history("id", ours, include_outputs=False)], JobsQuery()))
    assert outcome in history.Outcome
    told_as_text(source)


def answer(data: bytes) -> None:
    """An answer of a backend to what the gateway itself asks: the first byte says to what."""
    check, good = answer_readers.CHECKS[data[0] % len(answer_readers.CHECKS) if data else 0]
    check(_json_of(data[1:], [good]))


# -- what a request carries --------------------------------------------------------------------------------------------

_KEYRING = Keyring(AuthSettings(keys=(KeySettings(name="k", key="a-key-for-fuzzing"),)))


def credential(data: bytes) -> None:
    """The key in a request's headers, query or cookies."""
    parts = [part.decode("utf-8", "surrogateescape") for part in data.split(b"\n")]
    headers, query, cookies = CIMultiDict[str](), MultiDict[str](), []
    for part in parts:
        name, _, value = part.partition(":")
        headers.add(name.strip(), value.strip())
        query.extend(parse_qsl(value, errors="replace"))
        cookies.append(f"{name}={value}")
    try:
        found = presented_key(headers, query, ";".join(cookies))
    except AmbiguousKey:
        return
    assert found is None or isinstance(found, str)
    grant = _KEYRING.grant(digest_of(found)) if found is not None else None
    assert (grant is not None) == (found == "a-key-for-fuzzing")


def query(data: bytes) -> None:
    """The queries of /view and /api/jobs, and the references in an upload's form."""
    text = data.decode("utf-8", "surrogateescape")
    values = MultiDict(parse_qsl(text, keep_blank_values=True, errors="surrogateescape"))
    grown = Grown(data)
    for filename, subfolder, kind in (
        (values.get("filename", ""), values.get("subfolder"), values.get("type", "output")),
        (grown.text(), grown.text(), ("output", "temp", "input", "")[grown.byte() % 4]),
        (TEXTS[grown.byte() % len(TEXTS)], text, "input"),
        (text, None, "temp"),
    ):
        ref = requested_file(filename, subfolder, kind)
        assert isinstance(ref, FileRef) or ref in (400, 403, 404)
        known = file_ref(kind, subfolder or "", filename)
        original = _original(json.dumps({"filename": filename, "subfolder": subfolder or "", "type": kind}))
        for found in (ref, known, original):
            assert not isinstance(found, FileRef) or _is_inside(found), found
            if isinstance(found, FileRef) and not isinstance(ref, int):
                quote(found.filename, errors="replace")
    jobs = parse_jobs_query(values)
    if not isinstance(jobs, str):
        list_jobs([], jobs)
    _original(text)


_ROLES = Roles()
_KEPT = ("internal/logs", "free", "manager/reboot", "v2/customnode/x", "gateway/keys", "users/x")


def path(data: bytes) -> None:
    """A request's path, held against the table of roles; and a name in the folder of what a web UI saves."""
    text = data.decode("utf-8", "surrogateescape")
    found = plain(text)
    assert not {"", ".", "api"} & set(found.parts[:1])
    assert _ROLES.of_path("GET", text) in Access
    assert _ROLES.of_path("POST", text) in (Access.ADMINS, Access.USERS, Access.TEAM)
    # Whatever stands before what is an admin's, as long as it comes to nothing, does not open it.
    for kept in _KEPT:
        for spelled in (kept, quote(kept, safe=""), kept.upper(), kept.replace("/", "//./")):
            for before in ("/", "/api/", "//", "/./", "/%2e/", "\\", "/api/api//"):
                assert _ROLES.of_path("GET", before + spelled) is Access.ADMINS, before + spelled
                below = _ROLES.of_path("PUT", f"{before}{spelled}/{text}")
                assert below is Access.ADMINS, text
    try:
        parts = parts_of(text)
    except (OutsideFolder, UnfitName):
        return
    assert not {"", ".", ".."} & set(parts)
    assert not any("/" in part or "\0" in part or "\\" in part for part in parts)
    root = Path("/kept/folder")
    assert root in (root.joinpath(*parts), *root.joinpath(*parts).parents)


def _is_inside(ref: FileRef) -> bool:
    parts = [*ref.subfolder.split("/"), *ref.filename.split("/")]
    return ".." not in parts and not ref.subfolder.startswith("/") and "\0" not in ref.subfolder + ref.filename


# -- the Comfy API v2 --------------------------------------------------------------------------------------------------


def v2_body(data: bytes) -> None:
    """POST /api/v2/jobs: its body, the references to assets in its graph, and the prompt made of it."""
    try:
        new = submission_v2.read(_json_of(data, seeds.v2_bodies()), 150_000)
    except V2Error as error:
        json_codec.loads(error.response().body or b"")
        return
    try:
        workflow = json_codec.loads(new.workflow)
    except json_codec.MalformedJson:
        return
    finished(references.references_in(workflow))
    missing = finished(references.resolving(workflow, lambda each: f"{each.id}.png" if each.id == "a" else None))
    assert all(isinstance(each, str) for each in missing)
    outputs = outputs_of(UPSTREAM, workflow)
    assert {job_of(each.id) for each in outputs} <= {UPSTREAM}
    try:
        submission = read(new.prompt_body(UPSTREAM, new.workflow), _CATALOGUE.capabilities.file_inputs)
    except Rejection as rejection:
        body = submission_v2.error_of_refusal(rejection.status, rejection.body).response().body
        assert "code" in json_codec.loads(body or b"")["error"]
        return
    assert submission.prompt_id == UPSTREAM
    kept = encode_for_journal(submission)
    assert new.partner_key is None or submission.secrets == {"api_key_comfy_org": new.partner_key}
    assert decode_from_journal(kept, submission.digest).prompt_id == UPSTREAM


TARGETS = {
    target.name: target
    for target in (
        Target("v2_body", v2_body, _raw(seeds.v2_bodies())),
        Target("asset_reference", asset_references.asset_reference, asset_references.seeds()),
        Target("graph", graph, _raw(seeds.bodies())),
        Target("event", event, _raw(seeds.messages())),
        Target("object_info", object_info, _raw(seeds.object_infos())),
        Target("preview", preview, tuple(seeds.previews())),
        Target("entry", entry, _raw(seeds.entries())),
        Target(
            "answer",
            answer,
            tuple(bytes([n]) + seed for n, (_, good) in enumerate(answer_readers.CHECKS) for seed in _raw([good])),
        ),
        Target(
            "credential",
            credential,
            (
                b"X-API-Key: a-key-for-fuzzing",
                b"Authorization: Bearer a-key-for-fuzzing\nCookie: a=b",
                b"Authorization: Basic OmEta2V5LWZvci1mdXp6aW5n",
                b"x: token=a-key-for-fuzzing",
                COOKIE.encode() + b": a-key-for-fuzzing",
            ),
        ),
        Target(
            "path",
            path,
            (
                b"/internal/logs",
                b"/api//v2/./manager/%72eboot",
                b"workflows/%2e%2e/a.json",
                b"..%252f..\\x",
                b"/\xff\xfe",
            ),
        ),
        Target(
            "query",
            query,
            (
                b"filename=a.png&subfolder=x/y&type=temp&preview=webp;90",
                b"filename=a.png [output]&channel=a",
                b"filename=%2e%2e%5c%2e%2e%5csecret.png&subfolder=%2fetc",
                b"status=pending,completed&sort_by=created_at&limit=5&offset=-1",
            ),
        ),
    )
}
