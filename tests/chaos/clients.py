"""Clients as users write them: they post, listen, cancel, and try again when no answer came."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from gateway.comfy import previews
from tests.chaos.plan import ClientPlan, Task
from tests.chaos.story import IllegalStory, Listening
from tests.chaos.v2_client import Keys, V2Client
from tests.support.workflows import slow

AGAIN_AFTER = 0.1
GIVE_UP_AFTER = 60.0
# The header of POST /gateway/run that tells the id of an accepted job, whatever became of the job.
RUN_ID = "X-Gateway-Prompt-Id"
NO_ANSWER = (aiohttp.ClientError, OSError)


@dataclass
class Accepted:
    """A prompt that was answered 200. `connection` is the client's socket that was open then, counted from 1."""

    task: Task
    prompt_id: str
    sent_at: float
    connection: int | None
    cancel_asked: bool = False
    is_gone: bool = False


def is_run(task: Task) -> bool:
    """Whether a job goes to POST /gateway/run: with its own id, so that it can be sent again."""
    return task.prompt_id is not None and task.seed % 2 == 0


def graph_of(task: Task) -> dict[str, Any]:
    """A job's workflow."""
    graph = slow(task.seed, task.steps, task.step_seconds)
    if task.fails:
        graph["3"] = {"class_type": "FailNode", "inputs": {"image": ["1", 0], "message": "meant to fail"}}
        graph["2"]["inputs"]["images"] = ["3", 0]
    return graph


class Client:
    """One client. `work` and `listen` run side by side until `leave`."""

    def __init__(self, plan: ClientPlan, url: str, **headers: str) -> None:
        self.plan = plan
        self.accepted: list[Accepted] = []
        self.unanswered: Counter[int] = Counter()
        self.refused: Counter[int] = Counter()
        self.refused_for_space = 0
        self.listening = Listening(one_at_a_time=not plan.interleave)
        self.problems: list[str] = []
        self.is_connected = False
        self._url = url
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15), headers=headers)
        self.v2 = V2Client(plan.name, url, self._http, lambda seed: self.unanswered.update([seed]))
        self._following: list[asyncio.Task[None]] = []
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._leaving = False

    # -- sending ---------------------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Send all jobs, and go back on some."""
        async with asyncio.TaskGroup() as group:
            for task in self.plan.tasks:
                await asyncio.sleep(task.wait)
                group.create_task(self._do(task))

    async def _do(self, task: Task) -> None:
        accepted = await (self._send_v2(task) if task.is_v2 else self._send(task))
        self.accepted.append(accepted)
        if task.is_v2:
            self._following.append(asyncio.create_task(self.v2.follow(accepted.prompt_id)))
        if task.cancel is not None:
            await asyncio.sleep(task.cancel_after)
            await self._cancel(accepted, task.cancel)

    async def _send_v2(self, task: Task) -> Accepted:
        """Send it through the Comfy API v2 until it is taken: with one key, unless nobody knows what became of that."""
        sent_at, keys = time.time(), Keys(task)
        job_id: str = await _again(lambda: self.v2.submit(task, graph_of(task), keys))
        return Accepted(task, job_id, sent_at, None)

    async def heard_all(self) -> None:
        """Wait until the events of all jobs have ended. What is missing is told with the rest."""
        if self._following:
            await asyncio.wait(self._following, timeout=20)

    async def _send(self, task: Task) -> Accepted:
        """Send it until it is taken; it has the same id each time, if it has one of its own."""
        body: dict[str, Any] = {"prompt": graph_of(task)}
        if task.prompt_id is not None:
            body["prompt_id"] = task.prompt_id
        if task.is_heard:
            body["client_id"] = self.plan.name

        async def send() -> Accepted | None:
            sent_at, connection = time.time(), self.listening.connections if self.is_connected else None
            path, headers = ("/gateway/run", {"Prefer": "wait=0"}) if is_run(task) else ("/prompt", {})
            try:
                async with self._http.post(f"{self._url}{path}", json=body, headers=headers) as answer:
                    if RUN_ID in answer.headers:
                        return Accepted(task, answer.headers[RUN_ID], sent_at, connection)
                    if answer.status == 200:
                        return Accepted(task, str((await answer.json())["prompt_id"]), sent_at, connection)
                    if answer.status < 500:
                        raise AssertionError(f"{answer.status} to a prompt: {await answer.text()}")
                    self.refused[task.seed] += 1
                    await self._look_at_refusal(answer)
            except NO_ANSWER:
                self.unanswered[task.seed] += 1
            return None

        return await _again(send)

    async def _look_at_refusal(self, answer: aiohttp.ClientResponse) -> None:
        """A refusal for want of space says so, and when to come again."""
        if answer.status != 503:
            return
        type_ = (await answer.json())["error"]["type"]
        self.refused_for_space += type_ == "journal_unavailable"
        if type_ not in ("journal_unavailable", "too_many_waiting") or "Retry-After" not in answer.headers:
            self.problems.append(f"{self.plan.name}: refused with {type_}, {dict(answer.headers)}")

    async def _cancel(self, accepted: Accepted, how: str) -> None:
        accepted.cancel_asked = True
        if how == "v2":
            # A job that is canceling may come back after a crash.
            if await _again(lambda: self.v2.cancel(accepted.prompt_id)) == "canceled":
                await self._look_if_gone(accepted)
            return
        path, body = {
            "delete": ("/queue", {"delete": [accepted.prompt_id]}),
            "interrupt": ("/interrupt", {"prompt_id": accepted.prompt_id}),
            "cancel": (f"/api/jobs/{accepted.prompt_id}/cancel", {}),
        }[how]

        async def order() -> bool:
            try:
                async with self._http.post(self._url + path, json=body) as answer:
                    return answer.status == 200
            except NO_ANSWER:
                return False

        await _again(order)
        await self._look_if_gone(accepted)

    async def _look_if_gone(self, accepted: Accepted) -> None:
        try:
            accepted.is_gone = await self._is_gone(accepted.prompt_id)
        except NO_ANSWER:
            return

    async def _is_gone(self, prompt_id: str) -> bool:
        """Whether it is in neither list; it would leave the first one for the second."""
        async with self._http.get(f"{self._url}/queue") as answer:
            if prompt_id in await answer.text():
                return False
        async with self._http.get(f"{self._url}/history/{prompt_id}") as answer:
            return answer.status == 200 and await answer.json() == {}

    # -- listening -------------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Be connected, again whenever the socket breaks."""
        url = f"{self._url}/ws?clientId={self.plan.name}" + ("&events=interleave" if self.plan.interleave else "")
        while not self._leaving:
            try:
                async with self._http.ws_connect(url, max_msg_size=0) as socket:
                    if self.plan.interleave and self.plan.wants_metadata:
                        flags = {"supports_preview_metadata": True}
                        await socket.send_json({"type": "feature_flags", "data": flags})
                    self._socket = socket
                    self.listening.connected()
                    self.is_connected = True
                    async for message in socket:
                        self._hear(message)
            except NO_ANSWER:
                pass
            finally:
                self.is_connected = False
            await asyncio.sleep(AGAIN_AFTER)

    async def reconnect_now_and_then(self) -> None:
        """Close the socket at the planned times."""
        now = 0.0
        for at in self.plan.reconnects:
            await asyncio.sleep(at - now)
            now = at
            if self._socket is not None:
                await self._socket.close()

    def _hear(self, message: aiohttp.WSMessage) -> None:
        try:
            if message.type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                self.listening.heard(event["type"], event["data"])
            elif message.type is aiohttp.WSMsgType.BINARY and previews.event_type(message.data) == 4:
                preview = previews.parse_with_metadata(message.data)
                assert preview is not None
                self.listening.heard("preview", preview.metadata)
        except IllegalStory as story:
            if len(self.problems) < 5:
                self.problems.append(f"{self.plan.name}: {story}")

    def is_content(self) -> bool:
        """Whether it was told all that there is to tell, and that nothing is left."""
        stories = self.listening.stories.values()
        told = all(accepted.prompt_id in self.listening.stories for accepted in self.heard_throughout())
        return self.is_connected and self.listening.remaining == 0 and told and not any(s.is_begun for s in stories)

    def heard_throughout(self) -> list[Accepted]:
        """The prompts of which this client, connected from before they were sent, must hear."""
        now = self.listening.connections
        return [a for a in self.accepted if a.task.is_heard and a.connection == now and not a.cancel_asked]

    async def leave(self) -> None:
        """Disconnect."""
        self._leaving = True
        for following in self._following:
            following.cancel()
        await self._http.close()


async def _again(attempt: Callable[[], Awaitable[Any]]) -> Any:
    end = time.monotonic() + GIVE_UP_AFTER
    while time.monotonic() < end:
        if found := await attempt():
            return found
        await asyncio.sleep(AGAIN_AFTER)
    raise AssertionError(f"no answer within {GIVE_UP_AFTER} s")
