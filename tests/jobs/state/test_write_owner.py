"""Decisions about the backend that a write is for, and the ids that requests name."""

from __future__ import annotations

import uuid

import pytest

from gateway.comfy import json_codec
from gateway.jobs.admission.kept_state import among, check
from gateway.jobs.state.bindings import MAX_IDS, MAX_SESSIONS, SESSION_SECONDS, Bindings
from gateway.jobs.state.named_ids import in_prompt, in_request, in_value, is_state_id, read_answer
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.request_fields import Fields, fields_of
from gateway.jobs.state.submission import decode_from_journal, encode_for_journal, read
from gateway.jobs.state.write_owner import OpenJob, Owner, Unclear, named_owner, unnamed_owner

FIRST, SECOND, THIRD = (str(uuid.UUID(int=n)) for n in (1, 2, 3))
JOBS = (
    OpenJob(FIRST, "a", is_running=True, executing="5", heard=("told-1",)),
    OpenJob(SECOND, "b", is_running=True, executing="7"),
    OpenJob(THIRD, None, is_running=False),
)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([FIRST], Owner("a", FIRST)),
        ([SECOND, "5"], Owner("b", SECOND)),
        ([THIRD], Unclear.WAITING),
        ([FIRST, SECOND], Unclear.SEVERAL),
        (["5"], Owner("a")),
        (["5", "7"], Unclear.SEVERAL),
        (["told-1"], Owner("a")),
        (["kept"], Owner("c")),
        (["unknown", str(uuid.UUID(int=9))], None),
    ],
)
def test_named_owner(ids: list[str], expected: Owner | Unclear | None) -> None:
    assert named_owner(ids, JOBS, {"kept": "c"}) == expected


def test_a_text_of_a_prompt_counts_last() -> None:
    assert named_owner(["x"], JOBS, {}, ["b"]) == Owner("b")
    assert named_owner(["x"], JOBS, {}, ["b", "c"]) is Unclear.SEVERAL
    assert named_owner(["5"], JOBS, {}, ["b"]) == Owner("a")


def test_unnamed_owner() -> None:
    assert unnamed_owner(JOBS, {"a", "b"}) is Unclear.SEVERAL
    assert unnamed_owner(JOBS, {"b"}) == Owner("b")
    assert unnamed_owner(JOBS[2:], {"a", "b"}) is None


def test_ids_in_requests() -> None:
    form = (
        b'--x\r\nContent-Disposition: form-data; name="response"\r\n\r\n{"unique": "77", "text": "8"}\r\n'
        b'--x\r\nContent-Disposition: form-data; name="id"\r\n\r\n5\r\n--x--\r\n'
    )
    assert in_request([], [], fields_of(form, "multipart/form-data")).ids == ("77", "5")
    assert in_request([], [], fields_of(b"id=5&x=6", "application/x-www-form-urlencoded")).ids == ("5",)
    body = json_codec.dumps({"node_id": 5, "count": 6, "clientId": "me", "list": [{"uid": "u"}], "any": FIRST})
    named = in_request(["image"], [("prompt_id", SECOND), ("v", "2")], fields_of(body, "application/json"))
    assert set(named.ids) == {"image", "5", "u", FIRST, SECOND}
    assert named.client_id == "me"
    for odd in (b"", b"[", b"\xff", b'{"id": ' + b"[" * 5_000, b'"text"', b"5"):
        assert in_request([], [], fields_of(odd, "application/json")).ids == ()


def form(**fields: str) -> bytes:
    """A body of multipart/form-data, as a browser's FormData makes it."""
    parts = (f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items())
    return ("".join(parts) + "--x--\r\n").encode()


@pytest.mark.parametrize(
    ("content_type", "body", "id_"),
    [
        # cg-image-picker: js/image_chooser_messaging.js.
        ("multipart/form-data", form(message="0,2,-1,", id="5"), "5"),
        # cg-image-filter: js/popup.js, today and before.
        ("multipart/form-data", form(response=f'{{"graph_id": "{FIRST}", "selection": [0, 2]}}'), FIRST),
        ("multipart/form-data", form(response='{"unique": "5", "special": -3}'), "5"),
        # ComfyUI-Easy-Use: its web UI sends JSON without a type.
        ("text/plain", b'{"node_id": "5", "action": "select", "selected": [0, 2]}', "5"),
        ("multipart/form-data", form(message='{"prompt": "a 9", "select": "now", "seed": 7}', id="5"), "5"),
        # ComfyUI_Custom_Nodes_AlekPet: today, and before.
        ("text/plain", b'{"unique_id": "5", "is_ok": true}', "5"),
        ("text/plain", b'{"painter_id": "5", "is_ok": true}', "5"),
    ],
)
def test_known_packs_name_their_node(content_type: str, body: bytes, id_: str) -> None:
    """And nothing else: a picture's number is no id."""
    assert in_request([], [], fields_of(body, content_type)).ids == (id_,)


def test_known_packs_tell_their_node_in_events() -> None:
    told = ({"tick": 9, "graph_id": FIRST}, {"id": FIRST, "urls": []}, {"unique_id": FIRST, "images": []})
    assert [list(in_value(data)) for data in told] == [[FIRST]] * 3


def test_ids_are_bounded() -> None:
    assert len(list(in_value([{"id": str(n)} for n in range(1_000)]))) == 64
    assert list(in_value({"id": "x" * 129})) == []
    assert len(in_request([str(n) for n in range(1_000)], [], Fields()).ids) == 64


def test_ids_of_states() -> None:
    assert all(map(is_state_id, (FIRST, "abc1", "a" * 16)))
    assert not any(map(is_state_id, ("image", "v2", "12", "a b 12", "")))
    assert read_answer(b'{"id": "abc1", "name": "abc2", "key": "image"}') == ["abc1"]
    assert read_answer(b"no json") == read_answer(b"") == []


def found_in(prompt: bytes, *wanted: str) -> set[str]:
    """The wanted ids that stand in an encoded prompt."""
    steps = in_prompt(prompt, dict.fromkeys(wanted))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: set[str] = end.value
            return found


@pytest.mark.parametrize("before", [0, 2**18 - 20, 2**18 - 1, 2**18, 2**18 + 5])
def test_ids_in_prompts(before: int) -> None:
    prompt = b" " * before + json_codec.dumps({"1": {"inputs": {"id": FIRST, "text": f"about {SECOND}"}}})
    assert found_in(prompt, FIRST, SECOND) == {FIRST}


def test_bindings_are_a_tenants_own_and_bounded() -> None:
    bindings = Bindings()
    bindings.bind("anna", [FIRST], "a", 1.0, pins=True)
    assert bindings.of("ben", FIRST) is None
    assert bindings.others("ben", [FIRST]) == {"a"}
    assert bindings.others("anna", [FIRST]) == set()
    bindings.bind("ben", [f"id-{n}" for n in range(MAX_IDS + 5)], "b", 1.0, pins=False)
    assert len(bindings) == MAX_IDS + 1
    assert bindings.of("ben", "id-4") is None
    assert bindings.others("anna", ["id-4"]) == set()


def test_a_backend_that_went_away_has_lost_its_state() -> None:
    bindings = Bindings()
    bindings.bind("anna", [FIRST], "a", 1.0, pins=True)
    assert not bindings.is_lost("a", 1.0)
    bindings.lose("a", 2.0)
    assert bindings.is_lost("a", 1.0)
    assert not bindings.is_lost("b", 1.0)
    bindings.bind("anna", [FIRST], "a", 3.0, pins=True)
    assert not bindings.is_lost("a", 3.0)


async def test_prompts_that_name_kept_state_are_bound() -> None:
    bindings = Bindings()
    bindings.bind("anna", [FIRST], "a", 1.0, pins=True)
    bindings.bind("anna", [SECOND], "b", 1.0, pins=False)
    bindings.bind("anna", [THIRD], "c", 1.0, pins=True)
    both = read(json_codec.dumps({"prompt": {"1": {"class_type": "Any", "inputs": {"id": FIRST, "other": SECOND}}}}))
    bound = await bindings.with_bound("anna", both)
    assert bound.bound == (("a", FIRST),)
    assert (await bindings.with_bound("ben", both)).bound == ()
    check(bindings, "anna", bound)
    assert among(None, bound) == among(frozenset({"a", "b"}), bound) == {"a"}
    assert decode_from_journal(encode_for_journal(bound), None).bound == bound.bound
    apart = read(json_codec.dumps({"prompt": {"1": {"class_type": "Any", "inputs": {"id": FIRST, "other": THIRD}}}}))
    with pytest.raises(Rejection) as refused:
        check(bindings, "anna", await bindings.with_bound("anna", apart))
    assert refused.value.body["error"]["type"] == "state_apart"
    bindings.lose("a", 2.0)
    with pytest.raises(Rejection) as refused:
        check(bindings, "anna", bound)
    assert refused.value.body["error"]["type"] == "state_lost"


def test_sessions_end() -> None:
    bindings = Bindings()
    bindings.keep_session("anna", "client", "/etn", "a", 1.0)
    assert bindings.session("anna", "client", "/etn", 2.0) == "a"
    assert bindings.session("anna", "", "/etn", 2.0) is None
    assert bindings.session("ben", "client", "/etn", 2.0) is None
    assert bindings.session("anna", "client", "/etn", 2.0 + SESSION_SECONDS) is None
    for n in range(MAX_SESSIONS):
        bindings.keep_session("anna", str(n), "/etn", "b", 1.0)
    assert bindings.sessions_on("b") == MAX_SESSIONS
    assert bindings.session("anna", "client", "/etn", 2.0) is None
    bindings.lose("b", 3.0)
    assert bindings.sessions_on("b") == 0


def test_bindings_of_all_tenants_are_bounded() -> None:
    """The tenant that was heard of least recently makes room, and nothing of it is left."""
    bindings = Bindings(max_ids=6, max_sessions=2)
    for n, tenant in enumerate(("anna", "ben", "anna", "cleo")):
        bindings.bind(tenant, [f"{tenant}-{n}-{each}" for each in range(2)], "a", float(n), pins=True)
    assert len(bindings) == 6
    assert bindings.of("ben", "ben-1-0") is None
    assert bindings.others("anna", ["ben-1-1"]) == set()
    assert bindings.of("anna", "anna-0-0") is not None
    for n, tenant in enumerate(("anna", "ben", "cleo")):
        bindings.keep_session(tenant, "c", "f", "a", float(n))
    assert [bindings.session(tenant, "c", "f", 3.0) for tenant in ("anna", "ben", "cleo")] == [None, "a", "a"]
    bindings.lose("a", 4.0)
    bindings.keep_session("dora", "c", "f", "b", 5.0)
    assert bindings.sessions_on("a") == 0
    assert bindings.session("dora", "c", "f", 5.0) == "b"
