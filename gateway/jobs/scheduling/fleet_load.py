"""Load of the fleet: the jobs of each backend and those that wait, in seconds that a tenant may be told.

A job of a tenant that shares the fleet with strangers counts for as long as its own tenant's runs took. So no tenant's
runs tell another one how long the same prompt takes. All sums are kept as jobs move. A question looks at no job and at
few tenants. The capacity of all backends is made anew at most a few times a second.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.routing.capacity import Capacity
from gateway.jobs.routing.learned_tables import keep
from gateway.jobs.routing.shares import MIN_WEIGHT
from gateway.jobs.routing.times import RunKind, Times
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.state.job import USUAL_SECONDS, Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import QUEUED_THERE

# A capacity is made anew after this time, in seconds; sooner if jobs have moved, but not more often than this for each
# backend.
MAX_AGE, AGE_PER_BACKEND = 1.0, 0.002
# Capacities that are kept, one for each set of backends.
MAX_CAPACITIES = 32
# Jobs of a backend, other tenants, and sets of backends of a tenant that are looked at; the rest is like these.
MAX_JOBS, MAX_OTHERS, MAX_SETS = 32, 5, 8
# Tenants of which it is remembered if they share the fleet with strangers.
MAX_TENANTS = 10_000

_Able = frozenset[str] | None


@dataclass(slots=True)
class _Sum:
    """Jobs of one tenant that wait for the same backends."""

    jobs: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _There:
    """Jobs of a backend: the seconds of those that are queued, and of each running one its start and its seconds."""

    jobs: int = 0
    queued: float = 0.0
    running: tuple[tuple[float, float], ...] = ()


class FleetLoad:
    """Load of the fleet.

    Args:
        is_apart: returns True if a tenant shares the fleet with strangers.
    """

    def __init__(self, ledger: Ledger, fleet: Fleet, learning: Learning, is_apart: Callable[[str], bool]) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._learning = learning
        self._asks_apart = is_apart
        self._apart: OrderedDict[str, tuple[bool, float]] = OrderedDict()
        self._there: dict[str, _There] = {}
        self._dirty: set[str] = set()
        self._version = 0
        self._capacities: OrderedDict[tuple[_Able, bool], tuple[int, float, Capacity]] = OrderedDict()
        self._waiting: dict[str, dict[_Able, _Sum]] = {}
        # Of each waiting job, the backends and the seconds by which it was counted.
        self._counted: dict[Job, tuple[_Able, float]] = {}
        steps = ledger.steps
        on_backend, on_wait, on_leave = steps.on_backend, steps.on_wait, steps.on_leave

        def changed(backend_name: str) -> None:
            on_backend(backend_name)
            self._dirty.add(backend_name)

        def waits(job: Job) -> None:
            on_wait(job)
            self._waits(job)

        def leaves(job: Job) -> None:
            on_leave(job)
            self._leaves(job)

        steps.on_backend, steps.on_wait, steps.on_leave = changed, waits, leaves

    # -- tenants -------------------------------------------------------------------------------------------------

    def is_apart(self, tenant: str) -> bool:
        """Return True if a tenant shares the fleet with strangers, as of a second ago at most."""
        known, now = self._apart.get(tenant), time.monotonic()
        if known is not None and known[1] > now:
            return known[0]
        found = self._asks_apart(tenant)
        keep(self._apart, tenant, (found, now + MAX_AGE), MAX_TENANTS)
        return found

    def times(self, tenant: str) -> Times:
        """Return the times that a tenant may be told: those of its own runs if it shares the fleet with strangers."""
        return self._learning.tenants.of(tenant).times if self.is_apart(tenant) else self._learning.times

    # -- waiting jobs --------------------------------------------------------------------------------------------

    def _waits(self, job: Job) -> None:
        able, seconds = job.able, self.times(job.tenant).usual_seconds(job.submission.workload)
        self._counted[job] = able, seconds
        found = self._waiting.setdefault(job.tenant, {}).setdefault(able, _Sum())
        found.jobs += 1
        found.seconds += seconds

    def _leaves(self, job: Job) -> None:
        counted = self._counted.pop(job, None)
        if counted is None:
            return
        able, seconds = counted
        sums = self._waiting[job.tenant]
        found = sums[able]
        found.jobs -= 1
        found.seconds -= seconds
        if not found.jobs:
            del sums[able]
            if not sums:
                del self._waiting[job.tenant]

    def usual_wait(self, tenant: str) -> float:
        """Return the mean seconds of a tenant's waiting jobs; 0 if none waits."""
        sums = list(islice(self._waiting.get(tenant, {}).values(), MAX_SETS))
        jobs = sum(each.jobs for each in sums)
        return sum(each.seconds for each in sums) / jobs if jobs else 0.0

    def others_ahead(self, tenant: str, able: _Able, own: float) -> float:
        """Return the seconds of other tenants' waiting jobs that go before a tenant's next `own` seconds.

        Count those that wait for some of the same backends, up to their fair share.
        """
        count = len(self._waiting) - (tenant in self._waiting)
        if not count:
            return 0.0
        share, ahead, looked = self._ledger.share, 0.0, 0
        clock, weight = share.turn(tenant)[0], max(share.weight(tenant), MIN_WEIGHT)
        for name, sums in self._waiting.items():
            if name == tenant:
                continue
            if looked == MAX_OTHERS:
                break
            looked += 1
            # Its clock may get as far as the tenant's will be, and its seconds are these by its weight.
            seconds = (own / weight + clock - share.turn(name)[0]) * share.weight(name)
            if seconds > 0.0:
                ahead += min(seconds, _for_same(sums, able))
        return ahead * count / looked

    # -- backends ------------------------------------------------------------------------------------------------

    def seconds_there(self, job: Job, backend_name: str) -> float:
        """Return the seconds of a job's run on its backend, with the load if it is known to have one."""
        times, work = self.times(job.tenant), job.submission.workload
        seconds = times.seconds(work, backend_name)
        if job.live.run_kind is RunKind.LOAD:
            seconds += times.load_seconds(work.signature.model, backend_name)
        return seconds

    def capacity(self, able: _Able, *, is_coarse: bool) -> Capacity:
        """Return the capacity of all backends, or of some."""
        now, key = time.monotonic(), (able, is_coarse)
        known = self._capacities.get(key)
        if known is not None:
            version, made_at, capacity = known
            is_changed = bool(self._dirty) or version != self._version
            age = min(AGE_PER_BACKEND * len(self._fleet.backends), MAX_AGE) if is_changed else MAX_AGE
            if now - made_at < age:
                return capacity
        if self._dirty:
            self._version += 1
            for name in self._dirty:
                self._look(name)
            self._dirty.clear()
        capacity = self._capacity(able, is_coarse=is_coarse)
        keep(self._capacities, key, (self._version, now, capacity), MAX_CAPACITIES)
        return capacity

    def _look(self, name: str) -> None:
        jobs = self._ledger.jobs_on(name)
        if not jobs or name not in self._fleet.backends:
            self._there.pop(name, None)
            return
        queued = [job for job in jobs if job.state in QUEUED_THERE]
        looked = queued[:MAX_JOBS]
        seconds = sum(self.seconds_there(job, name) for job in looked)
        at = self._learning.at
        running = tuple(
            (at(job.started_at), self.seconds_there(job, name)) for job in jobs if job.started_at is not None
        )
        self._there[name] = _There(len(jobs), seconds * len(queued) / max(len(looked), 1), running)

    def _capacity(self, able: _Able, *, is_coarse: bool) -> Capacity:
        ready, speeds, jobs = list[float](), list[float](), 0
        speed_of, now = self._learning.times.speed, self._learning.now()
        for name, backend in self._fleet.backends.items():
            if not backend.eligible or (able is not None and name not in able):
                continue
            seconds, there = 0.0, self._there.get(name)
            if there is not None:
                jobs += there.jobs
                seconds = there.queued
                for started, run in there.running:
                    seconds += rest(run, now - started, is_coarse=is_coarse)
            if foreign := backend.foreign_running + backend.foreign_pending:
                jobs += foreign
                seconds += foreign_seconds(backend, is_coarse=is_coarse)
            ready.append(seconds)
            speeds.append(backend.weight if is_coarse else 1.0 / speed_of(name))
        return Capacity(ready, speeds, jobs)


def rest(seconds: float, elapsed: float, *, is_coarse: bool) -> float:
    """Return the seconds that a running job still takes: half of them if a stranger asks.

    Else a stranger that asks again and again would see when the rest passes a step, and so how long the run takes.
    """
    if is_coarse:
        return seconds / 2
    return max(seconds - elapsed, 0.1 * elapsed, 0.0)


def foreign_seconds(backend: Backend, *, is_coarse: bool) -> float:
    """Return the seconds of a backend's prompts that are not the gateway's."""
    usual = USUAL_SECONDS if is_coarse or backend.run_seconds is None else backend.run_seconds
    return (backend.foreign_running + backend.foreign_pending) * usual


def _for_same(sums: Mapping[_Able, _Sum], able: _Able) -> float:
    """Return the seconds of jobs that wait for some of the same backends."""
    seconds = 0.0
    for other, each in islice(sums.items(), MAX_SETS):
        if other is able or able is None or other is None or not able.isdisjoint(other):
            seconds += each.seconds
    return seconds
