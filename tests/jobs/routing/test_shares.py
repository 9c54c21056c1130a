"""Fair share of GPU seconds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.jobs.routing import shares as shares_module
from gateway.jobs.routing.shares import MAX_LAG, Shares


def serve(shares: Shares, seconds: dict[str, float], rounds: int) -> dict[str, float]:
    """Serve the next tenant again and again; return the GPU seconds that each got."""
    got = dict.fromkeys(seconds, 0.0)
    for _ in range(rounds):
        tenant, lead = next(shares.in_order())
        assert lead == 0.0
        shares.charge(tenant, seconds[tenant])
        got[tenant] += seconds[tenant]
    return got


def test_gpu_seconds_are_shared_and_not_jobs() -> None:
    shares = Shares()
    for tenant in ("short", "long"):
        shares.waits(tenant)
    got = serve(shares, {"short": 1.0, "long": 50.0}, 5_000)
    assert got["short"] == pytest.approx(got["long"], abs=51.0)


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0.25, 4.0), min_size=2), st.floats(0.5, 20.0))
def test_shares_converge_to_weights(weights: dict[str, float], seconds: float) -> None:
    shares = Shares(weights.__getitem__)
    for tenant in weights:
        shares.waits(tenant)
    got = serve(shares, dict.fromkeys(weights, seconds), 1_500)
    whole, all_weights = sum(got.values()), sum(weights.values())
    for tenant, weight in weights.items():
        assert got[tenant] / whole == pytest.approx(weight / all_weights, abs=0.02)


def test_idleness_earns_no_credit() -> None:
    shares = Shares()
    shares.waits("busy")
    for _ in range(100):
        shares.charge("busy", 10.0)
    shares.waits("new")
    leads = dict(shares.in_order())
    # The newcomer is first, or equal; and is not a thousand seconds ahead.
    assert leads["busy"] - leads["new"] <= 10.0
    serve(shares, {"busy": 10.0, "new": 10.0}, 2)
    assert max(lead for _, lead in shares.in_order()) <= 10.0


def test_who_could_not_run_for_long_keeps_little_of_it() -> None:
    shares = Shares()
    for tenant in ("blocked", "busy"):
        shares.waits(tenant)
    for _ in range(1_000):
        shares.charge("busy", 10.0)
    assert list(shares.in_order()) == [("blocked", 0.0), ("busy", pytest.approx(MAX_LAG + 10.0))]
    assert (shares.lead("blocked"), shares.lead("busy")) == (0.0, pytest.approx(MAX_LAG + 10.0))
    # A newcomer is not behind it for long, either.
    shares.waits("new")
    assert shares.lead("new") == 0.0


def test_waiting_twice_is_waiting_once() -> None:
    shares = Shares()
    for _ in range(2):
        shares.waits("a")
    assert list(shares.in_order()) == [("a", 0.0)]
    for _ in range(2):
        shares.waits_no_more("a")
    assert list(shares.in_order()) == []


def test_a_charge_is_corrected() -> None:
    shares = Shares()
    for tenant in ("a", "b"):
        shares.waits(tenant)
    shares.charge("a", 100.0)
    shares.charge("b", 50.0)
    assert [tenant for tenant, _ in shares.in_order()] == ["b", "a"]
    shares.adjust("a", -80.0)
    shares.adjust("unknown", -80.0)
    assert list(shares.in_order()) == [("a", 0.0), ("b", 30.0)]


def test_tenants_without_jobs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares_module, "MAX_IDLE", 3)
    shares = Shares()
    for n in range(50):
        shares.waits(f"tenant-{n}")
        shares.charge(f"tenant-{n}", 1.0)
        shares.waits_no_more(f"tenant-{n}")
    assert len(shares._clocks) == 3
    assert list(shares.in_order()) == []
    for n in range(50):
        shares.charge(f"tenant-{n}", 1.0)
    assert len(shares._clocks) == len(shares._served) == 3
