"""Long parts are cut out of documents and put back, in names that their reader knows."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.comfy import events, json_codec
from gateway.comfy.long_parts import LONG_LIST, LONG_TEXT, SHORT_TEXT, without_marks
from gateway.jobs.parsing.json_reader import JsonReader
from gateway.jobs.parsing.reader_process import SLICE, Changes, CutParts, FillParts, Parting, encoded_in_slices
from gateway.jobs.state.partner_keys import Censor
from gateway.jobs.state.prompt_bounds import Bounds
from gateway.telemetry.metrics import Metrics

MARK = "0123456789abcdef01234567"
SECRET = "0123456789abcdef0123456789abcdef"
OWN, SHOWN = b"9d0f0c5e-5d0f-4f6e-8b1c-000000000001", b"shown"
CENSOR = Censor({"api_key_comfy_org": "a-partner-key"}, had_secrets=True)
CHANGES, NO_CHANGES = Changes(((OWN, SHOWN),), {SECRET: "mine.png"}, CENSOR), Changes()


@dataclass(frozen=True)
class Long:
    """A long text or list of what it repeats, which is short to show."""

    item: Any

    def whole(self) -> Any:
        """Return it."""
        item = self.item
        return item * (LONG_TEXT // len(item) + 1) if isinstance(item, str) else [[item, item]] * (LONG_LIST + 1)


def whole(value: Any) -> Any:
    """Return a value with all that is long in it."""
    if isinstance(value, Long):
        return value.whole()
    if isinstance(value, list):
        return [whole(item) for item in value]
    return {key: whole(item) for key, item in value.items()} if isinstance(value, dict) else value


LONG = ["x", "é\n", '"\\', f" u/{SECRET}/f/a.png ", OWN.decode(), "a-partner-key", 0, 1.5, None, True]
values = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(LONG).map(Long) | st.just(f"cut-{MARK}-99"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


class Desk:
    """A process that reads, with a folder for its documents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parting = Parting()
        self.count = 0

    def cut(self, document: bytes, *, maximum: int = 2**23, is_event: bool = False) -> tuple[CutParts, bytes]:
        """Cut a document."""
        path = self.folder / "document"
        path.write_bytes(document)
        order = CutParts(str(path), MARK, maximum, is_event)
        return order, self.parting.cut(order)

    def fill(self, cut: CutParts, left: bytes, changes: Changes = NO_CHANGES, *, is_packed: bool = False) -> bytes:
        """Fill what is left of it."""
        self.count += 1
        target = self.folder / f"filled{self.count}"
        size = self.parting.fill(FillParts(cut, str(target), changes, is_packed), left)
        filled = target.read_bytes()
        assert len(filled) == size
        return filled


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


several = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@several
@given(st.dictionaries(st.text(), values, max_size=4), st.booleans())
def test_what_is_put_back_is_what_was_cut_out(desk: Desk, outputs: dict[str, Any], again: bool) -> None:
    entry = {"outputs": whole(outputs), "status": {"messages": []}}
    document = json_codec.dumps_exact(entry)
    cut, left = desk.cut(document)
    assert json.loads(left)["outputs"].keys() == outputs.keys()
    assert len(left) < 2 * LONG_TEXT
    if again:
        # Another process, or the same after another document.
        desk.parting.forget()
    # Names of secret folders go in any case.
    assert json.loads(desk.fill(cut, NO_CHANGES.of(left))) == json.loads(NO_CHANGES.of(document))


@several
@given(st.dictionaries(st.text(), values, max_size=4))
def test_its_reader_gets_no_name_that_it_must_not_know(desk: Desk, outputs: dict[str, Any]) -> None:
    """What is left is changed by who handles it; the long parts are changed as all of it would be."""
    document = json_codec.dumps({"outputs": whole(outputs)})
    cut, left = desk.cut(document)
    filled = desk.fill(cut, CHANGES.of(left), CHANGES)
    assert json.loads(filled) == json.loads(CHANGES.of(document))
    for name in (SECRET.encode(), OWN, b"a-partner-key"):
        assert name not in filled


def test_a_packed_one_is_as_the_journal_keeps_it(desk: Desk) -> None:
    document = json_codec.dumps({"outputs": {"1": {"text": ["x" * 100_000]}}, "status": {}})
    cut, left = desk.cut(document)
    assert json.loads(zlib.decompress(desk.fill(cut, left, is_packed=True))) == json.loads(document)


@pytest.mark.parametrize("size", [0, 1, SLICE, SLICE + 1, 3 * SLICE])
def test_a_long_list_is_encoded_in_slices(size: int) -> None:
    numbers = list(range(size))
    for value in (numbers, [numbers, 1, [], [numbers]], "x" * size):
        for encode in (json_codec.dumps, json_codec.dumps_exact):
            assert json.loads(encoded_in_slices(value, encode)) == value


async def test_a_process_has_the_memory_for_long_lists_of_numbers(tmp_path: Path) -> None:
    path, target = tmp_path / "document", tmp_path / "filled"
    path.write_bytes(b'{"outputs":{"1":{"n":[%b1.5]}}}' % (b"1.5," * 4_000_000))
    reader = JsonReader(Bounds(), 2**20, Metrics())
    try:
        cut = CutParts(str(path), MARK, 2**23, is_event=False)
        left = await reader.cut("t", cut)
        size = await reader.fill("t", FillParts(cut, str(target), NO_CHANGES, is_packed=False), left)
    finally:
        await reader.close()
    assert size == path.stat().st_size
    assert target.read_bytes() == path.read_bytes()


def test_nan_stays(desk: Desk) -> None:
    document = b'{"outputs": {"1": {"a": [%b NaN]}}}' % (b"1," * LONG_LIST)
    cut, left = desk.cut(document)
    assert b"NaN" not in left
    assert b"NaN]" in desk.fill(cut, left)


def test_no_text_that_a_node_says_stands_for_another(desk: Desk) -> None:
    document = json_codec.dumps({"outputs": {"1": {"a": ["x" * 20_000], "b": [f"cut-{MARK}-7", "cut-guess-0"]}}})
    cut, left = desk.cut(document)
    assert json.loads(desk.fill(cut, left)) == json.loads(document)
    assert json.loads(without_marks(left, MARK))["outputs"]["1"]["a"] == ["…"]


def test_of_an_entry_the_largest_outputs_are_left_out(desk: Desk) -> None:
    """What has too many values is too large, too: it can't be cut out, because it may name files."""
    names = {"images": [{"filename": f"{n}.png", "type": "output"} for n in range(30_000)]}
    outputs = {"1": {"text": ["a"]}, "2": names, "3": {"text": ["x" * 100_000]}}
    cut, left = desk.cut(json_codec.dumps({"outputs": outputs, "status": {"status_str": "success"}}))
    found = json.loads(desk.fill(cut, left))
    assert found["outputs"] == {"1": outputs["1"], "3": outputs["3"]}
    assert found["status"] == {"status_str": "success"}
    assert found["gateway_left_out"].keys() == {"2"}


def test_what_is_told_of_errors_is_shortened(desk: Desk) -> None:
    """Absolute paths and keys are looked for in it, in one piece."""
    data = {"node_id": "1", "exception_message": "x" * 10_000_000, "prompt_id": "p"}
    _, left = desk.cut(json_codec.dumps({"type": "execution_error", "data": data}), is_event=True)
    event = events.parse(left)
    assert event is not None
    assert event.data["exception_message"].startswith("x" * SHORT_TEXT + "… (")
    messages = [["execution_error", data]]
    _, left = desk.cut(json_codec.dumps({"outputs": {}, "status": {"messages": messages}}))
    assert len(left) < 2 * SHORT_TEXT


MANY = b'{"type": "executed", "data": {"output": [%b]}}' % b",".join([b'{"a":"b"}'] * 50_000)


@pytest.mark.parametrize("document", [b"", b"[", b"[" * 5_000, b"\xff", MANY], ids=range(5))
def test_what_is_no_event_is_not_read(desk: Desk, document: bytes) -> None:
    assert desk.cut(document, is_event=True)[1] == b""
