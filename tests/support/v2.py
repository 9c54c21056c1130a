"""The Comfy API v2, as one caller uses it. Each answer is compared with the API's own description."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import aiohttp
import jsonschema_rs
from blake3 import blake3

from gateway.web.v2.openapi import OPERATIONS, SCHEMAS
from tests.support.comfy_client import SECRET_FOLDER
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.security_world import KEYS, start

TERMINAL = ("succeeded", "failed", "canceled", "expired")


@dataclass(frozen=True)
class Answer:
    """An answer: its status, headers and bytes, and its JSON, if it is any."""

    status: int
    headers: Any
    raw: bytes
    body: Any


def _operation(method: str, path: str) -> dict[str, Any] | None:
    """The description of a request; templates with fewer variables first."""
    for (known, template), operation in sorted(OPERATIONS.items(), key=lambda each: each[0][1].count("{")):
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        if known in (method, "GET" if method == "HEAD" else method) and re.fullmatch(pattern, path):
            return operation
    return None


def check(method: str, path: str, answer: Answer) -> None:
    """An answer is one that the description tells of, and has its form."""
    operation = _operation(method, path.partition("?")[0])
    schema: Any = {"$ref": "#/components/schemas/Error"} if answer.status >= 400 else None
    # A path with a name in an id's place has no description of the methods that it lacks.
    if operation is not None and answer.status != 405:
        described = operation["responses"].get(str(answer.status))
        assert described is not None, (method, path, answer.status, answer.raw[:300])
        schema = described.get("content", {}).get("application/json", {}).get("schema") or schema
    if schema is not None and method != "HEAD":
        whole = {**schema, "components": {"schemas": SCHEMAS}}
        jsonschema_rs.validator_for(whole, validate_formats=True).validate(answer.body)


class V2Caller:
    """The API as one caller."""

    def __init__(self, lab: Lab, gateway: GatewayProcess, key: str = "") -> None:
        self.lab, self.gateway = lab, gateway
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def __call__(self, method: str, path: str, **more: Any) -> Answer:
        """Ask for a path below /api/v2, or a link."""
        url = path if path.startswith("http") else f"{self.gateway.url}/api/v2{path}"
        headers = {**self.headers, **more.pop("headers", {})}
        async with self.lab.http.request(method, url, headers=headers, **more) as response:
            raw = await response.read()
            is_json = response.headers.get("Content-Type", "").startswith("application/json") and raw
            answer = Answer(response.status, response.headers, raw, json.loads(raw) if is_json else None)
        # Pictures hold their prompts, as their backends know them.
        found = SECRET_FOLDER.search(raw) if is_json else None
        assert found is None, (path, found)
        check(method, url.removeprefix(self.gateway.url), answer)
        return answer

    async def submit(self, workflow: dict[str, Any], headers: dict[str, str] | None = None, **more: Any) -> Any:
        """Submit a job that is accepted; its object."""
        answer = await self("POST", "/jobs", json={"workflow": workflow, **more}, headers=headers or {})
        assert answer.status == 201, answer.raw
        assert answer.body["status"] == "queued"
        return answer.body

    async def job(self, job_id: str) -> Any:
        """A job that there is."""
        answer = await self("GET", f"/jobs/{job_id}")
        assert answer.status == 200, answer.raw
        return answer.body

    async def reaches(self, job_id: str, *statuses: str) -> Any:
        """Wait until a job has one of these statuses; a terminal one if none are given."""

        async def look() -> Any:
            job = await self.job(job_id)
            assert job["status"] in (statuses or TERMINAL) or job["status"] not in TERMINAL, job
            return job if job["status"] in (statuses or TERMINAL) else None

        return await until(look, what=f"{statuses}")

    async def run(self, workflow: dict[str, Any], **more: Any) -> Any:
        """Submit a job and wait for its end."""
        return await self.reaches((await self.submit(workflow, **more))["id"])

    async def upload(self, data: bytes, path: str | None = "in.png", **fields: str) -> Answer:
        """Upload an asset, the file last."""
        form = aiohttp.FormData(quote_fields=False)
        if path is not None:
            form.add_field("file_path", path)
        for name, value in fields.items():
            form.add_field(name, value)
        form.add_field("file", data, filename="photo.png", content_type="image/png")
        return await self("POST", "/assets", data=form)

    async def content(self, asset: Any, **headers: str) -> Answer:
        """The bytes of an asset, by its link."""
        return await self("GET", asset["url"], headers=headers)

    def stream(self, job: Any) -> Stream:
        """The events of a job, by its link."""
        return Stream(self, job["urls"]["events"])


class Stream:
    """An event stream: ``async with`` opens it."""

    def __init__(self, caller: V2Caller, url: str) -> None:
        self._request = caller.lab.http.get(url, headers=caller.headers)
        self._response: aiohttp.ClientResponse

    async def __aenter__(self) -> Stream:
        self._response = await self._request.__aenter__()
        assert self._response.status == 200, await self._response.text()
        assert self._response.headers["Content-Type"] == "text/event-stream"
        assert self._response.headers["X-Accel-Buffering"] == "no"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._response.close()

    async def next(self) -> tuple[str, Any] | None:
        """The next event; None at the end."""
        name = ""
        async for line in self._response.content:
            text = line.decode().rstrip("\n")
            if text.startswith("event: "):
                name = text.removeprefix("event: ")
            elif text.startswith("data: "):
                return name, json.loads(text.removeprefix("data: "))
        return None

    async def rest(self) -> list[tuple[str, Any]]:
        """All events up to the end."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


def hash_of(data: bytes) -> str:
    """The hash of bytes, as the API writes it."""
    return f"blake3:{blake3(data).hexdigest()}"


def reference(id_: str | None, **hints: str) -> dict[str, Any]:
    """A reference to an asset, as it stands in a graph."""
    info = {**({} if id_ is None else {"id": id_}), **hints}
    return {"__type": "core/ASSET", "info": info}


@dataclass(frozen=True)
class V2World:
    """A gateway, its backends, and two of its tenants."""

    lab: Lab
    simulators: list[Simulator]
    gateway: GatewayProcess
    anna: V2Caller
    ben: V2Caller


async def start_v2(lab: Lab, backends: int = 1, **settings: Any) -> V2World:
    """Start a `V2World`."""
    simulators = await lab.simulators(backends)
    gateway = await start(lab, *simulators, **settings)
    anna, ben = (V2Caller(lab, gateway, KEYS[name]) for name in ("anna", "ben"))
    return V2World(lab, simulators, gateway, anna, ben)
