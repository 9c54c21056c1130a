"""Pinned."""

from __future__ import annotations

from gateway.jobs.routing.policies.pinned import Pinned
from gateway.jobs.routing.snapshot import BackendView
from tests.support.routing import head, snapshot


def homes(names: str, slots: int = 9) -> dict[str, str]:
    found = {}
    for n in range(60):
        choice = Pinned().choose(snapshot([BackendView(each, slots) for each in names], [head("m", 1, tenant=f"t{n}")]))
        if choice is not None:
            found[f"t{n}"] = choice.backend
    return found


def test_a_tenant_stays_where_it_is() -> None:
    before, after = homes("abcd"), homes("abc")
    assert set(before.values()) == set("abcd")
    assert all(after[tenant] == home for tenant, home in before.items() if home != "d")


def test_a_tenant_waits_for_its_own_backend() -> None:
    home = homes("abcd")["t0"]
    views = [BackendView(name, 0 if name == home else 9) for name in "abcd"]
    assert Pinned().choose(snapshot(views, [head("m", 1, tenant="t0")])) is None
    # Others don't wait behind that tenant.
    other = next(tenant for tenant, at in homes("abcd").items() if at != home)
    choice = Pinned().choose(snapshot(views, [head("m", 1, tenant="t0"), head("m", 1, tenant=other, number=1)]))
    assert choice is not None
    assert choice.head.tenant == other


def test_only_able_backends_count() -> None:
    choice = Pinned().choose(snapshot([BackendView("a", 9), BackendView("b", 9)], [head("m", 1, able="b")]))
    assert choice is not None
    assert choice.backend == "b"
