"""What is expected of a ComfyUI is what was recorded, and what answers are worth."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from gateway.comfy import json_codec
from gateway.comfy.client import Answer, BadAnswer
from gateway.conformance import suite
from gateway.conformance.suite import Outcome, Suite, Verdict
from tests.conformance.distil import TARGET, distilled
from tests.conformance.replay import recording
from tests.support.json_values import values

SUITE: Suite = suite.load()
INFO: dict[str, Any] = recording("object_info_subset.json")
ROOT = Path(__file__).parents[2]


def judged(path: str, body: Any, status: int = 200, media_type: str = "application/json; charset=utf-8") -> list[str]:
    """The lines for an answer."""
    data = body if isinstance(body, bytes) else json_codec.dumps_exact(body)
    return [str(verdict) for verdict in verdicts(path, Answer(status, {"Content-Type": media_type}, data))]


def verdicts(path: str, answer: Answer) -> list[Verdict]:
    """What an answer is worth."""
    exchange = next(exchange for exchange in SUITE.exchanges if exchange.path == path)
    return suite.judge(SUITE, exchange, answer)


def changed(name: str, **fields: Any) -> dict[str, Any]:
    """The recorded /object_info with a class described otherwise."""
    return {**INFO, name: {**copy.deepcopy(INFO[name]), **fields}}


def test_what_is_expected_is_made_of_the_recordings() -> None:
    assert json.loads(TARGET.read_text()) == distilled(), "run: python -m tests.conformance.distil"


def test_it_holds_no_path_and_no_address() -> None:
    assert not re.search(r"/opt/|/home/|/root/|127\.0\.0\.1|localhost", TARGET.read_text())


def test_it_goes_into_the_wheel() -> None:
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = ROOT / "gateway" / "conformance"
    assert TARGET in {path for pattern in package_data["gateway.conformance"] for path in folder.glob(pattern)}


def test_only_reads_are_asked() -> None:
    """An exchange has a path and no method: it is a GET."""
    assert all(exchange.name == f"GET {exchange.path}" for exchange in SUITE.exchanges)
    assert len({exchange.path for exchange in SUITE.exchanges}) == len(SUITE.exchanges) > 30


@pytest.mark.parametrize("path", [exchange.path for exchange in SUITE.exchanges])
@given(body=values)
def test_no_answer_makes_it_raise(path: str, body: Any) -> None:
    for status in (200, 404, 500):
        answer = Answer(status, {"Content-Type": "application/json"}, json_codec.dumps_exact(body))
        assert verdicts(path, answer)


def test_the_recorded_node_classes_fit() -> None:
    assert judged("/object_info", INFO) == ["ok       GET /object_info"]


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("VAEDecode", {"category": 5}, "$.VAEDecode.category: expected string, found number"),
        ("VAEDecode", {"output": []}, "$.VAEDecode.output[0]: expected IMAGE, found no such output"),
        ("VAEDecode", {"output": ["LATENT"]}, "$.VAEDecode.output[0]: expected IMAGE, found LATENT"),
        ("SaveImage", {"output_node": False}, "$.SaveImage.output_node: expected true, found false"),
        ("VAEDecode", {"input": None}, "$.VAEDecode.input: expected object, found null"),
        ("VAEDecode", {"input": {"required": []}}, "$.VAEDecode.input.required: expected object, found array"),
        (
            "VAEDecode",
            {"input": {"required": {"samples": ["LATENT"]}}},
            "$.VAEDecode.input.required.vae: expected VAE, found no such key",
        ),
        (
            "VAEDecode",
            {"input": {"required": {"samples": ["IMAGE"], "vae": ["VAE"]}}},
            "$.VAEDecode.input.required.samples[0]: expected LATENT, found IMAGE",
        ),
        (
            "VAEDecode",
            {"input": {"required": {"samples": ["LATENT"], "vae": ["VAE"], "tile": ["INT"]}}},
            "$.VAEDecode.input.required.tile: expected no such input, found one that older workflows do not give",
        ),
        (
            "CheckpointLoaderSimple",
            {"input": {"required": {"ckpt_name": ["COMBO", {"options": []}]}}},
            "$.CheckpointLoaderSimple.input.required.ckpt_name[0]: expected a list of choices, found COMBO",
        ),
    ],
)
def test_a_node_class_that_changed(name: str, fields: dict[str, Any], expected: str) -> None:
    assert judged("/object_info", changed(name, **fields)) == [f"differs  GET /object_info  {expected}"]


@pytest.mark.parametrize(
    "fields",
    [
        {"input": {"required": {"samples": ["LATENT,IMAGE"], "vae": ["*"]}, "optional": {"tile": ["INT"]}}},
        {"output": ["IMAGE", "MASK"]},
        {"display_name": "another"},
    ],
)
def test_a_node_class_that_takes_and_gives_more_fits(fields: dict[str, Any]) -> None:
    assert judged("/object_info", changed("VAEDecode", **fields)) == ["ok       GET /object_info"]


def test_a_node_class_that_is_not_there_is_shown_and_fits() -> None:
    less = {name: description for name, description in INFO.items() if name != "SaveAudio"}
    found = verdicts("/object_info", Answer(200, {"Content-Type": "application/json"}, json_codec.dumps(less)))
    assert [verdict.outcome for verdict in found] == [Outcome.OK, Outcome.MISSING]
    assert "node class SaveAudio" in str(found[1])
    assert suite.fits(found)
    assert suite.summary(SUITE, "1.2", found).endswith(
        "recordings of 0.33.0: 1 ok, 0 differ, 0 missing; node classes not there: 1"
    )


def test_status_and_content_type() -> None:
    assert judged("/queue", b"<html>", 502) == ["differs  GET /queue  status: expected 200, found 502"]
    assert judged("/queue", b"<html>", 200, "text/html") == [
        "differs  GET /queue  content type: expected application/json, found text/html"
    ]
    assert judged("/queue", b"<html>") == ["differs  GET /queue  $: expected JSON, found what is not JSON"]
    assert judged("/queue", {"queue_running": [], "queue_pending": []}, 200, "Application/JSON") == [
        "ok       GET /queue"
    ]
    assert judged("/queue", b"", 404) == ["missing  GET /queue  answered 404"]
    assert judged("/users", {"storage": "server", "migrated": True, "x": 1})[0].endswith("(new: $.x)")


def test_a_route_that_is_not_there_does_not_pass_for_an_expected_404() -> None:
    assert judged("/view", b"", 404, "") == ["ok       GET /view"]
    assert judged("/view", b"404: Not Found", 404, "text/plain") == ["missing  GET /view  there is no such route"]


def test_many_differences_stay_a_line() -> None:
    (line,) = judged("/system_stats", {"system": {}, "devices": [{}, {}]})
    assert line.startswith("differs  GET /system_stats  $.system.")
    assert re.search(r"; and \d+ more$", line)


STATUS = {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "me"}}
FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([STATUS, FLAGS], ""),
        ([], "first message: expected status, found none"),
        ([FLAGS, STATUS], "first message: expected status, found feature_flags"),
        ([None], "first message: expected status, found no JSON object"),
        ([STATUS], "expected feature_flags as the answer to the client's, found none"),
        ([{**STATUS, "data": {"sid": "me"}}, FLAGS], "$.data.status: expected object, found no such key"),
        ([{**STATUS, "data": {**STATUS["data"], "sid": "you"}}, FLAGS], "$.data.sid: expected the clientId"),  # type: ignore[dict-item]
        (
            [STATUS, {**FLAGS, "data": {"supports_preview_metadata": 1}}],
            "$.data.supports_preview_metadata: expected boolean, found number",
        ),
    ],
)
def test_what_a_socket_is_told_first(messages: list[Any], expected: str) -> None:
    verdict = suite.judge_greeting(SUITE, "me", messages)
    assert expected in str(verdict)
    assert (verdict.outcome is Outcome.OK) == (not expected)


def test_a_socket_that_is_not_there() -> None:
    assert str(suite.no_socket(BadAnswer("x", 404))) == "missing  /ws  answered 404"
    assert suite.no_socket(BadAnswer("/ws answered 500", 500)).outcome is Outcome.DIFFERS


def test_what_a_server_says_cannot_steer_the_terminal() -> None:
    answer = Answer(200, {}, json_codec.dumps({"system": {"comfyui_version": "1\x1b[2J"}}))
    assert "\x1b" not in suite.summary(SUITE, suite.version_of(answer), [])
    assert "\x1b" not in str(Verdict(Outcome.DIFFERS, "x", "\x1b[2J\n"))
    assert suite.version_of(Answer(200, {}, b"<html>")) == "of unknown version"
