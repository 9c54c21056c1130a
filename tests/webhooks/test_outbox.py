"""The outbox: bounds, lists, endings, and that a restart brings back the same."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.store.webhook_records import DeliveryRemoval, EventPayload, EventRemoval
from gateway.webhooks.model import (
    TERMINAL,
    Attempt,
    Delivery,
    DeliveryState,
    Endpoint,
    EndpointState,
    Event,
    EventType,
    Reason,
    Secret,
    Source,
    Target,
    job_event_id,
)
from gateway.webhooks.outbox import BATCH, MAX_LOOKED, Now, Outbox, again, deliveries_for
from gateway.webhooks.payload_cache import MAX_CACHED, PayloadCache
from gateway.webhooks.queues import Limits, Queues
from gateway.webhooks.records import (
    delivery_of,
    delivery_record,
    endpoint_of,
    endpoint_record,
    event_of,
    event_record,
)
from gateway.webhooks.schedule import FIRST_PAUSE

NOW = Now(1_000.0, 50.0)
URL = "https://hooks.example/a?token=hunter2"


def endpoint(id_: str = "we_1", tenant: str = "t", **more: object) -> Endpoint:
    """An endpoint."""
    made = Endpoint(id_, tenant, URL, TERMINAL, (Secret("whsec_hunter2"),), 1.0)
    return replace(made, **more)  # type: ignore[arg-type]


def event(n: int, tenant: str = "t", type_: EventType = EventType.JOB_FAILED, at: float = 1_000.0) -> Event:
    """An event of a job."""
    payload = b"x" * 100
    return Event(f"evt_{tenant}{n}", tenant, type_, at, f"prompt{n}", payload, len(payload))


def outbox(**more: int) -> Outbox:
    """An outbox with one endpoint."""
    made = Outbox(Queues(Limits(4, 2, 64)), max_events=more.pop("max_events", 100), keep=3_600.0, **more)
    made.put_endpoint(endpoint())
    return made


def add(box: Outbox, made: Event, target: Target | None = None) -> list[EventRemoval | DeliveryRemoval]:
    """Add an event for all who want it."""
    return box.add(made, deliveries_for(made, box.wanting(made.tenant, made.type), target), NOW)


def test_who_gets_which_events() -> None:
    box = outbox()
    box.put_endpoint(endpoint("we_all", events=frozenset(EventType)))
    box.put_endpoint(endpoint("we_admin", events=frozenset({EventType.BACKEND_DOWN}), is_admin=True))
    box.put_endpoint(endpoint("we_other", tenant="u"))
    box.put_endpoint(endpoint("we_gone", state=EndpointState.DISABLED, reason=Reason.GONE))
    box.put_endpoint(endpoint("we_off", state=EndpointState.DISABLED, reason=Reason.OWNER))

    def ids(tenant: str, type_: EventType) -> list[str]:
        return [each.id for each in box.wanting(tenant, type_)]

    assert ids("t", EventType.JOB_FAILED) == ["we_1", "we_all", "we_off"]
    assert ids("t", EventType.JOB_STARTED) == ["we_all"]
    assert ids("t", EventType.BACKEND_DOWN) == ["we_admin"]
    assert ids("u", EventType.JOB_FAILED) == ["we_other"]
    assert ids("nobody", EventType.JOB_FAILED) == []


def test_a_disabled_endpoint_gets_nothing_and_its_events_can_be_replayed() -> None:
    box = outbox()
    off = endpoint(state=EndpointState.DISABLED, reason=Reason.FAILING)
    box.put_endpoint(off)
    add(box, event(1))
    (kept,) = box.deliveries_of("evt_t1")
    assert (kept.state, len(box.queues)) == (DeliveryState.DEAD, 0)
    box.put_endpoint(endpoint())
    box.put(again(kept, NOW.wall), NOW)
    assert box.queues.take(NOW.monotonic) == [kept.key]


def test_the_oldest_go_first_past_each_bound() -> None:
    box = outbox(max_events=3)
    assert [add(box, event(n)) for n in range(3)] == [[], [], []]
    assert add(box, event(3)) == [EventRemoval("evt_t0")]
    assert len(box.queues) == 3
    box = outbox(max_total=4)
    box.put_endpoint(endpoint("we_2", tenant="u"))
    for n in range(3):
        add(box, event(n))
    add(box, event(0, "u"))
    assert add(box, event(1, "u")) == [EventRemoval("evt_t0")]
    box = outbox(max_bytes=350)
    removed = [each for n in range(10) for each in add(box, event(n))]
    assert (len(box), len(removed)) == (3, 7)
    assert box.count(DeliveryState.PENDING) == 3


def test_the_tenant_with_most_deliveries_loses_events_past_their_bound() -> None:
    """Each event of "u" has three of them, so it loses some before "t", which has more events."""
    box = outbox(max_deliveries=10)
    for n in range(3):
        box.put_endpoint(endpoint(f"we_u{n}", tenant="u"))
    assert [add(box, event(n, tenant)) for tenant, n in (("u", 0), ("u", 1), ("t", 0), ("t", 1), ("t", 2))] == [[]] * 5
    assert add(box, event(3)) == []
    assert add(box, event(4)) == [EventRemoval("evt_u0")]
    assert box.count(DeliveryState.PENDING) == 8
    # A delivery that changes counts once, and one that is gone counts no more.
    (kept,) = box.deliveries_of("evt_t4")
    box.put(replace(kept, state=DeliveryState.DEAD), NOW)
    box.drop(["evt_t4"])
    assert [add(box, event(n)) for n in range(5, 8)] == [[], [], []]
    assert add(box, event(8)) == [EventRemoval("evt_t0")]


def test_pending_deliveries_that_are_dropped_are_told() -> None:
    dropped: list[Delivery] = []
    box = Outbox(Queues(Limits(4, 2, 64)), 1, 60.0, dropped.append)
    box.put_endpoint(endpoint())
    add(box, event(1))
    box.put(replace(box.deliveries_of("evt_t1")[0], state=DeliveryState.DELIVERED), NOW)
    add(box, event(2))
    assert dropped == []
    add(box, event(3))
    assert [each.event_id for each in dropped] == ["evt_t2"]
    assert box.expired(1_059.0, 10) == []
    assert box.expired(1_061.0, 10) == [EventRemoval("evt_t3")]
    assert (len(box), len(box.queues), box.cached("evt_t3")) == (0, 0, None)


def test_payloads_in_memory_are_bounded() -> None:
    box = outbox(max_events=10_000)
    payload = b"x" * 20_000
    for n in range(MAX_CACHED // 20_000 + 10):
        add(box, replace(event(n), payload=payload))
    assert box._payloads.bytes <= MAX_CACHED
    assert box._payloads.bytes == sum(map(len, box._payloads._payloads.values()))
    assert box.cached("evt_t0") is None
    assert box.cached("evt_t500") == payload


def test_the_payload_that_was_used_longest_ago_goes_first() -> None:
    """One that is tried again and again stays, however many new ones come."""
    cache = PayloadCache(300)
    for name in "abc":
        cache.put(name, b"x" * 100)
    assert cache.get("a") is not None
    cache.put("d", b"x" * 100)
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, True, True]
    cache.put("a", b"x")
    cache.remove("c")
    assert cache.bytes == 101


def test_a_lowered_bound_drops_a_few_events_at_a_time() -> None:
    """All of the excess in one step would hold up everybody."""
    box = outbox(max_events=10_000)
    for n in range(3 * BATCH + 1):
        add(box, event(n))
    box._max_events = 1
    assert [len(add(box, event(n))) for n in (1_000, 1_001, 1_002)] == [BATCH] * 3
    assert (len(box.over_bounds()), len(box.over_bounds()), len(box)) == (3, 0, 1)


def test_an_event_of_the_future_holds_up_none_that_came_after_it() -> None:
    """The clock was wrong for a moment."""
    box = outbox()
    add(box, event(1, at=NOW.wall + 10 * 365 * 86_400))
    add(box, event(2, "u"), Target("https://own.example/"))
    add(box, event(3))
    assert box.expired(NOW.wall + box.keep - 1, 10) == []
    gone = box.expired(NOW.wall + box.keep + 1, 10)
    assert {each.id for each in gone} == {"evt_t1", "evt_u2", "evt_t3"}


def test_a_page_that_finds_nothing_leads_on() -> None:
    """A page looks at so many events at most, and the next one goes on behind them."""
    box = Outbox(Queues(Limits(4, 2, 64)), 2 * MAX_LOOKED, 3_600.0)
    box.put_endpoint(endpoint())
    for n in range(MAX_LOOKED + 1):
        add(box, event(n))
    oldest = box.deliveries_of("evt_t0")[0]
    box.put(replace(oldest, state=DeliveryState.DEAD), NOW)
    page = box.page("t", None, DeliveryState.DEAD, None, 10)
    assert (page.items, page.after is None) == ((), False)
    page = box.page("t", None, DeliveryState.DEAD, page.after, 10)
    assert ([each.event.id for each in page.items], page.after) == (["evt_t0"], None)


def test_a_deleted_endpoint_takes_its_deliveries_and_lone_events() -> None:
    box = outbox()
    add(box, event(1))
    add(box, event(2), Target("https://own.example/"))
    box.remove_endpoint(endpoint())
    removed = box.forget_deliveries("we_1", ["evt_t1", "evt_t2", "evt_gone"])
    assert removed == [EventRemoval("evt_t1"), DeliveryRemoval("evt_t2", "we_1")]
    assert not box.has("evt_t1")
    assert [each.target for each in box.deliveries_of("evt_t2")] == [Target("https://own.example/")]
    assert (len(box.queues), box.count(DeliveryState.PENDING), box.has_endpoints) == (1, 1, False)
    # Events that the journal had meanwhile are of no use either.
    for n, target in ((3, None), (4, Target("https://own.example/"))):
        made = event(n)
        removed = box.add(made, deliveries_for(made, [endpoint()], target), NOW)
        assert removed == ([EventRemoval("evt_t3")] if target is None else [DeliveryRemoval("evt_t4", "we_1")])
    assert (len(box), len(box.queues), box.count(DeliveryState.PENDING)) == (2, 2, 2)


def test_pages_hold_each_delivery_once_newest_first() -> None:
    box = outbox()
    for n in range(7):
        add(box, event(n), Target("https://own.example/") if n % 3 == 0 else None)
    box.put(replace(box.deliveries_of("evt_t5")[0], state=DeliveryState.DEAD), NOW)
    for limit in (1, 2, 3, 100):
        after, found = None, list[tuple[str, str]]()
        while True:
            page = box.page("t", None, None, after, limit)
            found += [each.delivery.key for each in page.items]
            if page.after is None:
                break
            after = page.after
        assert len(found) == len(set(found)) == 10
        assert [key[0] for key in found] == sorted((key[0] for key in found), reverse=True)
    assert [each.event.id for each in box.page("t", None, DeliveryState.DEAD, None, 10).items] == ["evt_t5"]
    assert len(box.page("t", "we_1", None, None, 100).items) == 7
    assert box.page("u", None, None, None, 10).items == ()
    # An event on which a page ended may be gone when the next one is asked for.
    page = box.page(None, None, None, None, 2)
    assert box.drop_jobs(box.ids_of("t"), {"prompt5"}) == ([EventRemoval("evt_t5")], [])
    assert page.after is not None
    assert box.page(None, None, None, page.after, 100).items[0].event.id <= "evt_t5"


def test_events_of_deleted_jobs_go_unless_they_are_pending() -> None:
    box = outbox()
    add(box, event(1))
    add(box, event(2))
    box.put(replace(box.deliveries_of("evt_t1")[0], state=DeliveryState.DELIVERED), NOW)
    assert box.drop_jobs(box.ids_of("t"), {"prompt1", "prompt2"}) == ([EventRemoval("evt_t1")], ["evt_t2"])
    assert box.change_payload("evt_t2", b"less") == EventPayload("evt_t2", b"less")
    assert (box.has("evt_t2"), box.cached("evt_t2"), box._bytes) == (True, b"less", 4)
    assert box.drop(["evt_t1", "evt_t2"]) == [EventRemoval("evt_t2")]
    assert (box._bytes, box._payloads.bytes) == (0, 0)


def test_a_restart_brings_back_the_same_and_drops_what_is_of_no_use() -> None:
    box = outbox()
    for n in range(3):
        add(box, event(n))
    box.put(replace(box.deliveries_of("evt_t0")[0], state=DeliveryState.DEAD, next_at=None), NOW)
    box.put(replace(box.deliveries_of("evt_t1")[0], next_at=NOW.wall + 300, tries=2), NOW)
    events = [event_of(event_record(replace(event(n), payload=b"", size=100))) for n in range(4)]
    records = [delivery_record(each) for n in range(3) for each in box.deliveries_of(f"evt_t{n}")]
    again_ = outbox()
    moment = Now(NOW.wall + 100, 9_000.0)
    useless = [
        Delivery("evt_t3", "we_deleted", "t"),
        Delivery("evt_t4", "we_1", "t"),
        Delivery("evt_t0", "we_deleted", "t"),
    ]
    removed = again_.restore(events, [*map(delivery_of, records), *useless], moment)
    assert removed == [EventRemoval("evt_t3"), EventRemoval("evt_t4"), DeliveryRemoval("evt_t0", "we_deleted")]
    assert [again_.deliveries_of(f"evt_t{n}") for n in range(3)] == [box.deliveries_of(f"evt_t{n}") for n in range(3)]
    assert again_.queues.take(9_000.0) == [("evt_t2", "we_1")]
    assert again_.queues.take(9_199.0) == []
    assert again_.queues.take(9_200.0) == [("evt_t1", "we_1")]


def test_a_receiver_that_failed_is_left_alone_after_a_restart_too() -> None:
    """Each restart would send all that waits at once."""
    box = outbox()
    box.put_endpoint(endpoint("we_up", url="https://up.example/"))
    failed = tuple(Attempt(NOW.wall - 10 * n, 500, 1.0) for n in range(5, 0, -1))
    events = [event(n) for n in range(6)]
    deliveries = [Delivery(each.id, id_, "t", next_at=NOW.wall) for each in events for id_ in ("we_1", "we_up")]
    deliveries[0] = replace(deliveries[0], attempts=failed, tries=5)
    # A later success says that the other one is back.
    deliveries[1] = replace(deliveries[1], attempts=failed, tries=5)
    success = Attempt(NOW.wall - 5, 204, 0.1)
    deliveries[3] = replace(deliveries[3], attempts=(success,), tries=1, state=DeliveryState.DELIVERED, next_at=None)
    box.restore(events, deliveries, NOW)
    assert {id_ for _, id_ in box.queues.take(NOW.monotonic)} == {"we_up"}
    # The last attempt ended nine seconds ago, and the first pause is half a minute.
    assert {id_ for _, id_ in box.queues.take(NOW.monotonic + FIRST_PAUSE - 9.1)} == set()
    back = box.queues.take(NOW.monotonic + FIRST_PAUSE - 8.9)
    assert [id_ for _, id_ in back] == ["we_1"]


def test_a_first_attempt_waits_for_nothing_whatever_the_clock_said() -> None:
    box = outbox()
    add(box, event(1, at=NOW.wall + 40 * 86_400))
    assert box.queues.take(NOW.monotonic) == [("evt_t1", "we_1")]


TEXT = st.text(max_size=20)
TIMES = st.integers(0, 2**40).map(lambda millis: millis / 1000)
ENDPOINTS = st.builds(
    Endpoint,
    TEXT,
    TEXT,
    TEXT,
    st.frozensets(st.sampled_from([*EventType])),
    st.lists(st.builds(Secret, TEXT, st.none() | TIMES), max_size=2).map(tuple),
    TIMES,
    TEXT,
    st.booleans(),
    st.sampled_from([*Source]),
    st.sampled_from([*EndpointState]),
    st.sampled_from([*Reason]),
    st.none() | TIMES,
)
ATTEMPTS = st.builds(
    Attempt, TIMES, st.none() | st.integers(100, 599), st.integers(0, 99_999).map(lambda n: n / 1000), TEXT
)
DELIVERIES = st.builds(
    Delivery,
    TEXT,
    TEXT,
    TEXT,
    st.sampled_from([*DeliveryState]),
    st.lists(ATTEMPTS, max_size=3).map(tuple),
    st.integers(0, 99),
    st.none() | TIMES,
    st.none() | st.builds(Target, TEXT, st.none() | TEXT),
)


@settings(max_examples=50)
@given(ENDPOINTS, DELIVERIES)
def test_records_come_back_as_they_were(made: Endpoint, delivery: Delivery) -> None:
    assert endpoint_of(endpoint_record(made)) == made
    assert delivery_of(delivery_record(delivery)) == delivery


def test_no_repr_shows_a_url_or_a_secret() -> None:
    target = Target(URL, "whsec_hunter2")
    delivery = Delivery("evt_1", "", "t", target=target)
    shown = [endpoint(), target, delivery, endpoint_record(endpoint()), delivery_record(delivery), event(1)]
    assert "hunter2" not in repr(shown)
    assert "xxx" not in repr(event(1))


def test_ids_of_jobs_events_are_of_the_job() -> None:
    one = job_event_id("t", "p", 5, EventType.JOB_FAILED)
    assert one == job_event_id("t", "p", 5, EventType.JOB_FAILED)
    others = [
        job_event_id("u", "p", 5, EventType.JOB_FAILED),
        job_event_id("t", "p", 6, EventType.JOB_FAILED),
        job_event_id("t", "p", 5, EventType.JOB_STARTED),
        job_event_id("tp", "", 5, EventType.JOB_FAILED),
    ]
    assert len({one, *others}) == 5
    assert len(one) == len("evt_") + 22
    assert "." not in one
