"""Large documents, read in parts as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy import json_codec
from gateway.comfy.json_stream import STEP, JsonStream, TooLarge, Unreadable
from gateway.comfy.responses import read_large_history_entry, read_large_queue

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    """A document in pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def stream(data: bytes, size: int = 7, maximum: int = 10**9) -> JsonStream:
    """A document that comes in pieces of a size."""
    return JsonStream(pieces(data, size), maximum)


@given(JSON, st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_a_value_is_what_it_is_in_the_whole(value: Any, size: int, indent: int | None, is_ascii: bool) -> None:
    """Whatever the size of the pieces, and whether it is taken or passed over."""
    said = json.dumps({"a": value, "b": [value, 1]}, indent=indent, ensure_ascii=is_ascii).encode(
        "utf-8", "surrogatepass"
    )

    async def read() -> tuple[Any, list[Any]]:
        document, taken, items = stream(said, size), None, []
        async for key in document.members():
            if key == "a":
                taken = await document.value(10**6, 10**6)
            else:
                async for place in document.items():
                    if place == 0:
                        await document.skip()
                    else:
                        items.append(await document.value(10, 10))
        await document.end()
        return taken, items

    assert asyncio.run(read()) == (value, [1])


@given(st.binary(max_size=200) | st.text(alphabet='{}[],:"\\x1 ', max_size=60).map(str.encode), st.integers(1, 9))
def test_any_bytes_are_read_or_refused(data: bytes, size: int) -> None:
    async def read() -> None:
        document = stream(data, size)
        async for _ in document.members():
            await document.skip()

    try:
        asyncio.run(read())
    except Unreadable:
        pass


async def test_a_value_has_a_bound() -> None:
    for maximum, values, fits in ((21, 10, True), (20, 10, False), (21, 3, False), (21, 4, True)):
        document = stream(b'["%s",1,2,3]' % (b"x" * 11))
        if fits:
            assert await document.value(maximum, values) == ["x" * 11, 1, 2, 3]
        else:
            with pytest.raises(TooLarge):
                await document.value(maximum, values)


async def test_a_document_has_a_bound() -> None:
    document = stream(b'["' + b"x" * 10_000, maximum=5000)
    with pytest.raises(TooLarge) as caught:
        await document.skip()
    assert 5000 < caught.value.size <= 5007


async def test_others_run_meanwhile() -> None:
    """Also if all of it is there at once: after each step."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    data = b'{"a": [' + b"[]," * STEP + b"1]}"
    document = stream(data, len(data))
    async for _ in document.members():
        await document.skip()
    counting.cancel()
    assert turns >= len(data) // STEP


def entry(outputs: Any, graph: Any = None, **more: Any) -> bytes:
    """An answer to GET /history/id."""
    extra = {"client_id": "c", "gateway_assignment": "m", "extra_pnginfo": {"workflow": [1] * 100}}
    prompt = [1, "id", graph or {"1": {"inputs": {"a": "]}"}}}, extra, ["1"]]
    return json.dumps({"id": {"prompt": prompt, "outputs": outputs, "status": {}, "meta": {}, **more}}).encode()


async def test_of_an_entry_all_but_the_graph_is_read() -> None:
    outputs = {"1": {"text": ['x"y\\', "é"], "n": [float("nan")]}}
    found = await read_large_history_entry(stream(entry(outputs, odd=[{}])), "id", 1000)
    assert found is not None
    assert found.entry["prompt"] == [1, "id", None, {"client_id": "c", "gateway_assignment": "m"}, ["1"]]
    assert repr(found.entry["outputs"]) == repr(outputs)
    assert found.encode is json_codec.dumps_exact
    assert await read_large_history_entry(stream(entry({})), "other", 1000) is None


async def test_the_bound_of_an_entry_is_for_what_is_read_of_it() -> None:
    """Its graph may be larger."""
    graph = {"1": {"inputs": {"a": "x" * 5000, "b": [[]] * 3000}}}
    assert await read_large_history_entry(stream(entry({"1": {"a": ["x" * 500]}}, graph)), "id", 2000) is not None
    outputs = {"1": {"a": ["x" * 3000]}, "2": {"b": ["y" * 1500]}, "3": {"a": ["x" * 500]}, "4": {}}
    found = await read_large_history_entry(stream(entry(outputs)), "id", 2000)
    assert found is not None
    assert found.entry["outputs"] == {"2": outputs["2"], "4": {}}
    assert found.entry["gateway_left_out"] == {"1": 3011, "3": 511}
    assert not found.large


async def test_a_result_that_takes_long_to_read_is_not_parsed() -> None:
    """It has too many values, or too many bytes."""
    for output in ({"a": [[]] * 70_000}, {"a": ["x" * (6 * 2**20)]}):
        found = await read_large_history_entry(stream(entry({"1": output}), 10_000), "id", 10**7)
        assert found is not None
        assert found.entry["outputs"] == {}
        assert json.loads(b"".join(found.large))["outputs"] == {"1": output}


async def test_of_a_queue_each_item_is_read_without_its_graph() -> None:
    item = [1, "id", {"1": {}}, {"client_id": "c", "a": [[]]}, ["1"], {}]
    said = json.dumps({"queue_running": [item, {"a": 1, "b": 2}, [1], 5], "more": [1], "queue_pending": []}).encode()
    found = await read_large_queue(stream(said))
    assert found.running == ([1, "id", None, {"client_id": "c"}, ["1"]],)
    assert found.pending == ()
