"""Sizes and times that are most likely a slip, such as ``max_body: 100`` for 100 MiB: one table, and warnings. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from gateway.settings.models import Settings
from gateway.settings.tenants import PolicySettings
from gateway.settings.units import Unit, with_unit

_MINUTE, _KIB, _MIB = 60, 1024, 1024**2
# Below these a setting is most likely missing its unit. They are allowed, because a test may want them.
FLOORS = {
    "server.max_body": (_MIB, Unit.BYTES),
    "server.max_bodies_bytes": (_MIB, Unit.BYTES),
    "dispatch.max_prompt_bytes": (64 * _KIB, Unit.BYTES),
    "dispatch.max_waiting_bytes": (_MIB, Unit.BYTES),
    "history.max_bytes": (_MIB, Unit.BYTES),
    "history.max_result": (_MIB, Unit.BYTES),
    "uploads.max_size": (_MIB, Unit.BYTES),
    "uploads.quota": (_MIB, Unit.BYTES),
    "uploads.keep": (_MINUTE, Unit.SECONDS),
    "uploads.aside": (_MINUTE, Unit.SECONDS),
    "userdata.quota": (_MIB, Unit.BYTES),
    "store.retention.max_age": (_MINUTE, Unit.SECONDS),
    "store.retention.max_bytes": (_MIB, Unit.BYTES),
    "auth.sign_in": (_MINUTE, Unit.SECONDS),
}
LIMIT_FLOORS = {
    "limits.body_bytes": (64 * _KIB, Unit.BYTES),
    "limits.bodies_bytes": (64 * _KIB, Unit.BYTES),
    "limits.open_bytes": (64 * _KIB, Unit.BYTES),
    "limits.upload_bytes": (_MIB, Unit.BYTES),
}


def slips(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each size and time below its floor."""
    for path, (floor, unit) in FLOORS.items():
        yield from _slip(path, attrgetter(path)(settings), floor, unit)
    tenants = settings.tenants
    yield from _limit_slips("tenants.default", tenants.default)
    for name, policy in tenants.named.items():
        yield from _limit_slips(f"tenants.named.{name}", policy, tenants.default)


def _limit_slips(place: str, policy: PolicySettings, default: PolicySettings | None = None) -> Iterator[str]:
    for path, (floor, unit) in LIMIT_FLOORS.items():
        found = attrgetter(path)(policy)
        if default is None or found != attrgetter(path)(default):
            yield from _slip(f"{place}.{path}", found, floor, unit)


def _slip(path: str, found: float | None, floor: int, unit: Unit) -> Iterator[str]:
    # 0 is no slip, because it means that there is to be none.
    if found is not None and 0 < found < floor:
        given = f"{found:g} bytes" if unit is Unit.BYTES else with_unit(float(found), unit)
        example = "100MiB" if unit is Unit.BYTES else "7d"
        yield (
            f"{path}: {given} is most likely a slip, because it is below {with_unit(floor, unit)}; a number without a "
            f"unit is {unit}, so give one, such as {example}"
        )
