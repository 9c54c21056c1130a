"""Statuses and errors of ended jobs, and the order and headers of their outputs."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.comfy.file_refs import FileRef
from gateway.web.run.results import MAX_LINKS, headers_of, in_order, result_object, status_and_error
from gateway.web.v2.model import JobView, Links
from gateway.web.v2.outputs import Output

LINKS = Links("https://comfy.example/base")
ID = "11111111-1111-4111-8111-111111111111"


def output(name: str, kind: str = "output", content_type: str = "image/png") -> Output:
    return Output("out_x", "9", name, "image", content_type, FileRef(kind, "", name))


def failed(type_: str, node_id: str = "") -> dict[str, str]:
    return {"exception_type": type_, "exception_message": "said", "node_id": node_id, "node_type": node_id and "A"}


@pytest.mark.parametrize(
    ("status", "failure", "expected"),
    [
        ("succeeded", None, (200, None, None)),
        ("canceled", None, (409, "job_cancelled", None)),
        ("failed", failed("ValueError", "3"), (422, "execution_error", "caller")),
        ("failed", failed("torch.OutOfMemoryError", "3"), (500, "execution_error", "backend")),
        ("failed", failed("BackendLost"), (500, "execution_error", "backend")),
        ("failed", failed("PolicyDenied"), (422, "execution_error", "caller")),
        ("failed", failed("SecretsLost"), (500, "execution_error", "gateway")),
        ("failed", None, (500, "execution_error", "backend")),
    ],
)
def test_statuses(status: str, failure: Any, expected: tuple[int, str | None, str | None]) -> None:
    found, body = status_and_error(JobView(ID, status, 0, 0, error={"message": "m", "node_id": "3"}), failure)
    error = body.get("error", {})
    assert (found, error.get("type"), error.get("extra_info", {}).get("fault")) == expected


def test_saved_files_and_texts_come_before_previews() -> None:
    text = Output("out_t", "5", "t.txt", "text", "text/plain; charset=utf-8", None, "t")
    outputs = [output("a", "temp"), output("b"), text, output("c")]
    assert [each.name for each in in_order(outputs)] == ["b", "t.txt", "c", "a"]


def test_headers_name_the_job_and_some_of_the_other_outputs() -> None:
    outputs = [output(f'ä"{n}.png\r\n') for n in range(MAX_LINKS + 5)]
    headers = headers_of(outputs[1], outputs, ID, LINKS)
    assert headers["X-Gateway-Prompt-Id"] == ID
    links = headers["Link"].split(", ")
    assert links[0] == f'<https://comfy.example/base/gateway/run/{ID}>; rel="describedby"; type="application/json"'
    assert len(links) == MAX_LINKS + 1
    assert "%C3%A4%220.png%0D%0A" in links[1]
    assert headers["Link"].isascii()
    assert headers["Link"].isprintable()


def test_links_have_the_prefix() -> None:
    shown = result_object(JobView(ID, "queued", 0, 0, position=2), LINKS, [], {"parameters": {"seed": 1}})
    assert shown["urls"]["self"] == f"https://comfy.example/base/gateway/run/{ID}"
    assert shown["urls"]["job"] == f"https://comfy.example/base/api/v2/jobs/{ID}"
    assert (shown["queue_position"], shown["parameters"], shown["error"]) == (2, {"seed": 1}, None)
