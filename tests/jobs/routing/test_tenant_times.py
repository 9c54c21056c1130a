"""Times that each tenant's own runs told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.jobs.routing import tenant_times
from gateway.jobs.routing.eta import Expectation
from gateway.jobs.routing.tenant_times import OwnTimes, TenantTimes
from gateway.jobs.routing.times import RunKind
from tests.support.workloads import workload

SDXL = workload("sdxl")


def learned(*tenants: str) -> TenantTimes:
    """Tenants that ran the same thing."""
    times = TenantTimes()
    for n, tenant in enumerate(tenants, 1):
        for _ in range(5):
            times.learn(tenant, SDXL, "one", 10.0 * n, RunKind.WARM)
    return times


def test_each_tenant_knows_its_own_runs_alone() -> None:
    times = learned("anna", "ben")
    found = [times.of(tenant).times.usual_seconds(SDXL) for tenant in ("anna", "ben")]
    assert found == [pytest.approx(10.0, rel=0.1), pytest.approx(20.0, rel=0.1)]
    assert not times.of("carl").times.knows_work(SDXL)
    assert times.of("anna").times.knows_work(workload("sdxl", 40))
    assert not times.of("anna").times.knows_work(workload("flux"))
    assert not times.of("anna").times.knows_work(workload(""))


def test_the_share_of_runs_that_load() -> None:
    times = learned("anna")
    assert times.of("anna").load_share == 0.0
    for _ in range(20):
        times.learn("anna", SDXL, "one", 25.0, RunKind.LOAD)
    assert times.of("anna").load_share > 0.9


def test_the_tenant_whose_last_run_is_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_times, "MAX_TENANTS", 2)
    times = learned("anna", "ben")
    times.learn("anna", SDXL, "one", 10.0, RunKind.WARM)
    times.learn("carl", SDXL, "one", 10.0, RunKind.WARM)
    assert len(times) == 2
    assert [times.of(tenant).times.knows_work(SDXL) for tenant in ("anna", "ben", "carl")] == [True, False, True]


def test_a_tenants_tables_are_small() -> None:
    own = OwnTimes()
    for n in range(500):
        own.times.learn(workload(f"model-{n % 50}", n), f"backend-{n % 80}", 3.0, RunKind.LOAD)
    assert {name: len(rows) for name, rows in own.times.record().items()} == {
        "sizes": 31,
        "speeds": 15,
        "model_speeds": 62,
        "deviations": 31,
        "loads": 62,
        "fits": 62,
        "models": 7,
    }


def test_the_record() -> None:
    times = learned("anna", "ben")
    times.learn("ben", SDXL, "one", 25.0, RunKind.LOAD)
    times.of("ben").calibration.learn(Expectation(10.0, 0.2, 0), 30.0)
    rows = json.loads(json.dumps(list(times.parts())))
    restored = TenantTimes()
    for row in rows:
        restored.restore_part(row)
    assert json.loads(json.dumps(list(restored.parts()))) == rows
    times.forget_backend("one")
    assert '"one"' not in json.dumps(list(times.parts()))
    times.forget_all()
    assert not list(times.parts())


@pytest.mark.parametrize(
    "row", [None, [], ["anna", "eta"], [1, "eta", []], ["anna", "eta", 5], ["anna", "eta", [5]], ["anna", "sizes", [5]],
            ["anna", "eta", [[[0.0], ["x"]]]], ["anna", "eta", [[]]], ["anna", 7, [[]]]],
)  # fmt: skip
def test_malformed_rows_are_skipped(row: Any) -> None:
    times = TenantTimes()
    times.restore_part(row)
    own, fresh = times.of("anna"), OwnTimes()
    assert (own.times.record(), own.calibration.record(), own.load_share) == (
        fresh.times.record(),
        fresh.calibration.record(),
        0.0,
    )
