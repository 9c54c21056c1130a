"""The service on a real journal, with a real sender and a port where nobody listens."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.store.protocol import Change
from gateway.store.sqlite import SqliteStore
from gateway.store.webhook_records import DeliveryRecord, EventRecord, EventRemoval
from gateway.webhooks import delivery, schedule
from gateway.webhooks.lookups import Lookups, NoThread
from gateway.webhooks.model import (
    DeliveryState,
    EndpointState,
    EventType,
    NotFound,
    Reason,
    Source,
    TooManyEndpoints,
    WebhookRefused,
    config_endpoint_id,
)
from gateway.webhooks.urls import BadUrl
from tests.support.lab import until
from tests.support.webhook_receiver import receiver
from tests.support.webhook_service import SECRET, URL, of_file, rows, served


async def test_what_the_journal_has_is_there_after_a_restart(tmp_path: Path) -> None:
    async with served(tmp_path) as hooks:
        made, secret = await hooks.create("t", URL, ["job.failed"], "renders")
        assert secret.startswith("whsec_")
        await hooks.update("t", made.id, events=["job.queued"])
        rotated, fresh = await hooks.rotate("t", made.id)
        assert rotated.secrets_at(time.time()) == (fresh, secret)
        assert rotated.secrets_at(time.time() + 86_401) == (fresh,)
        await hooks.disable("t", made.id)
        other, _ = await hooks.create("t", URL)
        await hooks.delete(None, other.id)
        kept = hooks.endpoint("t", made.id)
    async with served(tmp_path) as hooks:
        (found,) = hooks.endpoints("t")
        assert replace(found, created_at=0.0) == replace(
            kept,
            created_at=0.0,
            secrets=tuple(
                replace(s, valid_until=f.valid_until) for s, f in zip(kept.secrets, found.secrets, strict=True)
            ),
        )
        assert (found.description, found.reason, found.events) == ("renders", "owner", {EventType.JOB_QUEUED})
        assert hooks.endpoints("u") == []


async def test_what_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path, max_endpoints=1, endpoints=(of_file(),)) as hooks:
        made, _ = await hooks.create("t", URL)
        for tenant, url, events, error in (
            ("t", URL, (), TooManyEndpoints),
            ("u", "http://10.0.0.1/", (), BadUrl),
            ("u", URL, ["backend.down"], WebhookRefused),
            ("u", URL, ["webhook.test"], WebhookRefused),
            ("u", URL, ["x"], WebhookRefused),
        ):
            with pytest.raises(error) as caught:
                await hooks.create(tenant, url, events)
            assert "hunter2" not in str(caught.value)
        for call in (
            hooks.update("u", made.id, description=""),
            hooks.delete("u", made.id),
            hooks.disable("u", made.id),
            hooks.enable("u", made.id),
            hooks.rotate("u", made.id),
            hooks.test("u", made.id),
            hooks.replay_range("u", made.id, 0, 1),
            hooks.replay_event("u", "evt_1"),
        ):
            with pytest.raises(NotFound):
                await call
        id_ = config_endpoint_id("ops")
        for refused in (
            hooks.update("boss", id_, description=""),
            hooks.delete("boss", id_),
            hooks.rotate("boss", id_),
        ):
            with pytest.raises(WebhookRefused, match="in the configuration"):
                await refused
    async with served(tmp_path, enabled=False) as hooks:
        with pytest.raises(WebhookRefused, match="are off"):
            await hooks.create("u", URL)


async def test_endpoints_of_the_file_keep_their_state_as_long_as_their_url(tmp_path: Path) -> None:
    id_ = config_endpoint_id("ops")
    both = (of_file(events=("backend.down",)), of_file(name="more"))
    async with served(tmp_path, endpoints=both) as hooks:
        endpoint = hooks.endpoint("boss", id_)
        assert (endpoint.source, endpoint.is_admin, endpoint.secrets_at(0.0)) == (Source.CONFIG, True, (SECRET,))
        assert endpoint.wants(EventType.BACKEND_DOWN)
        assert len(hooks.endpoints(None)) == 2
        await hooks.disable("boss", id_)
    async with served(tmp_path, endpoints=(of_file(),)) as hooks:
        (endpoint,) = hooks.endpoints(None)
        assert (endpoint.state, endpoint.reason) == (EndpointState.DISABLED, Reason.OWNER)
    async with served(tmp_path, endpoints=(of_file(f"{URL}/new"),)) as hooks:
        (endpoint,) = hooks.endpoints(None)
        assert (endpoint.state, endpoint.reason) == (EndpointState.ENABLED, Reason.NONE)
    async with served(tmp_path) as hooks:
        assert hooks.endpoints(None) == []


async def test_attempts_are_journalled_and_go_on_after_a_restart(tmp_path: Path) -> None:
    async with served(tmp_path, starts=True) as hooks:
        endpoint, _ = await hooks.create("t", URL)
        event_id = await hooks.test("t", endpoint.id)

        async def tried() -> Any:
            (listed,) = hooks.deliveries("t").items
            return listed.delivery if listed.delivery.attempts else None

        made = await until(tried)
        assert (made.state, made.tries) == (DeliveryState.PENDING, 1)
        # Nothing tells a closed port of the operator's network from an open one.
        assert [(each.outcome, each.status, each.seconds) for each in made.attempts] == [("unreachable", None, 0.0)]
        # Tests alone never disable an endpoint.
        assert hooks.endpoint("t", endpoint.id).failing_since is None
    async with served(tmp_path) as hooks:
        (listed,) = hooks.deliveries("t", endpoint_id=endpoint.id).items
        again = listed.delivery
        assert (listed.event.id, again.tries, again.state) == (event_id, 1, DeliveryState.PENDING)
        assert abs((again.next_at or 0) - (made.next_at or 0)) < 0.001
        assert await hooks.replay_event("t", event_id) == 1
        assert hooks.deliveries("t").items[0].delivery.tries == 0
        await hooks.disable("t", endpoint.id)

        async def dead() -> bool:
            return hooks.deliveries("t").items[0].delivery.state is DeliveryState.DEAD

        await until(dead)
        with pytest.raises(WebhookRefused, match="disabled"):
            await hooks.replay_event("t", event_id)


async def test_a_receiver_that_is_back_gets_at_once_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It failed often enough to be left alone, and each delivery would be tried again in an hour."""
    monkeypatch.setattr(schedule, "FIRST_PAUSE", 0.05)
    async with receiver() as hook, served(tmp_path, starts=True) as hooks:
        hook.status, hook.more = 500, {"Retry-After": "3600"}
        endpoint, _ = await hooks.create("t", hook.url)
        first = [await hooks.test("t", endpoint.id) for _ in range(schedule.BREAKER_FAILURES)]
        await hook.events(len(first))
        hook.status, hook.more = 204, {}
        await hooks.test("t", endpoint.id)
        got = await hook.events(2 * len(first) + 1)
        assert sorted(each.id for each in got if each.id in first) == sorted(2 * first)


async def test_what_is_pending_to_a_disabled_endpoint_is_dead_without_an_attempt(tmp_path: Path) -> None:
    """The gateway ended between the endpoint's write and the last of its deliveries'."""
    async with receiver() as hook:
        async with served(tmp_path) as hooks:
            endpoint, _ = await hooks.create("t", hook.url)
            await hooks.disable("t", endpoint.id)
            event = EventRecord("evt_1", "t", "job.failed", None, round(time.time() * 1000), b"{}", 2)
            pending = DeliveryRecord("evt_1", endpoint.id, "t", "pending", "[]", 0, None)
            await hooks._store.write([event, pending])
        async with served(tmp_path, starts=True) as hooks:

            async def dead() -> bool:
                return hooks.deliveries("t").items[0].delivery.state is DeliveryState.DEAD

            await until(dead)
            assert hook.received == []
            # A test is sent all the same, once.
            hook.status = 500
            await hooks.test("t", endpoint.id)
            await hook.events(1)
            await until(dead)


async def test_an_attempt_that_is_under_way_may_end_when_the_gateway_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "GRACE_SECONDS", 20.0)
    async with receiver() as hook:
        async with served(tmp_path, starts=True) as hooks:
            hook.holds = True
            endpoint, _ = await hooks.create("t", hook.url)
            await hooks.test("t", endpoint.id)
            await hook.events(1)
            asyncio.get_running_loop().call_later(0.05, hook.released.set)
        async with served(tmp_path) as hooks:
            assert hooks.deliveries("t").items[0].delivery.state is DeliveryState.DELIVERED


async def test_damaged_rows_are_left_out(tmp_path: Path) -> None:
    async with served(tmp_path) as hooks:
        endpoint, _ = await hooks.create("t", URL)
        await hooks.test("t", endpoint.id)
        hooks._store.write([EventRecord("evt_bad", "t", "no.such.type", None, 1, b"{}")])
    async with served(tmp_path) as hooks:
        assert [each.event.type for each in hooks.deliveries("t").items] == [EventType.TEST]


class Held(SqliteStore):
    """A journal whose disk takes nothing of one tenant until it is let go."""

    def __init__(self, directory: Path, synchronous: str) -> None:
        super().__init__(directory, synchronous)
        self.released = asyncio.Event()

    def try_write(self, changes: Sequence[Change]) -> asyncio.Future[None]:
        """Write at once, or once it is let go."""
        if getattr(changes[0], "tenant", "") != "slow":
            return super().try_write(changes)

        async def later() -> None:
            await self.released.wait()
            await super(Held, self).try_write(changes)

        return asyncio.ensure_future(later())


async def test_no_tenant_waits_for_the_changes_of_another(tmp_path: Path) -> None:
    """The changes of one tenant come one after the other: each knows of those before."""
    async with served(tmp_path, made=Held, max_endpoints=1) as hooks:
        store = hooks._store
        assert isinstance(store, Held)
        both = asyncio.gather(hooks.create("slow", URL), hooks.create("slow", URL), return_exceptions=True)
        endpoint, _ = await hooks.create("t", URL)
        await hooks.update("t", endpoint.id, description="x")
        await hooks.disable("t", endpoint.id)
        assert not both.done()
        store.released.set()
        first, second = await both
        assert isinstance(second, TooManyEndpoints), first
        assert len(hooks.endpoints("slow")) == 1
        # No lock outlives the calls that it is for.
        assert len(hooks._locks) == 0


BODY = b'{"data":{"outputs":[],"outputs_left_out":0,"metadata":null,"error":null}}'


async def test_events_of_a_deleted_job_leave_the_journal_while_others_are_read(tmp_path: Path) -> None:
    """What memory has dropped would come back after a crash."""
    async with served(tmp_path) as hooks:
        endpoint, _ = await hooks.create("t", URL)
        for prompt_id, state in (("over", "delivered"), ("open", "pending")):
            event = EventRecord(f"evt_{prompt_id}", "t", "job.failed", prompt_id, 2_000_000_000_000, BODY, len(BODY))
            await hooks._store.write([event, DeliveryRecord(event.id, endpoint.id, "t", state, "[]", 0, None)])
    async with served(tmp_path) as hooks:
        store, gate = hooks._store, threading.Event()
        assert isinstance(store, SqliteStore)
        store._reader.submit(gate.wait)
        try:
            dropping = asyncio.ensure_future(hooks.forget_jobs("t", ["over", "open"]))
            await asyncio.sleep(0)
            await store.write([])
            assert (rows(tmp_path, "webhook_events"), dropping.done()) == (1, False)
        finally:
            gate.set()
        await dropping
        assert [each.event.id for each in hooks.deliveries("t").items] == ["evt_open"]


async def test_an_event_whose_payload_the_journal_lost_is_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it would be looked for again for ever."""
    async with served(tmp_path) as hooks:
        endpoint, _ = await hooks.create("t", URL)
        event_id = await hooks.test("t", endpoint.id)
    async with served(tmp_path) as hooks:
        await hooks._store.write([EventRemoval(event_id)])
        hooks.start()

        async def gone() -> bool:
            return not hooks.deliveries("t").items

        await until(gone)
        assert capsys.readouterr().out.count("webhook_event_lost") == 1


async def test_a_lack_of_threads_counts_against_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "AGAIN_SECONDS", 0.001)
    monkeypatch.setattr(delivery, "BUSY_SECONDS", 0.001)
    answers, refused = threading.Event(), 0

    def hang(_: str) -> tuple[str, ...]:
        answers.wait()
        return ("127.0.0.1",)

    lookups = Lookups(8, 1, hang)

    async def lookup(host: str, tenant: str) -> tuple[str, ...]:
        nonlocal refused
        try:
            return await lookups(host, tenant)
        except NoThread:
            refused += 1
            raise

    async def many() -> bool:
        return refused > 2 * schedule.BREAKER_FAILURES

    async with receiver() as hook, served(tmp_path, starts=True, lookup=lookup, timeout=0.05) as hooks:
        endpoint, _ = await hooks.create("t", hook.url.replace("127.0.0.1", "receiver.test"))
        first = await hooks.test("t", endpoint.id)

        async def tried() -> bool:
            return any(each.delivery.attempts for each in hooks.deliveries("t").items)

        # The attempt is over, and its lookup is not.
        await until(tried)
        second = await hooks.test("t", endpoint.id)
        await until(many)
        attempts = {each.event.id: each.delivery.attempts for each in hooks.deliveries("t").items}
        assert len(attempts[first]) == 1
        assert attempts[second] == ()
        answers.set()
        assert [each.id for each in await hook.events(1)] == [second]
