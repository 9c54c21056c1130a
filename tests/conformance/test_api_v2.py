"""The recorded exchanges of comfy-api-proxy, with the gateway in its place, and each difference by name."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from blake3 import blake3

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.pictures import png
from tests.support.security_world import KEYS, start
from tests.support.v2 import TERMINAL, Answer, Stream, V2Caller, V2World, start_v2
from tests.support.workflows import slow

pytestmark = pytest.mark.asyncio(loop_scope="module")
FOLDER = Path(__file__).parent / "api_v2"
SCENARIOS = sorted(path.stem for path in FOLDER.glob("*.json"))
# Answers that differ on purpose, by scenario and step: the gateway's status, and its error's code or its job's status.
# docs/api-v2.md gives the reasons.
DIFFERENCES: dict[tuple[str, int], tuple[int, str]] = {
    # Labels are taken.
    ("03", 0): (201, "queued"),
    # A cursor and a filter are not ignored.
    ("08", 9): (400, "invalid_cursor"),
    ("08", 10): (200, ""),
    # A bare 500.
    ("12", 11): (400, "invalid_request"),
    ("16", 12): (422, "invalid_request"),
    # Another file_path is another asset.
    ("14", 2): (200, ""),
    ("17", 5): (201, ""),
    # A HEAD with a body, and 502 for ranges.
    ("18", 3): (200, ""),
    ("18", 10): (416, "range_not_satisfiable"),
    ("18", 11): (200, ""),
    ("18", 12): (200, ""),
    ("18", 13): (416, "range_not_satisfiable"),
    ("19", 5): (416, "range_not_satisfiable"),
    # An output is an input.
    ("21", 10): (201, "queued"),
    # The description is served; the path beside it is the web UI's.
    ("35", 4): (200, ""),
    ("35", 7): (405, "method_not_allowed"),
    # Basic and X-API-Key are ways to send a key.
    ("31", 2): (200, ""),
    ("31", 4): (200, ""),
    ("31", 7): (401, "unauthorized"),
    # A body beyond the limit.
    ("32", 2): (413, "payload_too_large"),
    # No page can read an answer without CORS headers.
    ("33", 1): (200, ""),
    ("33", 3): (405, "method_not_allowed"),
    # Jobs and uploads are accepted, and jobs read, while no backend answers.
    ("34", 0): (201, "queued"),
    ("34", 2): (200, "queued"),
    ("34", 3): (200, "canceled"),
    ("34", 4): (200, ""),
    ("34", 5): (201, ""),
    ("34", 6): (200, ""),
    # A job that is being cancelled does not run again.
    ("53", 2): (200, "canceled"),
    # Labels are taken, and lists filtered by them.
    ("54", 4): (200, ""),
    ("55", 0): (201, "queued"),
    # Texts are outputs, too.
    ("38", 1): (200, "succeeded"),
}
# Settings of the scenarios that were recorded of a server of their own: eight streams, 1 MB, no key, ComfyUI away.
OWN_GATEWAY: dict[str, dict[str, Any]] = {
    "30": {"v2__max_streams": 8},
    "32": {"uploads__max_size": 2**20, "server__max_body": 2 * 2**20},
    "31": {},
    "33": {"anonymous": True},
    "34": {},
}
# Scenarios whose requests carry a key, or none, themselves. The recorded proxy had one token.
OWN_KEYS = ("31", "32", "33", "58")
TOKEN = "secret-token"
# Steps before which all jobs have ended, though the recording has no request for that.
WAITS = {("08", 2), ("10", 1), ("19", 1), ("26", 3)}
# Jobs that were cancelled without a recorded request.
CANCELS = {("26", 3): "<job-3>"}
# Streams that the proxy ended as expired, before the job's end.
TOLD_AS_EXPIRED = ("51",)
# Requests outside of the API.
LEFT_OUT = {("31", 10), ("35", 5)}
# Recorded values that are real ones here, or are told only here.
_UNCOMPARED = {
    "started_at",
    "completed_at",
    "size_bytes",
    "progress",
    "message",
    "outputs_reused",
    "traceback",
    "truncated",
    "details",
    "step_seconds",
    "upstream",
}
_SENT_HEADERS = (
    "range",
    "idempotency-key",
    "authorization",
    "x-api-key",
    "origin",
    "sec-fetch-site",
    "access-control-request-method",
)
_PLACEHOLDER = re.compile(r"<(?:job|asset|output|key)-\d+>")
_COUNTER = re.compile(r"_\d{5}_|temp_[a-z]{5}")
# Seconds of a recorded sampler's steps take so much less here; longer where a stream is opened midway.
SPEED = {"27": 0.5}
USUAL_SPEED = 0.2


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 3], ids=["alone", "fleet"])
async def world(shared_lab: Lab, request: pytest.FixtureRequest) -> V2World:
    """One gateway for all scenarios, over one backend or three, or over the real ComfyUI that --comfyui names."""
    url = request.config.getoption("--comfyui")
    if url and request.param > 1:
        pytest.skip("--comfyui names one ComfyUI")
    return await start_world(shared_lab, request.param, url, data=f"data{request.param}")


async def start_world(lab: Lab, backends: int, url: str | None, **settings: Any) -> V2World:
    """A gateway over simulators, or over a real ComfyUI with the test nodes."""
    if url is None:
        return await start_v2(lab, backends, **settings)
    gateway = await start(lab, url, **settings)
    return V2World(lab, [], gateway, *(V2Caller(lab, gateway, KEYS[name]) for name in ("anna", "ben")))


class Replay:
    """A scenario that is sent again.

    A real ComfyUI runs several output nodes in an order of its own at each start, which `is_real` ignores.
    """

    def __init__(self, caller: V2Caller, name: str, is_real: bool) -> None:
        self.caller = caller
        self.is_real = is_real
        self.number = name[:2]
        self.steps = json.loads((FOLDER / f"{name}.json").read_text())["steps"]
        # Recorded ids and hashes, and those in their place.
        self.known: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.streams: list[tuple[asyncio.Task[list[tuple[str, Any]]], list[Any]]] = []
        # Streams that stay open until the end.
        self.held = AsyncExitStack()

    async def run(self) -> None:
        """Send all steps."""
        async with self.held:
            await self.send_all()

    async def send_all(self) -> None:
        for number, step in enumerate(self.steps):
            if (self.number, number) in LEFT_OUT:
                continue
            await self.prepare(number)
            if "events" in step.get("response", {}):
                await self.follow(step)
            else:
                await self.ask(number, step)
        for task, recorded in self.streams:
            seen = await task
            if self.number in TOLD_AS_EXPIRED:
                assert [name for name, _ in seen[-2:]] == ["output", "status"]
                assert seen[-1] == ("status", {"status": "succeeded"})
            else:
                compare_events(recorded, seen, self.is_real)
        if self.number == "27":
            # A stream that is opened midway begins with the state of the job.
            (name, status), (next_name, progress) = (await self.streams[1][0])[:2]
            assert (name, status, next_name) == ("status", {"status": "running"}, "progress")
            assert progress["value"] > 0, await self.streams[1][0]
        for placeholder, job_id in self.known.items():
            if placeholder.startswith("<job-") and self.number != "07":
                # The next scenario has the backend for itself.
                await self.caller("POST", f"/jobs/{job_id}/cancel")

    async def follow(self, step: dict[str, Any]) -> None:
        """Read a stream while the next steps are sent."""
        stream = Stream(self.caller, self.caller.gateway.url + self.sent(step["request"]["path"]))
        await stream.__aenter__()

        async def rest() -> list[tuple[str, Any]]:
            async with asyncio.timeout(20):
                found = await stream.rest()
            await stream.__aexit__()
            return found

        self.streams.append((asyncio.create_task(rest()), step["response"]["events"]))
        if any(each["event"] == "progress" for each in step["response"]["events"] if "event" in each):
            # The calls that were made meanwhile came after some of its events.
            await asyncio.sleep(0)

    async def prepare(self, number: int) -> None:
        """Do what the recording does not show before a step."""
        if (self.number, number) == ("27", 2):
            await until(self.under_way, what="the job has begun")
        if (self.number, number) == ("53", 1):
            await self.caller.reaches(self.known["<job-1>"], "running")
        if (self.number, number) == ("30", 1):
            for _ in range(8):
                stream = Stream(self.caller, f"{self.caller.gateway.url}/api/v2/jobs/{self.known['<job-1>']}/events")
                assert (await (await self.held.enter_async_context(stream)).next()) is not None
        if (cancelled := CANCELS.get((self.number, number))) is not None:
            await self.caller("POST", f"/jobs/{self.known[cancelled]}/cancel")
        if (self.number, number) in WAITS:
            for placeholder, job_id in list(self.known.items()):
                if placeholder.startswith("<job-"):
                    job = await self.caller.reaches(job_id)
                    for place, output in enumerate(job["outputs"], start=1):
                        self.known.setdefault(f"<output-{place}>", output["id"])

    async def under_way(self) -> bool:
        """Return True once the first job has done some of its steps."""
        job = await self.caller.job(self.known["<job-1>"])
        assert job["status"] not in TERMINAL
        return bool(job["progress"] and job["progress"]["value"] > 0)

    async def ask(self, number: int, step: dict[str, Any]) -> None:
        """Send a step, and compare its answer; a job is asked for until it has come as far."""
        request, recorded = step["request"], step.get("response", {})
        method, path = request["method"], self.sent(request["path"]).removeprefix("/api/v2")
        wanted, where = recorded.get("body"), (self.number, number, method, path)
        difference = DIFFERENCES.get((self.number, number))
        status = wanted.get("status") if isinstance(wanted, dict) and "urls" in wanted else None
        headers = {**self.headers_of(request), **self.type_of(request)}

        async def look() -> Answer | None:
            answer = await self.caller(method, path, headers=headers, **self.body_of(request))
            polls = method == "GET" and status is not None and answer.status == 200
            is_there = not polls or answer.body["status"] in (status, *TERMINAL)
            return answer if is_there else None

        answer = await until(look, what=str(where))
        if difference is not None:
            assert (answer.status, told_by(answer)) == difference, (where, answer.raw[:300])
            if self.number == "34" and told_by(answer) == "queued":
                # The proxy has no job to tell of.
                self.known.setdefault("<job-1>", answer.body["id"])
            return
        assert answer.status == recorded["status"], (where, recorded["status"], answer.status, answer.raw[:400])
        if status not in (None, *TERMINAL) and path != "/jobs" and answer.body["status"] in TERMINAL:
            # The job, or its cancellation, ended before the answer: it is compared where the recording has its end.
            assert method == "GET" or answer.body["status"] == "canceled", where
            return
        if "retry-after" in recorded["headers"]:
            assert answer.headers["Retry-After"].isdecimal(), where
        if isinstance(wanted, dict) and "$binary" in wanted:
            if (mine := self.files.get(wanted["$binary"]["blake3"])) is not None:
                assert answer.raw == mine, where
        elif method != "HEAD" and not (isinstance(wanted, dict) and wanted.keys() & {"$text", "$note"}):
            self.compare(wanted, answer.body, where)

    def compare(self, recorded: Any, seen: Any, where: Any, key: str = "") -> None:
        """The answer has all that was recorded. Ids are noted when they are seen first."""
        if isinstance(recorded, dict):
            assert isinstance(seen, dict), (where, key, seen)
            for name, value in recorded.items():
                if name in _UNCOMPARED or (name == "hash" and value is None):
                    # Told here alone, or another value each time.
                    continue
                if name == "outputs" and recorded.get("status") == "running":
                    # They come while the job runs, here or there a moment earlier.
                    continue
                assert name in seen, (where, name, seen)
                self.compare(value, seen[name], where, name)
        elif isinstance(recorded, list):
            assert isinstance(seen, list), (where, key, seen)
            assert len(seen) == len(recorded), (where, key, len(recorded), seen)
            if self.is_real and key == "outputs":
                recorded, seen = sorted(recorded, key=_node), sorted(seen, key=_node)
            for one, other in zip(recorded, seen, strict=True):
                self.compare(one, other, where, key)
        elif isinstance(recorded, str) and isinstance(seen, str):
            self.compare_text(recorded, seen, where, key)
        else:
            assert recorded == seen, (where, key, recorded, seen)

    def compare_text(self, recorded: str, seen: str, where: Any, key: str) -> None:
        """A text is the recorded one, with the ids, hashes and numbers of this run."""
        if recorded == "<time>":
            assert re.search(r"[+-]\d\d:\d\d$", seen), (where, key, seen)
            return
        recorded = recorded.replace("http://gateway", self.caller.gateway.url)
        if key == "status" and recorded == "expired":
            recorded = "canceled"
        for placeholder in _PLACEHOLDER.findall(recorded):
            if placeholder not in self.known:
                before, _, after = recorded.partition(placeholder)
                self.known[placeholder] = seen[len(before) : len(seen) - len(after)]
        expected = self.sent(recorded)
        assert _COUNTER.sub("_", expected) == _COUNTER.sub("_", seen), (where, key, expected, seen)

    def sent(self, value: Any) -> Any:
        """A recorded value with the ids and hashes of this run, and faster samplers."""
        if isinstance(value, dict):
            speed = SPEED.get(self.number, USUAL_SPEED)
            return {name: speed * each if name == "step_seconds" else self.sent(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.sent(each) for each in value]
        if not isinstance(value, str):
            return value
        for placeholder in _PLACEHOLDER.findall(value):
            value = value.replace(placeholder, self.known.setdefault(placeholder, str(uuid.uuid4())))
        for recorded, mine in self.known.items():
            if re.fullmatch("[0-9a-f]{64}", recorded):
                value = value.replace(recorded, mine).replace(recorded.upper(), mine.upper())
        return value

    def file(self, told: dict[str, Any]) -> bytes:
        """The file in the place of a recorded one; the same for the same."""
        recorded = told["blake3"]
        if recorded not in self.files:
            number = int.from_bytes(blake3((self.number + recorded).encode()).digest()[:3], "big")
            data = png((number & 255, number >> 8 & 255, number >> 16), size=16)
            self.files[recorded] = data.ljust(told["bytes"], b"\0") if told["bytes"] > 100 else b"x" * told["bytes"]
            self.known[recorded.removeprefix("blake3:")] = blake3(self.files[recorded]).hexdigest()
        return self.files[recorded]

    def headers_of(self, request: dict[str, Any]) -> dict[str, str]:
        """Return the headers of a request that change its answer, with a key and an origin of this run."""
        kept = {name: value for name, value in request["headers"].items() if name in _SENT_HEADERS}
        if "origin" in kept:
            kept["origin"] = kept["origin"].replace("http://gateway", self.caller.gateway.url)
        for secret in (str, lambda text: base64.b64encode(text.encode()).decode()):
            kept = {name: value.replace(secret(TOKEN), secret(KEYS["anna"])) for name, value in kept.items()}
        return {name: self.sent(value) for name, value in kept.items()}

    def type_of(self, request: dict[str, Any]) -> dict[str, str]:
        """The Content-Type of a request whose body is no JSON and no form."""
        body = request.get("body")
        if isinstance(body, dict) and body.get("$multipart") == []:
            return {"Content-Type": "multipart/form-data; boundary=x"}
        return {}

    def body_of(self, request: dict[str, Any]) -> dict[str, Any]:
        """The body of a request, for aiohttp."""
        body = request.get("body")
        if body is None:
            return {}
        if isinstance(body, dict) and "$text" in body:
            return {"data": body["$text"]}
        if isinstance(body, dict) and "$note" in body:
            assert body["$note"] == "a graph of 3 MiB"
            node = {"class_type": "SlowSampler", "inputs": {"note": "x" * 3 * 2**20}}
            return {"data": io.BytesIO(json.dumps({"workflow": {"1": node}}).encode())}
        if isinstance(body, dict) and "$binary" in body:
            return {"data": self.file(body["$binary"])}
        if isinstance(body, dict) and "$multipart" in body:
            if not body["$multipart"]:
                return {"data": b""}
            for part in body["$multipart"]:
                if "$binary" in (told := part.get("body") or {}):
                    self.file(told["$binary"])
            return {"data": self.form_of(body["$multipart"])}
        return {"json": self.sent(body)}

    def form_of(self, parts: list[dict[str, Any]]) -> aiohttp.FormData:
        """The form of recorded parts."""
        form = aiohttp.FormData(quote_fields=False)
        for part in parts:
            if part.get("filename") is not None:
                form.add_field(
                    part["name"],
                    io.BytesIO(self.file(part["body"]["$binary"])),
                    filename=part["filename"],
                    content_type=part["content_type"],
                )
            else:
                form.add_field(part["name"] or "x", self.sent(part["value"]), content_type="text/plain")
        return form


def told_by(answer: Answer) -> str:
    """The code of an error, or the status of a job."""
    if answer.status >= 400:
        return str(answer.body["error"]["code"]) if answer.body else ""
    return str(answer.body["status"]) if isinstance(answer.body, dict) and "urls" in answer.body else ""


def _node(output: Any) -> str:
    return str(output["node_id"])


def compare_events(recorded: list[Any], seen: list[tuple[str, Any]], is_real: bool) -> None:
    """A stream ends as the recorded one, has its outputs, and tells of progress and previews where it did."""
    names = {each["event"] for each in recorded if "event" in each}
    assert {name for name, _ in seen} >= names - {"progress", "preview"}
    last = [each["data"]["status"] for each in recorded if each.get("event") == "status"][-1]
    assert seen[-1] == ("status", {"status": "canceled" if last == "expired" else last})
    outputs = [each for each in recorded if each.get("event") == "output"]
    told = [data for name, data in seen if name == "output"]
    order = sorted if is_real else list
    assert order(_node(each["data"]) for each in outputs) == order(_node(each) for each in told)


# Scenarios in which a job waits for another one's end.
QUEUED = ("09", "29")


@asynccontextmanager
async def all_but_one_busy(world: V2World) -> AsyncIterator[None]:
    """Let jobs of ben's run on all backends but one, so that a second job of anna's has to wait."""
    ben = Comfy(world.lab.http, world.gateway.url, **{"X-API-Key": KEYS["ben"]})
    backends = (await ben.get("/system_stats"))["devices"]
    ids = [await ben.prompt(slow(n, 1000)) for n in range(len(backends) - 1)]
    for prompt_id in ids:
        await ben.running(prompt_id)
    yield
    for prompt_id in ids:
        await ben.post("/interrupt", {"prompt_id": prompt_id})


async def place_of(world: V2World, name: str, url: str | None) -> V2World:
    """Return the shared gateway, or one of a scenario's own in the state that was recorded."""
    settings, backends = OWN_GATEWAY.get(name[:2]), len(world.simulators)
    if settings is None:
        return world
    own = await start_world(world.lab, backends, url, data=f"data{backends}-{name[:2]}", **settings)
    if name == "34-comfyui-away":
        if url is not None:
            pytest.skip("a real ComfyUI is not killed")
        for simulator in own.simulators:
            await simulator.kill()
    return own


@pytest.mark.parametrize("name", SCENARIOS)
async def test_the_gateway_answers_as_recorded(world: V2World, name: str, request: pytest.FixtureRequest) -> None:
    place = await place_of(world, name, request.config.getoption("--comfyui"))
    # Lists are recorded of a caller without other jobs.
    key = "" if name[:2] in OWN_KEYS else KEYS["ben" if name.startswith("08") else "anna"]
    replay = Replay(V2Caller(place.lab, place.gateway, key), name, is_real=not place.simulators)
    async with all_but_one_busy(place) if name.startswith(QUEUED) else nullcontext():
        await replay.run()
