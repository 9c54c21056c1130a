"""Waiting jobs by tenant and signature, so that a decision looks at a few heads, also if ten thousand wait. Pure.

A tenant's jobs of one signature form a group, and go in the order of their numbers. The groups of one model are sorted
by the work of a job plus a part of its arrival time: short jobs first, but each job passes the later ones in time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from operator import itemgetter

from gateway.jobs.routing.shares import Shares
from gateway.jobs.routing.signature import Workload
from gateway.jobs.routing.snapshot import Head

# Heads that compete for a decision: of so many tenants, so many models each, so many groups each.
MAX_TENANTS, MAX_MODELS, MAX_GROUPS, MAX_HEADS, MAX_WARM = 8, 8, 2, 12, 4
# If several tenants wait, each has at least so many heads, as far as all have room.
MIN_HEADS = 3
# Jobs whose place their client gave that are passed over, because no backend that may run them can take one.
MAX_LOOKED_AT = 64
# Groups that `all_heads` returns at most.
MAX_BATCH = 64
# Groups of a lane, lanes of a tenant, and tenants that an estimate counts.
MAX_COUNTED = 64
# Lanes and groups of a lane that a quick estimate counts.
MAX_LANES, MAX_SAMPLES = 8, 4

_Key = tuple[float, str]
# The jobs of a group have these in common: workload, backends, bonus.
_GroupKey = tuple[str, frozenset[str] | None, float]


def _always(_: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """Job that waits: its id, tenant and workload, its number in its tenant's order, when it came, where it may run.

    It `is_ordered` if its client gave its place (`front`, `number`): then it goes before its tenant's jobs of higher
    numbers, however long they take. `bonus` is its priority, as the seconds of waiting that make up for it.
    """

    job_id: str
    tenant: str
    work: Workload
    number: float
    since: float
    able: frozenset[str] | None = None
    is_ordered: bool = False
    bonus: float = 0.0


@dataclass(frozen=True, slots=True)
class Ahead:
    """Jobs that go before a waiting one, and their GPU seconds at usual speed."""

    jobs: int
    seconds: float


@dataclass(slots=True, eq=False)
class _Lane:
    """Groups of one tenant with the same model, backends and priority, in the order of their keys.

    `jobs` counts the jobs of all of them.
    """

    model: str
    able: frozenset[str] | None
    bonus: float
    serial: int
    groups: list[tuple[_Key, _Group]] = field(default_factory=list)
    jobs: int = 0


@dataclass(slots=True, eq=False)
class _Group:
    """Jobs of one tenant that are alike, by number. `key` sorts the group in its lane."""

    work: Workload
    lane: _Lane
    jobs: list[tuple[float, str, WaitingJob]] = field(default_factory=list)
    key: _Key = (0.0, "")
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Tenant:
    """Waiting jobs of one tenant. `firsts` has, by priority and backends, the keys of their lanes' first groups.

    `numbers` has all jobs by number, and `ordered` counts those whose place their clients gave.
    """

    groups: dict[_GroupKey, _Group] = field(default_factory=dict)
    lanes: dict[tuple[str, frozenset[str] | None, float], _Lane] = field(default_factory=dict)
    by_serial: dict[int, _Lane] = field(default_factory=dict)
    firsts: dict[float, dict[frozenset[str] | None, list[tuple[_Key, int]]]] = field(default_factory=dict)
    numbers: list[tuple[float, str]] = field(default_factory=list)
    ordered: int = 0
    jobs: int = 0
    seconds: float = 0.0


class WaitingHeads:
    """All waiting jobs.

    Args:
        shares: the order of tenants.
        seconds: returns the expected seconds of a workload at usual speed.
        ageing: seconds of work that a second of waiting makes up for.
        step: seconds of waiting that make up for one step of priority.
    """

    def __init__(
        self, shares: Shares, seconds: Callable[[Workload], float], ageing: float, step: float = 300.0
    ) -> None:
        self._shares = shares
        self._seconds = seconds
        self._ageing = ageing
        self._step = step
        # Of each priority, the number of jobs.
        self._priorities: Counter[float] = Counter()
        self._jobs: dict[str, WaitingJob] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: WaitingJob) -> None:
        """Add a job that waits from now on."""
        tenant = self._tenants.get(job.tenant)
        if tenant is None:
            tenant = self._tenants[job.tenant] = _Tenant()
            self._shares.waits(job.tenant)
        group = tenant.groups.get(_group_key(job))
        if group is None:
            group = _Group(job.work, self._lane(tenant, job))
            tenant.groups[_group_key(job)] = group
        else:
            _leave(tenant, group)
        insort(group.jobs, (job.number, job.job_id, job))
        insort(tenant.numbers, (job.number, job.job_id))
        tenant.ordered += job.is_ordered
        self._enter(tenant, group)
        self._jobs[job.job_id] = job
        self._priorities[job.bonus] += 1

    def remove(self, job_id: str) -> None:
        """Remove a job that waits no longer."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        tenant = self._tenants[job.tenant]
        group = tenant.groups[_group_key(job)]
        _leave(tenant, group)
        del group.jobs[bisect_left(group.jobs, (job.number, job_id))]
        del tenant.numbers[bisect_left(tenant.numbers, (job.number, job_id))]
        tenant.ordered -= job.is_ordered
        self._priorities[job.bonus] -= 1
        if not self._priorities[job.bonus]:
            del self._priorities[job.bonus]
        if group.jobs:
            self._enter(tenant, group)
            return
        del tenant.groups[_group_key(job)]
        lane = group.lane
        if not lane.groups:
            del tenant.lanes[lane.model, lane.able, lane.bonus], tenant.by_serial[lane.serial]
        if not tenant.groups:
            del self._tenants[job.tenant]
            self._shares.waits_no_more(job.tenant)

    def able(self, job_id: str) -> frozenset[str] | None:
        """Return the backends that may run a waiting job; None for all."""
        return self._jobs[job_id].able

    def first(self, head: Head) -> WaitingJob:
        """Return the job that a head stands for."""
        return self._tenants[head.tenant].groups[head.work.key, head.able, head.bonus].jobs[0][2]

    def heads(
        self,
        warm: Collection[str] = (),
        is_open: Callable[[frozenset[str]], bool] | None = None,
        may_go: Callable[[str], bool] = _always,
        now: float = 0.0,
    ) -> list[Head]:
        """Return the heads that compete for a decision: the next tenants', of each model the first.

        Jobs of several priorities go in the order of these, with the steps that the first one of each has gained.

        Args:
            warm: models in memory of backends that can take a job; their heads compete, too.
            is_open: returns True if one of some backends can take a job; without it all can.
            may_go: returns True if a job of a tenant may go to a backend, by the tenant's limits.
        """
        can_go = _remembered(is_open)
        found = [(bonus, self._heads_of(bonus, warm, can_go, may_go)) for bonus in self._priorities]
        if len(found) == 1:
            return found[0][1]
        levels = {bonus: _steps(bonus, heads[0].since, now, self._step) for bonus, heads in found if heads}
        ranks = {level: rank for rank, level in enumerate(sorted(set(levels.values())))}
        # Some of the last places are for lower priorities, whose jobs go where those of higher ones do not.
        maximum, ordered = MAX_HEADS - MIN_HEADS, list[Head]()
        for bonus, heads in sorted(found, key=lambda each: -levels.get(each[0], 0.0)):
            more = heads[: max(maximum - len(ordered), MIN_HEADS)]
            ordered += [head._replace(rank=ranks[levels[bonus]]) for head in more]
        return ordered[:MAX_HEADS]

    def _heads_of(
        self,
        bonus: float,
        warm: Collection[str],
        can_go: Callable[[frozenset[str] | None], bool],
        may_go: Callable[[str], bool],
    ) -> list[Head]:
        """Return the heads of one priority."""
        found: list[Head] = []
        most, tenants = max(MAX_HEADS // len(self._tenants), MIN_HEADS), 0
        for name, lead in self._in_order():
            tenant, before = self._tenants[name], len(found)
            if bonus not in tenant.firsts or not may_go(name):
                continue
            if (first := self._ordered(tenant, bonus, can_go)) is not None:
                found.append(_head(tenant.groups[_group_key(first)], lead)._replace(jobs=1))
            else:
                lanes = _open_lanes(tenant, bonus, can_go)
                for model in islice(warm, MAX_WARM):
                    lane = tenant.lanes.get((model, None, bonus))
                    if lane is not None and lane not in lanes:
                        lanes.append(lane)
                found += islice(_heads(lanes, lead), most)
            # Don't count a tenant whose backends can't take a job, because many such tenants must not hide the others.
            tenants += len(found) > before
            if len(found) >= MAX_HEADS or tenants >= MAX_TENANTS:
                break
        return found[:MAX_HEADS]

    def _ordered(
        self, tenant: _Tenant, bonus: float, can_go: Callable[[frozenset[str] | None], bool]
    ) -> WaitingJob | None:
        """Return a tenant's first job of a priority by number if its client gave its place; else None.

        Pass over such jobs whose backends can't take one, because these may be down, and must not hold up the others.
        """
        for _, job_id in islice(tenant.numbers, MAX_LOOKED_AT if tenant.ordered else 0):
            job = self._jobs[job_id]
            if not job.is_ordered and job.bonus == bonus:
                return None
            if job.is_ordered and job.bonus == bonus and can_go(job.able):
                return job
        return None

    def all_heads(self, may_go: Callable[[str], bool] = _always) -> list[Head]:
        """Return the heads of all waiting jobs that may go, or none if they are more than `MAX_BATCH`.

        If a client gave a job's place or priority, return none, too, because no rule for a batch may change its order.
        """
        if len(self._tenants) > MAX_BATCH or sum(len(each.groups) for each in self._tenants.values()) > MAX_BATCH:
            return []
        if len(self._priorities) > 1 or any(each.ordered for each in self._tenants.values()):
            return []
        leads = dict(self._in_order())
        return [
            _head(group, leads[name])
            for name, tenant in self._tenants.items()
            if may_go(name)
            for group in tenant.groups.values()
        ]

    def ahead(self, job_id: str) -> Ahead:
        """Return the jobs that go before a waiting one: its tenant's, and the others' by their fair share.

        Of many groups and tenants, count some, and take the others for like these.
        """
        job = self._jobs[job_id]
        tenant = self._tenants[job.tenant]
        group = tenant.groups[_group_key(job)]
        before = bisect_left(group.jobs, (job.number, job_id))
        jobs, seconds = float(before), before * group.seconds
        for lane in islice(tenant.lanes.values(), MAX_COUNTED):
            place = bisect_left(lane.groups, group.key, key=itemgetter(0))
            counted = lane.groups[: min(place, MAX_COUNTED)]
            scale = place / len(counted) if counted else 0.0
            jobs += scale * sum(len(each.jobs) for _, each in counted)
            seconds += scale * sum(len(each.jobs) * each.seconds for _, each in counted)
        own_lead, own = self._shares.lead(job.tenant), seconds
        others = [(name, lead) for name, lead in islice(self._in_order(), MAX_COUNTED) if name != job.tenant]
        for name, lead in others:
            other, weight = self._tenants[name], self._shares.relative_weight(name, job.tenant)
            first = min(max((own + own_lead - lead) * weight, 0.0), other.seconds)
            seconds += first
            jobs += other.jobs * first / other.seconds if other.seconds > 0 else 0.0
        return Ahead(round(jobs), seconds)

    def tenants_before(self, tenant: str, backend: str) -> Iterator[str]:
        """Yield the first tenants whose turn is before another's, and that have a job here which a backend may run."""
        own = self._shares.turn(tenant)
        for name, _ in islice(self._in_order(), MAX_COUNTED):
            if not self._shares.turn(name) < own:
                return
            firsts = self._tenants[name].firsts.values()
            if name != tenant and any(able is None or backend in able for each in firsts for able in each):
                yield name

    def _in_order(self) -> Iterator[tuple[str, float]]:
        """Yield the tenants that have jobs here, the next first. Others may wait elsewhere in the gateway."""
        return (each for each in self._shares.in_order() if each[0] in self._tenants)

    def own_ahead(self, job_id: str) -> Ahead:
        """Return the jobs of its own tenant that go before a waiting one.

        This takes microseconds, however many wait: of many lanes and groups it counts some, and takes the others for
        like these.
        """
        job = self._jobs[job_id]
        tenant = self._tenants[job.tenant]
        group = tenant.groups[_group_key(job)]
        jobs = seconds = 0.0
        counted = 0
        for lane in islice(tenant.lanes.values(), MAX_LANES):
            counted += lane.jobs
            place = bisect_left(lane.groups, group.key, key=itemgetter(0))
            # Look at some groups in equal distances, because the groups are sorted by the work of a job.
            step = place // MAX_SAMPLES + 1
            sample = lane.groups[step // 2 : place : step]
            if sample:
                alike = place / len(sample)
                jobs += alike * sum(len(each.jobs) for _, each in sample)
                seconds += alike * sum(len(each.jobs) * each.seconds for _, each in sample)
        scale = tenant.jobs / counted
        before = bisect_left(group.jobs, (job.number, job_id))
        return Ahead(round(scale * jobs) + before, scale * seconds + before * group.seconds)

    def _lane(self, tenant: _Tenant, job: WaitingJob) -> _Lane:
        key = job.work.signature.model, job.able, job.bonus
        lane = tenant.lanes.get(key)
        if lane is None:
            self._serial += 1
            lane = tenant.lanes[key] = tenant.by_serial[self._serial] = _Lane(*key, self._serial)
        return lane

    def _enter(self, tenant: _Tenant, group: _Group) -> None:
        first, lane = group.jobs[0][2], group.lane
        group.seconds = self._seconds(group.work)
        group.key = group.seconds + self._ageing * first.since - first.bonus, first.job_id
        jobs, seconds = len(group.jobs), len(group.jobs) * group.seconds
        tenant.jobs += jobs
        tenant.seconds += seconds
        lane.jobs += jobs
        before = lane.groups[0][0] if lane.groups else None
        insort(lane.groups, (group.key, group), key=itemgetter(0))
        if lane.groups[0][0] != before:
            firsts = tenant.firsts.setdefault(lane.bonus, {}).setdefault(lane.able, [])
            if before is not None:
                del firsts[bisect_left(firsts, (before, lane.serial))]
            insort(firsts, (group.key, lane.serial))


def _leave(tenant: _Tenant, group: _Group) -> None:
    lane = group.lane
    jobs, seconds = len(group.jobs), len(group.jobs) * group.seconds
    tenant.jobs -= jobs
    tenant.seconds -= seconds
    lane.jobs -= jobs
    place = bisect_left(lane.groups, group.key, key=itemgetter(0))
    del lane.groups[place]
    if place == 0:
        firsts = tenant.firsts[lane.bonus][lane.able]
        del firsts[bisect_left(firsts, (group.key, lane.serial))]
        if lane.groups:
            insort(firsts, (lane.groups[0][0], lane.serial))
        elif not firsts:
            del tenant.firsts[lane.bonus][lane.able]
            if not tenant.firsts[lane.bonus]:
                del tenant.firsts[lane.bonus]


def _remembered(is_open: Callable[[frozenset[str]], bool] | None) -> Callable[[frozenset[str] | None], bool]:
    """Return a function that says if one of some backends can take a job, which asks of each set once."""
    known: dict[frozenset[str] | None, bool] = {None: True}

    def can_go(able: frozenset[str] | None) -> bool:
        found = known.get(able)
        if found is None:
            found = known[able] = able is None or is_open is None or is_open(able)
        return found

    return can_go


def _steps(bonus: float, since: float, now: float, step: float) -> float:
    """Return a priority, in steps, with the steps that a job gained by waiting."""
    return bonus / step + max(now - since, 0.0) // step


def _open_lanes(tenant: _Tenant, bonus: float, can_go: Callable[[frozenset[str] | None], bool]) -> list[_Lane]:
    """Return the first lanes of a tenant's jobs of a priority, but for those whose backends can't take a job."""
    firsts = [each for able, each in tenant.firsts[bonus].items() if can_go(able)]
    first = firsts[0] if len(firsts) == 1 else merge(*(each[:MAX_MODELS] for each in firsts))
    return [tenant.by_serial[serial] for _, serial in islice(first, MAX_MODELS)]


def _heads(lanes: list[_Lane], lead: float) -> Iterator[Head]:
    for depth in range(MAX_GROUPS):
        for lane in lanes:
            if depth < len(lane.groups):
                yield _head(lane.groups[depth][1], lead)


def _head(group: _Group, lead: float) -> Head:
    number, _, job = group.jobs[0]
    return Head(job.tenant, group.work, len(group.jobs), job.since, (lead, number), lead, job.able, job.bonus)


def _group_key(job: WaitingJob) -> _GroupKey:
    return job.work.key, job.able, job.bonus
