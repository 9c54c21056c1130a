"""The read-only part of the conformance suite: questions, expected answers, and verdicts on answers. Pure.

``expected.json`` is made from the recordings of a real ComfyUI by ``python -m tests.conformance.distil``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.client import Answer, BackendError, BadAnswer
from gateway.conformance.node_classes import compare_class
from gateway.conformance.shapes import Comparison, Shape, compare

SHOWN = 5
TEXT = 120
# The answer of aiohttp's router if there is no such route.
_NO_ROUTE = b"404: Not Found"


class Outcome(StrEnum):
    """Outcome of one check."""

    OK = "ok"
    DIFFERS = "differs"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the report. `counts` is false if the line is a matter of the installation."""

    outcome: Outcome
    what: str
    detail: str = ""
    counts: bool = True

    def __str__(self) -> str:
        line = f"{self.outcome:<7}  {self.what}"
        return plain(f"{line}  {self.detail}" if self.detail else line)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An answer that fits. `media_type` and `shape` are None where they are not compared."""

    status: int
    media_type: str | None
    shape: Shape | None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A GET, the answers that fit, and the node classes that its answer should hold."""

    path: str
    answers: tuple[Wanted, ...]
    node_classes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the exchange in the report."""
        return f"GET {self.path}"


@dataclass(frozen=True, slots=True)
class Suite:
    """Everything that is expected, and the version of the ComfyUI that showed it."""

    version: str
    exchanges: tuple[Exchange, ...]
    messages: Mapping[str, Shape]
    description: Shape
    node_classes: Mapping[str, Mapping[str, Any]]


def load() -> Suite:
    """Return the suite, from the package's data."""
    value = json.loads((resources.files("gateway.conformance") / "expected.json").read_text("utf-8"))
    exchanges = (
        Exchange(
            entry["path"],
            tuple(Wanted(a["status"], a.get("media_type"), a.get("shape")) for a in entry["answers"]),
            tuple(entry.get("node_classes", ())),
        )
        for entry in value["exchanges"]
    )
    return Suite(
        value["comfyui_version"], tuple(exchanges), value["messages"], value["description"], value["node_classes"]
    )


def judge(suite: Suite, exchange: Exchange, answer: Answer) -> list[Verdict]:
    """Judge an answer. Return a line, and one more for each node class that is not there."""
    if answer.status == 404 and answer.body.startswith(_NO_ROUTE):
        return [Verdict(Outcome.MISSING, exchange.name, "there is no such route")]
    statuses = [wanted.status for wanted in exchange.answers]
    if answer.status not in statuses:
        if answer.status == 404:
            return [Verdict(Outcome.MISSING, exchange.name, "answered 404")]
        return [differs(exchange.name, f"status: expected {_either(statuses)}, found {answer.status}")]
    wanted = exchange.answers[statuses.index(answer.status)]
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if wanted.media_type is not None and media_type != wanted.media_type:
        return [differs(exchange.name, f"content type: expected {wanted.media_type}, found {media_type or 'none'}")]
    if wanted.shape is None:
        return [Verdict(Outcome.OK, exchange.name)]
    try:
        value = json_codec.loads(answer.body)
    except json_codec.MalformedJson:
        return [differs(exchange.name, "$: expected JSON, found what is not JSON")]
    comparison = compare(wanted.shape, value)
    absent: list[str] = []
    if not comparison.differences:
        absent = _compare_classes(suite, exchange.node_classes, value, comparison)
    return [verdict(exchange.name, comparison), *(_absent(name) for name in absent)]


def _compare_classes(suite: Suite, names: Sequence[str], found: Mapping[str, Any], into: Comparison) -> list[str]:
    """Compare node classes. Return the names of the missing ones."""
    for name in names:
        if name in found:
            compare_class(suite.node_classes[name], suite.description, name, found[name], into)
    return [name for name in names if name not in found]


def judge_greeting(suite: Suite, client_id: str, messages: Sequence[Any]) -> Verdict:
    """Judge /ws, by its first message and the answer to the client's ``feature_flags``."""
    if not messages:
        return differs("/ws", "first message: expected status, found none")
    first = messages[0]
    if not isinstance(first, dict) or first.get("type") != "status":
        return differs("/ws", f"first message: expected status, found {_type(first)}")
    comparison = compare(suite.messages["status"], first)
    if not comparison.differences and (sid := first["data"]["sid"]) != client_id:
        return differs("/ws", f"$.data.sid: expected the clientId of the request, found {sid!r}")
    flags = next((message for message in messages if is_flags(message)), None)
    if flags is None:
        return differs("/ws", "expected feature_flags as the answer to the client's, found none")
    compare(suite.messages["feature_flags"], flags, into=comparison)
    return verdict("/ws", comparison)


def is_flags(message: Any) -> bool:
    """Return True if a message is the answer to the client's ``feature_flags``."""
    return isinstance(message, dict) and message.get("type") == "feature_flags"


def no_socket(error: BackendError) -> Verdict:
    """Return the line for a /ws that can't be connected."""
    if isinstance(error, BadAnswer) and error.status == 404:
        return Verdict(Outcome.MISSING, "/ws", "answered 404")
    return differs("/ws", f"expected a socket: {error}")


def _type(message: Any) -> str:
    return str(message.get("type", "no type"))[:TEXT] if isinstance(message, dict) else "no JSON object"


def verdict(what: str, comparison: Comparison) -> Verdict:
    """Return the line for a comparison."""
    differences = comparison.differences
    if differences:
        shown = [str(difference)[: 2 * TEXT] for difference in differences[:SHOWN]]
        more = len(differences) - len(shown) + comparison.alike
        return differs(what, "; ".join([*shown, *([f"and {more} more"] if more else [])]))
    added = ", ".join(path[:TEXT] for path in comparison.added[:SHOWN])
    more = len(comparison.added) - SHOWN
    return Verdict(Outcome.OK, what, f"(new: {added}{f' and {more} more' if more > 0 else ''})" if added else "")


def differs(what: str, detail: str) -> Verdict:
    """Return the line for a difference that breaks a client."""
    return Verdict(Outcome.DIFFERS, what, detail)


def _absent(name: str) -> Verdict:
    return Verdict(Outcome.MISSING, f"node class {name}", "(a matter of the installation)", counts=False)


def _either(statuses: Sequence[int]) -> str:
    return " or ".join(map(str, statuses))


def fits(verdicts: Sequence[Verdict]) -> bool:
    """Return True if every line that counts is ok."""
    return all(verdict.outcome is Outcome.OK for verdict in verdicts if verdict.counts)


def summary(suite: Suite, version: str, verdicts: Sequence[Verdict]) -> str:
    """Return the last line."""
    counted = [verdict.outcome for verdict in verdicts if verdict.counts]
    ok, differ, missing = (counted.count(outcome) for outcome in Outcome)
    absent = len(verdicts) - len(counted)
    return plain(
        f"ComfyUI {version}, compared with recordings of {suite.version}: {ok} ok, {differ} differ, {missing} missing"
        + (f"; node classes not there: {absent}" if absent else "")
    )


def version_of(answer: Answer) -> str:
    """Return the version that a /system_stats tells; ``of unknown version`` if it tells none."""
    try:
        version = json_codec.loads(answer.body)["system"]["comfyui_version"]
    except (json_codec.MalformedJson, LookupError, TypeError):
        version = None
    return version[:TEXT] if isinstance(version, str) else "of unknown version"


def plain(text: str) -> str:
    """Return text for a terminal, because a server's text may hold control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)
