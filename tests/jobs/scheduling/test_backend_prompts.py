"""What is said to a backend of an assignment, and how its prompt is found there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.comfy.responses import MARK, Queue, read_taken
from gateway.jobs.isolation.secret_folders import UNCHANGED
from gateway.jobs.scheduling.backend_prompts import Where, extra_of, find_in, upstream_body
from gateway.jobs.state.job import Assignment, Delivery, Job
from gateway.jobs.state.records import job_of, job_record
from gateway.jobs.state.submission import read
from gateway.jobs.state.transitions import State
from tests.support.workflows import slow

OWN, THEIRS = "11111111-2222-4333-8444-555555555555", "99999999-2222-4333-8444-555555555555"


def job_with(**more: Any) -> Job:
    """A job."""
    submission = read(json.dumps({"prompt": slow(), **more}).encode())
    return Job("t", "p", 1.0, 2.5, submission, 1, 0.0)


@pytest.mark.parametrize(
    "extra",
    [{}, {"a": 1}, {MARK: "mine"}, {"api_key_comfy_org": "secret-key"}, {"a": 1, "auth_token_comfy_org": "x"}],
)
def test_the_mark_goes_upstream_and_a_clients_own_does_not_count(extra: dict[str, Any]) -> None:
    body = json.loads(
        upstream_body(job_with(extra_data=extra), Assignment("b1", OWN, THEIRS), "gateway", {}, UNCHANGED)
    )
    assert body["prompt_id"] == OWN
    assert body["extra_data"] == {**extra, MARK: THEIRS}
    assert (body["client_id"], body["number"]) == ("gateway", 2.5)


def item(prompt_id: str, mark: object = None) -> list[Any]:
    """An item of a queue."""
    return [1, prompt_id, {}, {MARK: mark} if mark is not None else {}, []]


def test_a_prompt_is_found_by_its_id_and_by_its_mark() -> None:
    queue = Queue((item("a", OWN), item(OWN, THEIRS)), (item("b", "x"), item("c")))
    # Its own id goes before a mark.
    assert (find_in(queue, OWN, OWN).where, find_in(queue, OWN, OWN).upstream_id) == (Where.RUNNING, OWN)
    assert (find_in(queue, "unknown", "x").where, find_in(queue, "unknown", "x").upstream_id) == (Where.PENDING, "b")
    assert find_in(queue, "unknown", "").where is Where.ABSENT
    assert find_in(queue, "c", "unknown").where is Where.PENDING


@pytest.mark.parametrize("short", [[], [1], [1, "p"], [1, "p", {}], [1, "p", {}, None], [1, "p", {}, ["x"]]])
def test_an_item_without_extra_data_has_none(short: list[Any]) -> None:
    assert extra_of(short) == {}


@pytest.mark.parametrize(
    ("body", "known_as", "errors"),
    [
        (b'{"prompt_id": "x", "node_errors": {"1": 2}}', "x", {"1": 2}),
        (b'{"prompt_id": ["x"]}', None, {}),
        (b'{"node_errors": null}', None, {}),
        (b"[1]", None, {}),
        (b"5", None, {}),
        (b"not json", None, {}),
        (b"", None, {}),
    ],
)
def test_what_an_answer_says(body: bytes, known_as: object, errors: object) -> None:
    assert read_taken(body) == (known_as, errors)


@pytest.mark.parametrize("backends", [("b1", "b2"), ("b2",)])
def test_the_journal_keeps_an_assignment_and_those_before_it(backends: tuple[str, ...]) -> None:
    """Of a backend that is not configured any more it is one that was given up."""
    job = job_with()
    job.state, job.assignment = State.SENDING, Assignment("b1", THEIRS, OWN)
    job.given_up = (Assignment("b2", "x", "y"),)
    again = job_of(job_record(job, "gateway"), backends)
    former = [(each.backend, each.upstream_id, each.mark) for each in again.given_up]
    if "b1" in backends:
        assert again.assignment is not None
        assert (again.backend, again.upstream_id, again.assignment.mark) == ("b1", THEIRS, OWN)
        assert again.assignment.delivery is Delivery.UNDER_WAY
        assert former == [("b2", "x", "y")]
    else:
        assert (again.state, again.assignment) == (State.WAITING, None)
        assert former == [("b2", "x", "y"), ("b1", THEIRS, OWN)]
