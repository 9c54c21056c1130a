"""Times that each tenant's own runs told. A tenant that shares the fleet with strangers is shown nothing else. Pure.

Routing learns from all runs (`times.py`). If an ETA came from these, a tenant could send a prompt of its own and learn
from its ETA if, and how, others ran the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from gateway.jobs.routing.eta import Calibration
from gateway.jobs.routing.learned_tables import keep
from gateway.jobs.routing.levels import numbers
from gateway.jobs.routing.signature import Workload
from gateway.jobs.routing.times import RunKind, Times

# Tenants that are remembered; the one whose last run is the oldest goes first.
MAX_TENANTS = 200
# A tenant's tables have this part of the fleet's bounds: 31 signatures, 7 models, 15 backends.
PART = 64
# A tenant's first intervals are wider, because coarse steps tell less, and it takes a while to learn from its own jobs.
FIRST_WIDTH = 2.0
# Share of the newest run in the share of runs with a load.
NEWEST = 0.2


class OwnTimes:
    """Knowledge of one tenant's runs.

    Attributes:
        times: learned times.
        calibration: width of the intervals of its ETAs.
        load_share: part of its runs that loaded a model, the newest ones above all.
    """

    def __init__(self) -> None:
        self.times = Times(PART)
        self.calibration = Calibration(FIRST_WIDTH)
        self.load_share = 0.0


class TenantTimes:
    """Knowledge of each tenant's runs, by its name."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, OwnTimes] = OrderedDict()
        self._nothing = OwnTimes()

    def __len__(self) -> int:
        return len(self._tenants)

    def of(self, tenant: str) -> OwnTimes:
        """Return the knowledge of a tenant's runs. If there is none, nothing may be learned into the returned one."""
        return self._tenants.get(tenant, self._nothing)

    def learn(self, tenant: str, work: Workload, backend: str, seconds: float, kind: RunKind) -> None:
        """Learn from a tenant's run that succeeded."""
        own = self._entry(tenant)
        own.times.learn(work, backend, seconds, kind)
        own.load_share += NEWEST * ((kind is RunKind.LOAD) - own.load_share)

    def forget_backend(self, backend: str) -> None:
        """Forget a backend that left the fleet, or whose GPU was replaced."""
        for own in self._tenants.values():
            own.times.forget_backend(backend)

    def forget_all(self) -> None:
        """Forget all that was learned."""
        self._tenants.clear()

    def parts(self) -> Iterator[list[Any]]:
        """Yield rows for the store: a tenant, a name, and what it names. Runs may be learned in between."""
        for tenant, own in list(self._tenants.items()):
            yield [tenant, "eta", [[*own.calibration.record(), [own.load_share]]]]
            for name, rows in own.times.parts():
                yield [tenant, name, rows]

    def restore_part(self, row: Any) -> None:
        """Take over a row of an earlier run's record. Skip all that is malformed."""
        if not (isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and isinstance(row[2], list)):
            return
        tenant, name, rows = row
        own = self._entry(tenant)
        if name != "eta":
            own.times.restore_part(name, rows)
            return
        for record in rows[:1]:
            own.calibration.restore(record)
            share = numbers(record[-1], 1) if isinstance(record, list) and record else None
            own.load_share = min(max(share[0], 0.0), 1.0) if share is not None else 0.0

    def _entry(self, tenant: str) -> OwnTimes:
        own = self._tenants.get(tenant) or OwnTimes()
        keep(self._tenants, tenant, own, MAX_TENANTS)
        return own
