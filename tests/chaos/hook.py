"""A receiver of webhooks: each end of a job is told it, at least once, under one id."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from gateway.comfy import json_codec
from tests.chaos.clients import Client
from tests.support.comfy_client import Comfy
from tests.support.lab import until
from tests.support.webhook_receiver import WebhookReceiver

TYPES = {
    "execution_success": "job.succeeded",
    "execution_error": "job.failed",
    "execution_interrupted": "job.cancelled",
}


async def subscribe(comfy: Comfy, hook: WebhookReceiver) -> None:
    """Let the gateway tell a receiver of the ends of jobs."""
    status, answer = await comfy.post("/gateway/api/v1/me/webhooks", {"url": hook.url})
    assert status == 201, answer


async def untold(hook: WebhookReceiver, clients: list[Client], history: dict[str, dict[str, Any]]) -> list[str]:
    """What the receiver was told wrong, or not at all."""
    cancelled = {each.prompt_id for client in clients for each in client.accepted if each.is_gone}

    async def all_told() -> bool:
        told = {json_codec.loads(each.body)["data"]["prompt_id"] for each in hook.received}
        return {*history, *cancelled} <= told

    try:
        await until(all_told, 30)
    except AssertionError:
        # What is missing is said with the rest.
        pass
    ids, types = defaultdict(set), defaultdict(set)
    for each in hook.received:
        event = json_codec.loads(each.body)
        ids[event["data"]["prompt_id"]].add(each.id)
        types[event["data"]["prompt_id"]].add(event["type"])
    ended = {prompt_id: TYPES[entry["status"]["messages"][-1][0]] for prompt_id, entry in history.items()}
    ended |= dict.fromkeys(cancelled, "job.cancelled")
    # If the gateway died before a client heard if its cancelled job is gone, the job may be gone or not.
    asked = {each.prompt_id for client in clients for each in client.accepted if each.cancel_asked}
    maybe = dict.fromkeys(asked - ended.keys(), "job.cancelled")
    problems = [f"{each}: no webhook told its end" for each in ended if each not in types]
    problems += [
        f"{each}: webhooks told {types[each]}, and it is {ended.get(each)}"
        for each in types
        if types[each] != {(maybe | ended).get(each)}
    ]
    return problems + [f"{each}: its end has several ids" for each in ids if len(ids[each]) > 1]
