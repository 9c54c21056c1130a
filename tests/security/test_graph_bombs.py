"""Bodies that are made to cost more than they weigh: refused, or passed on as ComfyUI would take them, within bounds.

Each is sent to one gateway of its own process, which must answer it, answer others afterwards, and not have grown.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator
from tests.support.workflows import slow

MIB = 2**20
MAX_BODY = 16 * MIB
# A body is held twice while it is read, a million values take a fraction of a gigabyte, and the heap comes in pieces.
MAX_GROWTH = 256 * MIB
JSON = {"Content-Type": "application/json"}

Headers = dict[str, str]
Bomb = tuple[Callable[[], bytes], Headers, int, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Lab, GatewayProcess, Simulator]]:
    """One gateway over one backend, for all of these."""
    lab = Lab(tmp_path_factory.mktemp("bombs"))
    try:
        simulator = await lab.simulator()
        maximum = {"server__max_body": str(MAX_BODY), "dispatch__max_prompt_bytes": str(MAX_BODY)}
        yield lab, await lab.gateway(simulator, **maximum), simulator
    finally:
        await lab.close()


def peak(pid: int) -> int:
    """The most memory that a process ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def nested(depth: int, opened: bytes = b"[", closed: bytes = b"]") -> bytes:
    return b'{"prompt": {"1": {"class_type": "X", "inputs": {"a": ' + opened * depth + b"1" + closed * depth + b"}}}}"


def zipped(size: int, level: int = 9) -> bytes:
    """So many blanks and a body behind them, compressed a thousandfold."""
    packer = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    pieces = [packer.compress(b" " * MIB) for _ in range(size // MIB)]
    return b"".join([*pieces, packer.compress(json.dumps({"prompt": slow()}).encode()), packer.flush()])


def inputs(text: str) -> bytes:
    """A prompt with these inputs, beside one that runs."""
    node = '"9": {"class_type": "SlowSampler", "inputs": {' + text + "}}"
    return (json.dumps({"prompt": slow()})[:-2] + ", " + node + "}}").encode("utf-8", "surrogatepass")


def many(count: int, item: Callable[[int], str]) -> str:
    return ", ".join(item(n) for n in range(count))


REFUSED: dict[str, Bomb] = {
    "arrays 100,000 deep": (lambda: nested(100_000), {}, 400, "graph_too_large"),
    "arrays 900 deep": (lambda: nested(900), {}, 400, "graph_too_large"),
    "arrays 201 deep": (lambda: nested(201), {}, 400, "graph_too_large"),
    "objects 100,000 deep": (lambda: nested(100_000, b'{"a":', b"}"), {}, 400, "graph_too_large"),
    "deep beside the prompt": (
        lambda: b'{"prompt": {}, "extra_data": {"x": ' + b"[" * 300 + b"]" * 300 + b"}}",
        {},
        400,
        "graph_too_large",
    ),
    "opened and never closed": (lambda: b"[" * 900_000, {}, 400, "graph_too_large"),
    "5 million empty arrays": (lambda: nested(0) + b"[],[]," * 2_500_000, {}, 400, "graph_too_large"),
    "a million nodes": (
        lambda: b'{"prompt": {' + many(1_000_000, lambda n: f'"{n}":{{}}').encode() + b"}}",
        {},
        400,
        "graph_too_large",
    ),
    "2,001 nodes": (
        lambda: json.dumps({"prompt": {str(n): {"class_type": "X", "inputs": {}} for n in range(2_001)}}).encode(),
        {},
        400,
        "graph_too_large",
    ),
    "a node with a million inputs": (
        lambda: inputs(many(1_000_000, lambda n: f'"i{n}": 1')),
        {},
        400,
        "graph_too_large",
    ),
    "a million times the same key": (lambda: inputs(many(1_000_000, lambda _: '"a": 1')), {}, 400, "graph_too_large"),
    "a node with 40,000 inputs": (lambda: inputs(many(40_000, lambda n: f'"i{n}": 1')), {}, 400, "graph_too_large"),
    "a workflow of 150,000 values": (
        lambda: b'{"prompt": {}, "extra_data": {"x": [' + b"{}," * 150_000 + b"{}]}}",
        {},
        400,
        "graph_too_large",
    ),
    "501 outputs": (
        lambda: json.dumps({"prompt": {**slow(), **{f"o{n}": slow()["2"] for n in range(500)}}}).encode(),
        {},
        400,
        "too_many_outputs",
    ),
    "501 targets": (
        lambda: json.dumps({"prompt": slow(), "partial_execution_targets": ["2"] * 501}).encode(),
        {},
        400,
        "too_many_outputs",
    ),
    "500 targets and one output more": (
        lambda: json.dumps(
            {
                "prompt": {**slow(), **{f"o{n}": slow()["2"] for n in range(600)}},
                "partial_execution_targets": [f"o{n}" for n in range(501)],
            }
        ).encode(),
        {},
        400,
        "too_many_outputs",
    ),
    "a class of a megabyte": (
        lambda: json.dumps({"prompt": {"1": {"class_type": "x" * MIB}}}).encode(),
        {},
        400,
        "graph_too_large",
    ),
    "a title of a megabyte": (
        lambda: json.dumps({"prompt": {"1": {"class_type": "x", "_meta": {"title": ["x" * MIB]}}}}).encode(),
        {},
        400,
        "graph_too_large",
    ),
    "a client_id of a megabyte": (
        lambda: json.dumps({"prompt": slow(), "client_id": ["x" * MIB]}).encode(),
        {},
        400,
        "invalid_body",
    ),
    "partner keys of a megabyte": (
        lambda: json.dumps({"prompt": slow(), "extra_data": {"api_key_comfy_org": "x" * MIB}}).encode(),
        {},
        400,
        "invalid_body",
    ),
    "a file 33 deep": (
        lambda: inputs('"a": ' + '{"a":' * 33 + '"a.png"' + "}" * 33),
        {},
        400,
        "graph_too_large",
    ),
    "10,001 files": (
        lambda: inputs(many(10_001, lambda n: f'"f{n}": "{n}.png [output]"')),
        {},
        400,
        "graph_too_large",
    ),
    "900,000 files 190 deep": (
        lambda: inputs('"a": ' + '{"a":' * 190 + "[" + many(900_000, lambda _: '"a.png"') + "]" + "}" * 190),
        {},
        400,
        "graph_too_large",
    ),
    "a number of 100,000 digits": (lambda: inputs('"a": ' + "9" * 100_000), {}, 400, "invalid_json"),
    "a number of 10 million digits": (lambda: inputs('"a": ' + "9" * 10_000_000), {}, 400, "invalid_json"),
    "invalid UTF-8": (lambda: inputs('"a": "?"').replace(b"?", b"\xff\xfe\xfa"), {}, 400, "invalid_json"),
    "UTF-8 cut short": (lambda: inputs('"a": "?"').replace(b"?", b"\xe2\x82"), {}, 400, "invalid_json"),
    "NUL bytes": (lambda: bytes(1_000), {}, 400, "invalid_json"),
    "more than is taken": (lambda: b" " * (MAX_BODY + 1), {}, 413, "body_too_large"),
    "a codec that takes the square of the time": (
        lambda: b"a" * MIB,
        {"Content-Type": "application/json; charset=punycode"},
        400,
        "invalid_json",
    ),
    "a charset that nobody knows": (
        lambda: inputs('"a": 1'),
        {"Content-Type": "application/json; charset=klingon"},
        400,
        "invalid_json",
    ),
    "not the charset that it says": (
        lambda: b"\xff" * 1_001,
        {"Content-Type": "application/json; charset=utf-16"},
        400,
        "invalid_json",
    ),
    "half a GB in half a MB of gzip": (lambda: zipped(512 * MIB), {"Content-Encoding": "gzip"}, 413, "body_too_large"),
    "gzip in gzip": (lambda: gzip.compress(zipped(MIB)), {"Content-Encoding": "gzip"}, 400, "invalid_json"),
    "gzip, gzip": (lambda: gzip.compress(zipped(MIB)), {"Content-Encoding": "gzip, gzip"}, 415, "unknown_coding"),
    "a thousand ends of gzip": (
        lambda: gzip.compress(b"") * 1_000,
        {"Content-Encoding": "gzip"},
        400,
        "invalid_body",
    ),
    "gzip that is none": (lambda: inputs('"a": 1'), {"Content-Encoding": "gzip"}, 400, "invalid_body"),
    "gzip cut short": (lambda: zipped(MIB)[:-9], {"Content-Encoding": "gzip"}, 400, "invalid_body"),
    "deflate that is none": (lambda: b"\x78" * 1_000, {"Content-Encoding": "deflate"}, 400, "invalid_body"),
    "brotli": (lambda: b"\x0b\x02\x80", {"Content-Encoding": "br"}, 415, "unknown_coding"),
    "a number that is none": (
        lambda: json.dumps({"prompt": slow()}).encode()[:-1] + b', "number": 1e999}',
        {},
        400,
        "invalid_number",
    ),
    "an array for a node": (lambda: b'{"prompt": {"1": [[[]]]}}', {}, 400, "invalid_prompt"),
    "an object for a class": (lambda: b'{"prompt": {"1": {"class_type": {}}}}', {}, 400, "invalid_prompt"),
    "a node's id of a megabyte": (
        lambda: json.dumps({"prompt": {"x" * MIB: 1}}).encode(),
        {},
        400,
        "invalid_prompt",
    ),
    "a node's id of 201 characters": (
        lambda: json.dumps({"prompt": {"x" * 201: {}}}).encode(),
        {},
        400,
        "graph_too_large",
    ),
}


# What is refused is beside the graph, in fields that the Comfy API v2 does not have.
BESIDE_THE_GRAPH = ("501 targets", "a client_id of a megabyte", "a number that is none")


async def send(lab: Lab, url: str, body: bytes, headers: Headers, path: str = "/prompt") -> tuple[int, Any]:
    """Send a body; (status, JSON)."""
    async with lab.http.post(url + path, data=BytesIO(body), headers={**JSON, **headers}) as answer:
        return answer.status, await answer.json()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", REFUSED)
async def test_refused(served: tuple[Lab, GatewayProcess, Simulator], name: str) -> None:
    lab, gateway, _ = served
    body, headers, status, type_ = REFUSED[name]
    before = peak(gateway.pid)
    try:
        answer = await send(lab, gateway.url, body(), headers)
    except aiohttp.ClientConnectionError:
        # Refused while it was still being sent: the answer may be lost with the connection.
        assert status == 413
        return
    assert answer[0] == status, answer
    assert answer[1]["error"]["type"] == type_
    assert len(json.dumps(answer[1])) < 4_000
    if not headers and name not in BESIDE_THE_GRAPH:
        # Below /api/v2 the same graph is refused as well.
        as_v2 = body().replace(b'"prompt"', b'"workflow"', 1)
        refused, told = await send(lab, gateway.url, as_v2, headers, "/api/v2/jobs")
        assert refused in (400, 413, 422), told
        assert set(told["error"]) == {"code", "message", "details"}
        assert len(json.dumps(told)) < 4_000
    assert peak(gateway.pid) - before < MAX_GROWTH
    assert (await Comfy(lab.http, gateway.url).get("/queue"))["queue_pending"] == []


ODD: dict[str, Callable[[], str]] = {
    "NaN and infinities": lambda: '"a": NaN, "b": Infinity, "c": -Infinity',
    "1e999": lambda: '"a": 1e999, "b": -1e999, "c": 1E+400',
    "tiny": lambda: '"a": 1e-999, "b": -0.0',
    "more than 64 bits": lambda: '"a": 18446744073709551616, "b": -99999999999999999999999999',
    "4,300 digits": lambda: '"a": ' + "9" * 4_300,
    "lone surrogates": lambda: '"a": "\\ud800", "\\udc00": "x"',
    "NUL in a text": lambda: '"a": "\\u0000"',
    "keys of other languages' objects": lambda: '"__proto__": {"x": 1}, "constructor": [], "__class__": "", "": 0',
    "the same key twice": lambda: '"a": 1, "a": {"b": 1, "b": 2}',
    "150 deep": lambda: '"a": ' + "[" * 150 + "]" * 150,
    "a text of 5 MB": lambda: '"a": "' + "x" * 5_000_000 + '"',
    "30,000 inputs": lambda: many(30_000, lambda n: f'"i{n}": {n}'),
    "not ASCII": lambda: '"a": "\U0001f600 é 日本", "é": 1',
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ODD)
async def test_passed_on_as_comfyui_reads_it(served: tuple[Lab, GatewayProcess, Simulator], name: str) -> None:
    """Odd, but ComfyUI takes it: the backend gets what Python's json makes of it (server.py, request.json)."""
    lab, gateway, simulator = served
    body = inputs(ODD[name]())
    before = peak(gateway.pid)
    status, answer = await send(lab, gateway.url, body, {})
    assert status == 200, answer
    entry = await Comfy(lab.http, gateway.url).entry(answer["prompt_id"])
    wanted = json.dumps(json.loads(body)["prompt"])
    assert json.dumps(entry["prompt"][2]) == wanted
    upstream_id = gateway.upstream_ids()[answer["prompt_id"]]
    there = (await Comfy(lab.http, simulator.url).get("/history"))[upstream_id]
    assert json.dumps(there["prompt"][2]) == wanted
    assert peak(gateway.pid) - before < MAX_GROWTH


def charsets() -> Iterator[tuple[str, bytes, Headers]]:
    """The same body, in ways that ComfyUI reads; and with a mark at its beginning, which it does not."""
    body = json.dumps({"prompt": slow()})
    for charset in ("utf-8", "UTF-8", "utf-16", "utf-16-le", "utf-32", "us-ascii", "iso-8859-1", "windows-1252"):
        yield charset, body.encode(charset), {"Content-Type": f"application/json; charset={charset}"}
    yield "no charset", body.encode(), {}
    yield "byte order mark", b"\xef\xbb\xbf" + body.encode(), {}
    yield "gzip", gzip.compress(body.encode()), {"Content-Encoding": "gzip"}
    yield "x-gzip", gzip.compress(body.encode()), {"Content-Encoding": "x-gzip"}
    yield "deflate", zlib.compress(body.encode()), {"Content-Encoding": "deflate"}
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    yield "bare deflate", bare.compress(body.encode()) + bare.flush(), {"Content-Encoding": "deflate"}
    yield "identity", body.encode(), {"Content-Encoding": "identity"}
    yield "10 MB of blanks, packed", zipped(10 * MIB), {"Content-Encoding": "gzip"}


@pytest.mark.asyncio(loop_scope="module")
async def test_charsets_and_codings(served: tuple[Lab, GatewayProcess, Simulator]) -> None:
    lab, gateway, _ = served
    for name, body, headers in charsets():
        status, answer = await send(lab, gateway.url, body, headers)
        assert status == 200, (name, answer)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", ["/queue", "/history", "/api/jobs/cancel", "/interrupt"])
async def test_other_bodies_are_bounded_too(served: tuple[Lab, GatewayProcess, Simulator], path: str) -> None:
    lab, gateway, _ = served
    before = peak(gateway.pid)
    for body, headers in (
        (b"[],[]," * 2_000_000, {}),
        (b"[" * 100_000, {}),
        (b'{"delete": ' + b"[" * 300 + b"]" * 300 + b"}", {}),
        (zipped(64 * MIB), {"Content-Encoding": "gzip"}),
        (b"x", {"Content-Encoding": "gzip"}),
    ):
        try:
            async with lab.http.post(gateway.url + path, data=BytesIO(body), headers={**JSON, **headers}) as answer:
                # An interrupt without a body that can be read is one without an id, as ComfyUI has it.
                assert answer.status in ((200, 400, 413) if path == "/interrupt" else (400, 413))
        except aiohttp.ClientConnectionError:
            continue
    assert peak(gateway.pid) - before < MAX_GROWTH


async def test_graphs_that_are_costly_to_validate(lab: Lab) -> None:
    """While they wait, the gateway validates: a chain, cycles, links to oneself, and thousands of outputs that fail."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    await simulator.kill()
    await lab.backends_up(gateway, 0)
    before = peak(gateway.pid)

    def blur(image: Any) -> dict[str, Any]:
        return {"class_type": "ImageBlur", "inputs": {"image": image, "blur_radius": 1, "sigma": 1.0}}

    def save(image: Any) -> dict[str, Any]:
        return {"class_type": "SaveImage", "inputs": {"images": image, "filename_prefix": "x"}}

    start = slow()["1"]
    chain = {"0": start, **{str(n): blur([str(n - 1), 0]) for n in range(1, 799)}, "end": save(["798", 0])}
    ring = {**{str(n): blur([str((n + 1) % 799), 0]) for n in range(799)}, "end": save(["0", 0])}
    oneself = {
        **{str(n): blur([str(n), 0]) for n in range(500)},
        **{f"s{n}": save([str(n), 0]) for n in range(500)},
    }
    failing = {str(n): save([str(n), 0]) for n in range(500)}
    nowhere = {str(n): save([[["x"]], {}]) for n in range(500)}
    for prompt, wanted in ((chain, 200), (ring, 400), (oneself, 400), (failing, 400), (nowhere, 400)):
        status, answer = await send(lab, gateway.url, json.dumps({"prompt": prompt}).encode(), {})
        assert status == wanted, str(answer)[:300]
        if wanted == 400:
            assert answer["error"]["type"] == "prompt_outputs_failed_validation"
            assert answer["node_errors"]
            assert all(len(node["dependent_outputs"]) <= 100 for node in answer["node_errors"].values())
    assert peak(gateway.pid) - before < MAX_GROWTH
    assert (await Comfy(lab.http, gateway.url).get("/prompt"))["exec_info"]["queue_remaining"] == 1


async def test_the_bounds_can_be_set(lab: Lab) -> None:
    settings = {"max_nodes": 3, "max_depth": 16, "max_body_values": 300, "max_graph_values": 100, "max_outputs": 2}
    bounds = {f"dispatch__{name}": str(value) for name, value in settings.items()}
    gateway = await lab.gateway(await lab.simulator(), dispatch__max_prompt_bytes="4000", **bounds)
    for prompt, extra, wanted in (
        (slow(), [], 200),
        ({**slow(), "3": {}, "4": {}}, [], 400),
        (slow(), json.loads("[" * 15 + "]" * 15), 200),
        (slow(), json.loads("[" * 16 + "]" * 16), 400),
        (slow(), [0] * 320, 400),
        (slow(), [0] * 200, 200),
        ({**slow(), "3": {"class_type": "X", "inputs": {"a": [0] * 110}}}, [], 400),
        (slow(), "x" * 4_000, 413),
    ):
        status, answer = await send(lab, gateway.url, json.dumps({"prompt": prompt, "rest": extra}).encode(), {})
        assert status == wanted, answer
        if wanted == 400:
            assert answer["error"]["type"] == "graph_too_large"
    twice = {**slow(), "3": slow()["2"]}
    assert (await send(lab, gateway.url, json.dumps({"prompt": twice}).encode(), {}))[0] == 200
    more = {"prompt": twice, "partial_execution_targets": ["2", "3", "4"]}
    assert (await send(lab, gateway.url, json.dumps(more).encode(), {}))[1]["error"]["type"] == "too_many_outputs"


async def test_a_long_queue_comes_in_pieces(lab: Lab) -> None:
    """It is put together as it is sent, and says the same."""
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    noise = {"extra_data": {"noise": "x" * 700_000}}
    ids = [await comfy.prompt(slow(n, steps=1000, step_seconds=0.1), **noise) for n in range(3)]
    await comfy.running(ids[0])
    queue = await comfy.get("/queue")
    items = queue["queue_running"] + queue["queue_pending"]
    assert [item[1] for item in items] == ids
    assert [item[2] for item in items] == [slow(n, steps=1000, step_seconds=0.1) for n in range(3)]
    assert all(item[3]["noise"] == "x" * 700_000 for item in items)
    async with lab.http.head(f"{gateway.url}/queue") as answer:
        assert answer.status == 200


@pytest.mark.asyncio(loop_scope="module")
async def test_orders_name_as_many_jobs_as_may_wait(served: tuple[Lab, GatewayProcess, Simulator]) -> None:
    lab, gateway, _ = served
    for path, name in (("/queue", "delete"), ("/history", "delete"), ("/api/jobs/cancel", "job_ids")):
        for count, wanted in ((10_000, 200), (13_000, 400)):
            ids = ["11111111-2222-4333-8444-555555555555"] * count
            body = BytesIO(json.dumps({name: ids}).encode())
            async with lab.http.post(gateway.url + path, data=body, headers=JSON) as answer:
                assert answer.status == wanted, (path, count, await answer.text())
