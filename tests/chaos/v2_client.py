"""A client of the Comfy API v2: it submits with keys, follows events, and cancels. What it is told is checked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp

from tests.chaos.plan import Task

TERMINAL = ("succeeded", "failed", "canceled")
LIVING = ("queued", "running", "canceling")
NO_ANSWER = (aiohttp.ClientError, OSError, TimeoutError)
AGAIN_AFTER = 0.1
# Answered looks at the list after which a job that a lost answer may have told of was not made.
LOOKS = 20
# Seconds after which a stream is dead, because it has a comment every 15 seconds.
SILENCE = 20.0
MAX_PROBLEMS = 5


class Keys:
    """The Idempotency-Key of one task: another one once nobody can know what became of the last."""

    def __init__(self, task: Task) -> None:
        self._seed = task.seed
        self._number = 0
        # True if an attempt with this key got no answer, so that it may have made a job.
        self.is_unknown = False

    @property
    def key(self) -> str:
        """The key of the next attempt."""
        return f"chaos-{self._seed}-{self._number}"

    def change(self) -> None:
        """Use another key from now on."""
        self._number, self.is_unknown = self._number + 1, False


class V2Client:
    """The API as one client calls it.

    Args:
        unanswered: called with the seed of a job that may have been made without the client's knowledge.
    """

    def __init__(self, name: str, url: str, http: aiohttp.ClientSession, unanswered: Callable[[int], None]) -> None:
        self.problems: list[str] = []
        # By the job's id, the status with which its events ended.
        self.ends: dict[str, str] = {}
        # The outputs that the last of its streams told. A job that ran again may have told some of its former run.
        self.outputs: dict[str, list[str]] = {}
        self._name = name
        self._url = f"{url}/api/v2"
        self._http = http
        self._unanswered = unanswered

    def _note(self, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{self._name}: {problem}")

    async def submit(self, task: Task, graph: dict[str, Any], keys: Keys) -> str | None:
        """Submit a job once. Return its id; None if it is to be sent again."""
        body = {"workflow": graph, "metadata": {"seed": str(task.seed)}}
        try:
            async with self._http.post(f"{self._url}/jobs", json=body, headers={"Idempotency-Key": keys.key}) as answer:
                told = await answer.json()
                if answer.status == 201:
                    return str(told["id"])
                code = told["error"]["code"]
                if code != "idempotency_key_reuse":
                    self._look_at_refusal(answer, code)
                    return None
        except NO_ANSWER:
            keys.is_unknown = True
            return None
        if not keys.is_unknown:
            self._note(f"the key of a refused job was not freed: {keys.key}")
        return await self._made(task, keys)

    def _look_at_refusal(self, answer: aiohttp.ClientResponse, code: str) -> None:
        if answer.status not in (429, 502, 503) or not answer.headers.get("Retry-After", "").isdigit():
            self._note(f"refused with {answer.status} {code}, {dict(answer.headers)}")

    async def _made(self, task: Task, keys: Keys) -> str | None:
        """Return the job that an attempt without an answer made. If there is none, the next attempt has another key."""
        for _ in range(LOOKS):
            try:
                query = {"metadata[seed]": str(task.seed)}
                async with self._http.get(f"{self._url}/jobs", params=query) as answer:
                    if answer.status == 200 and (jobs := (await answer.json())["jobs"]):
                        return str(jobs[0]["id"])
            except NO_ANSWER:
                pass
            await asyncio.sleep(AGAIN_AFTER)
        self._unanswered(task.seed)
        keys.change()
        return None

    async def cancel(self, job_id: str) -> str | None:
        """Cancel a job. Return its status then; None if no answer came, or if the journal can't be written."""
        try:
            async with self._http.post(f"{self._url}/jobs/{job_id}/cancel") as answer:
                if answer.status != 200:
                    return None
                told = str((await answer.json())["status"])
        except NO_ANSWER:
            return None
        if told not in (*TERMINAL, "canceling"):
            self._note(f"{job_id}: it was cancelled, and is {told}")
        return told

    async def follow(self, job_id: str) -> None:
        """Hear a job's events up to its end, on as many streams as that takes."""
        while job_id not in self.ends:
            try:
                await self._hear(job_id)
            except NO_ANSWER:
                pass
            await asyncio.sleep(AGAIN_AFTER)

    async def _hear(self, job_id: str) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE)
        outputs: list[str] = []
        async with self._http.get(f"{self._url}/jobs/{job_id}/events", timeout=timeout) as answer:
            if answer.status != 200:
                if answer.status not in (429, 503):
                    self._note(f"{job_id}: its events are {answer.status}")
                return
            first = True
            async for name, data in _events(answer.content):
                if first and name not in ("status", "output"):
                    # If the job has ended, its outputs come before its status.
                    self._note(f"{job_id}: its events begin with {name}")
                first = False
                if job_id in self.ends:
                    self._note(f"{job_id}: {name} after {self.ends[job_id]}")
                if name == "output":
                    outputs.append(data["id"])
                if name == "status" and data["status"] in TERMINAL:
                    self.ends[job_id] = data["status"]
                    self.outputs[job_id] = outputs
                    if len(outputs) != len(set(outputs)):
                        self._note(f"{job_id}: it told an output twice: {outputs}")
                elif name == "status" and data["status"] not in LIVING:
                    self._note(f"{job_id}: its events tell {data}")


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in content:
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            name = text.removeprefix("event: ")
        elif text.startswith("data: "):
            yield name, json.loads(text.removeprefix("data: "))
