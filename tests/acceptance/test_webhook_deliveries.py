"""Deliveries of real gateways: crashes, receivers that fail, endings of endpoints, events of backends."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook

from tests.support import keys_api
from tests.support.lab import Lab, until
from tests.support.uploads import ANNA, BEN, BOSS, with_keys
from tests.support.webhook_api import Api
from tests.support.webhook_receiver import LOCAL, Received, receiver
from tests.support.workflows import slow


def verify(got: Received, secret: str) -> None:
    """Let a library that is not ours verify a delivery."""
    Webhook(secret).verify(got.body, got.headers)


def read(journal: Path, query: str) -> list[Any]:
    """The data of the events in a journal."""
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as connection:
        return [json.loads(row[0])["data"] for row in connection.execute(query)]


async def test_an_end_is_told_after_a_crash_under_the_same_id(lab: Lab) -> None:
    """The receiver had it, and the gateway does not know: at least once."""
    async with receiver() as hook:
        simulator = await lab.simulator()
        gateway = await with_keys(lab, simulator, **LOCAL)
        anna = Api(lab, gateway, ANNA)
        id_, secret = await anna.make(hook.url)
        await Api(lab, gateway, BEN).make(f"{hook.url}/ben")
        hook.holds = True
        _, answer = await anna.prompt({"prompt": slow(steps=1), "extra_data": {"metadata": "order 1"}})
        (first,) = await hook.events(1)
        verify(first, secret)
        # One that has a webhook of its own ends while the gateway is down.
        own = {"webhook": {"url": f"{hook.url}/own", "secret": secret}}
        _, later = await anna.prompt({"prompt": slow(steps=2), "extra_data": own})
        await gateway.kill()
        hook.holds = False
        hook.released.set()
        gateway = await with_keys(lab, simulator, **LOCAL)
        got = await hook.events(4)
        (to_own,) = [each for each in got if each.path == "/own"]
        verify(to_own, secret)
        (to_endpoint,) = [each for each in got if each.id == to_own.id and each is not to_own]
        assert to_endpoint.body == to_own.body
        assert to_own.event["data"]["prompt_id"] == later["prompt_id"]
        (_, second) = [each for each in got if each.id != to_own.id]
        verify(second, secret)
        assert (second.id, second.body, second.path) == (first.id, first.body, "/")
        assert second.event["data"]["prompt_id"] == answer["prompt_id"]
        assert second.event["data"]["metadata"] == "order 1"
        anna = Api(lab, gateway, ANNA)

        async def delivered() -> list[dict[str, Any]]:
            listed = await anna.deliveries(f"/{id_}/deliveries")
            return listed if {each["state"] for each in listed} == {"delivered"} else []

        listed = await until(delivered)
        assert [attempt["status"] for each in listed for attempt in each["attempts"]] == [204, 204]
        # The next start has nothing to tell.
        assert await gateway.stop() == 0
        gateway = await with_keys(lab, simulator, **LOCAL)
        await Api(lab, gateway, ANNA)("POST", f"/{id_}/test")
        assert (await hook.events(5))[4].event["type"] == "webhook.test"
        assert len(hook.received) == 5


async def test_receivers_that_fail_are_left_alone_and_cost_others_nothing(lab: Lab) -> None:
    async with receiver() as stuck, receiver() as busy, receiver() as gone, receiver() as good:
        gateway = await with_keys(lab, await lab.simulator(), **LOCAL)
        anna = Api(lab, gateway, ANNA)
        stuck.holds = True
        busy.status, busy.more = 429, {"Retry-After": "3600"}
        gone.status = 410
        ids = {
            name: (await anna.make(each.url))[0]
            for name, each in {"stuck": stuck, "busy": busy, "gone": gone, "good": good}.items()
        }
        for _ in range(4):
            assert (await anna.prompt({"prompt": slow(steps=1)}))[0] == 200
        assert len({each.id for each in await good.events(4)}) == 4
        # Two at a time to one host, one attempt at who asks for a pause, and none at who wants no more.
        assert len(await stuck.events(2)) == 2
        waiting = await anna.deliveries(f"/{ids['busy']}/deliveries", state="pending")
        assert len(busy.received) == 1
        (tried,) = [each for each in waiting if each["attempts"]]
        assert [attempt["status"] for attempt in tried["attempts"]] == [429]
        # If its owner deletes a job, what is still to be sent tells nothing of the job's content.
        journal = gateway.data_dir / "gateway.sqlite3"
        payloads = f"SELECT payload FROM webhook_events WHERE prompt_id='{tried['prompt_id']}'"
        assert [data["outputs_left_out"] for data in read(journal, payloads)] == [0]
        status, _ = await anna("DELETE", f"/../jobs/{tried['prompt_id']}")
        assert status == 200
        (told,) = read(journal, payloads)
        assert (told["outputs"], told["outputs_left_out"]) == ([], 1)
        listed = await anna.deliveries(f"/{ids['gone']}/deliveries", state="dead")
        assert {each["state"] for each in listed} == {"dead"}
        assert len(gone.received) == 1
        status, shown = await anna("GET", f"/{ids['gone']}")
        assert (status, shown["state"], shown["reason"]) == (200, "disabled", "gone")
        assert (await anna("POST", f"/{ids['gone']}/replay", {"since": 0}))[0] == 409
        async with lab.http.get(f"{gateway.url}/metrics", headers={"X-API-Key": BOSS}) as answer:
            text = await answer.text()
        assert 'comfyui_gateway_webhook_deliveries_total{outcome="dead"} 1.0' in text


async def test_dead_letters_are_replayed_and_a_disabled_endpoint_misses_nothing(lab: Lab) -> None:
    async with receiver() as hook:
        gateway = await with_keys(lab, await lab.simulator(), webhooks__keep=3600, **LOCAL)
        anna = Api(lab, gateway, ANNA)
        id_, secret = await anna.make(hook.url)
        # The next attempt would come after the end of the event's time.
        hook.status, hook.more = 500, {"Retry-After": "86400"}
        await anna.prompt({"prompt": slow(steps=1)})
        (dead,) = await anna.deliveries(f"/{id_}/deliveries", state="dead")
        assert [attempt["status"] for attempt in dead["attempts"]] == [500]
        await anna("PATCH", f"/{id_}", {"state": "disabled"})
        await anna.prompt({"prompt": slow(steps=1)})

        async def two() -> bool:
            return len(await anna.deliveries(f"/{id_}/deliveries", state="dead")) == 2

        await until(two)
        assert len(hook.received) == 1
        hook.status, hook.more = 200, {}
        await anna("PATCH", f"/{id_}", {"state": "enabled"})
        assert await anna("POST", f"/{id_}/replay", {"since": 0}) == (202, {"replayed": 2})
        got = await hook.events(3)
        for each in got:
            verify(each, secret)
        assert got[0].id == dead["event_id"]
        assert got[0].id in {each.id for each in got[1:]}


async def test_admins_hear_of_backends(lab: Lab) -> None:
    async with receiver() as hook:
        simulators = await lab.simulators(2)
        gateway = await with_keys(lab, *simulators, **LOCAL)
        boss, events = Api(lab, gateway, BOSS), ["backend.down", "backend.up"]
        # The endpoint of somebody who is an admin no more stays, and hears of no backend.
        former = Api(lab, gateway, await keys_api.make(lab, gateway, "former", role="admin"))
        await former.make(f"{hook.url}/former", events=events)
        assert (await keys_api.ask(lab, gateway, "DELETE", "/former"))[0] == 200
        _, secret = await boss.make(hook.url, events=events)
        port = simulators[0].port
        await simulators[0].kill()
        (down,) = await hook.events(1)
        await lab.simulator(port=port)
        up = (await hook.events(2))[1]
        verify(up, secret)
        assert [each.event["type"] for each in (down, up)] == ["backend.down", "backend.up"]
        assert down.event["data"] == up.event["data"]
        assert (await boss("GET", "/deliveries?tenant=former"))[1]["deliveries"] == []
