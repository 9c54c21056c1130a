"""Simulation of a fleet in events: jobs come, policies choose, backends load models and run, the gateway learns."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.routing.traces import Arrival, Fleet
from gateway.jobs.routing.arrivals import Arrivals
from gateway.jobs.routing.memory import CacheOptions, HeldModels, Keeping
from gateway.jobs.routing.policies.least_work import AGEING
from gateway.jobs.routing.policies.registry import Policy
from gateway.jobs.routing.shares import Shares
from gateway.jobs.routing.snapshot import BackendView, Board, Snapshot, open_slots
from gateway.jobs.routing.times import RunKind, Times
from gateway.jobs.routing.waiting import WaitingHeads, WaitingJob
from gateway.jobs.scheduling.stealing_rules import Stuck, steal_work

# Jobs that a backend holds under a policy that binds at once (max_queue).
MAX_QUEUE = 16
AHEAD = 1
# If jobs wait and a slot stays open on purpose, decide again after so many seconds.
LOOK_AGAIN = 2.0


@dataclass(slots=True, eq=False)
class Run:
    """Job in the simulation."""

    index: int
    arrival: Arrival
    started: float = -1.0
    ended: float = -1.0
    backend: int = -1
    was_load: bool = False
    charged: float = 0.0


@dataclass(slots=True, eq=False)
class Machine:
    """Backend in the simulation: its real models, and what the gateway believes."""

    index: int
    name: str
    held: list[str]
    belief: HeldModels
    running: Run | None = None
    queue: list[Run] = field(default_factory=list)
    idle_since: float = 0.0
    used_at: float = 0.0
    seconds: float | None = None
    # Times between two jobs, each with the models that were in memory.
    idle: list[tuple[float, float, frozenset[str]]] = field(default_factory=list)

    def begins(self, now: float) -> None:
        """Note that an idle machine begins to run."""
        self.idle.append((self.idle_since, now, frozenset(self.held)))


class Simulation:
    """One run of a trace under a policy.

    Args:
        times: the learned times: empty at the start, unless others are given.
        observe: called with the simulation and each job as it arrives, and again when it ends.
    """

    def __init__(
        self,
        trace: Sequence[Arrival],
        fleet: Fleet,
        policy: Policy,
        times: Times | None = None,
        ageing: float = AGEING,
        steals: bool = False,
        observe: Callable[[Simulation, Run], None] | None = None,
    ) -> None:
        self.runs = [Run(index, arrival) for index, arrival in enumerate(trace)]
        self.fleet = fleet
        self.policy = policy
        self.times = times or Times()
        self.shares = Shares()
        self.waiting = WaitingHeads(self.shares, self.times.usual_seconds, ageing)
        self.board = Board()
        self.arrivals = Arrivals()
        self.now = 0.0
        options = CacheOptions(Keeping.LAST if fleet.keeps == 1 else Keeping.ALL, fleet.keeps, fleet.keeps == 1)
        self.machines = [Machine(index, f"gpu-{index}", [], HeldModels(options)) for index in range(len(fleet.speeds))]
        self._by_name = {machine.name: machine for machine in self.machines}
        self._steals = steals
        self._observe = observe
        self._events: list[tuple[float, int, str, Run | Machine | None]] = []
        self._serial = 0
        self._looks_at = -1.0

    def run(self) -> Simulation:
        """Run until the last job has ended."""
        for run in self.runs:
            self._at(run.arrival.at, "arrive", run)
        for machine in self.machines:
            self._show(machine)
        while self._events:
            self.now, _, event, subject = heapq.heappop(self._events)
            if event == "arrive" and isinstance(subject, Run):
                self._arrive(subject)
                if self._events and self._events[0][0] == self.now and self._events[0][2] == "arrive":
                    continue
            elif event == "end" and isinstance(subject, Machine):
                self._end(subject)
            self._decide()
        return self

    # -- events --------------------------------------------------------------------------------------------------

    def _at(self, time: float, event: str, subject: Run | Machine | None = None) -> None:
        self._serial += 1
        heapq.heappush(self._events, (time, self._serial, event, subject))

    def _arrive(self, run: Run) -> None:
        arrival = run.arrival
        self.arrivals.arrived(self.now)
        self.waiting.add(WaitingJob(str(run.index), arrival.tenant, arrival.kind.work, run.index, self.now))
        if self._observe:
            self._observe(self, run)

    def _start(self, machine: Machine, run: Run) -> None:
        model = run.arrival.kind.model
        run.was_load = model not in machine.held
        machine.held = [*(each for each in machine.held if each != model), model][-self.fleet.keeps :]
        machine.belief.started(model, not run.was_load)
        machine.running, run.started, run.backend = run, self.now, machine.index
        load = self.fleet.load_seconds if run.was_load else 0.0
        speed = self.fleet.speed(machine.index, self.now)
        self._at(self.now + load + run.arrival.seconds / speed, "end", machine)

    def _end(self, machine: Machine) -> None:
        run = machine.running
        assert run is not None
        run.ended, machine.running = self.now, None
        seconds = self.now - run.started
        machine.seconds = seconds if machine.seconds is None else machine.seconds + (seconds - machine.seconds) / 3
        self.times.learn(run.arrival.kind.work, machine.name, seconds, RunKind.LOAD if run.was_load else RunKind.WARM)
        self.shares.adjust(run.arrival.tenant, seconds / self.times.speed(machine.name) - run.charged)
        if self._observe:
            self._observe(self, run)
        machine.idle_since = self.now
        if machine.queue:
            self._start(machine, machine.queue.pop(0))

    # -- decisions -----------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        if len(self.waiting):
            for machine in self.machines:
                self._show(machine)
            while len(self.waiting) and self.board.has_open:
                choice = self.policy.choose(self._snapshot())
                if choice is None:
                    break
                self._send(self.waiting.first(choice.head), self._by_name[choice.backend])
        if self._steals:
            self._steal()
        if len(self.waiting) and self.policy.binds_late and self._looks_at <= self.now:
            opens = [machine for machine in self.machines if machine.running is None]
            soonest = min((view.ends_at - self.now for view in self.board.views.values()), default=0.0)
            self._looks_at = self.now + (LOOK_AGAIN if opens else max(soonest - 5.0, LOOK_AGAIN))
            self._at(self._looks_at, "look")

    def _snapshot(self) -> Snapshot:
        heads = self.waiting.heads(self.board.warm_models(), self.board.is_open)
        batch = self.waiting.all_heads()
        return Snapshot(self.now, self.board, heads, self.times, batch, self.arrivals)

    def _send(self, job: WaitingJob, machine: Machine) -> None:
        run = self.runs[int(job.job_id)]
        run.charged = self.times.usual_seconds(job.work)
        self.waiting.remove(job.job_id)
        self.shares.charge(job.tenant, run.charged)
        machine.used_at = self.now
        if machine.running is None:
            machine.begins(self.now)
            self._start(machine, run)
        else:
            machine.queue.append(run)
        self._show(machine)

    def _show(self, machine: Machine) -> None:
        ends_at, jobs = self.now, len(machine.queue) + (machine.running is not None)
        if machine.running is not None:
            work, elapsed = machine.running.arrival.kind.work, self.now - machine.running.started
            load = self.times.load_seconds(work.signature.model, machine.name) if machine.running.was_load else 0.0
            estimate = self.times.estimate(work, machine.name)
            ends_at += max(load - elapsed, 0.0) + estimate.rest(max(elapsed - load, 0.0))
            if elapsed > load + estimate.median:
                self.times.note_elapsed(work, machine.name, elapsed - load)
        held = machine.belief.held
        for run in machine.queue:
            work = run.arrival.kind.work
            ends_at += self.times.seconds(work, machine.name)
            if work.signature.model not in held:
                ends_at += self.times.load_seconds(work.signature.model, machine.name)
            held = machine.belief.after([work.signature.model])
        slots = MAX_QUEUE - jobs
        if self.policy.binds_late:
            slots = open_slots(self.now, ends_at, jobs, AHEAD, machine.running is None)
        view = BackendView(
            machine.name, slots, ends_at, held, machine.belief.keeps_several, len(machine.queue),
            int(machine.running is not None), used_at=machine.used_at, factor=self.times.speed(machine.name),
        )  # fmt: skip
        self.board.put(view)

    def _steal(self) -> None:
        """Let idle machines steal, as the gateway does."""
        while idle := {m.name: m.seconds or self._usual() for m in self.machines if m.running is None and not m.queue}:
            stuck = []
            for machine in self.machines:
                usual = machine.seconds or self._usual()
                ahead = 0.0
                if machine.running is not None:
                    ahead = max(usual - (self.now - machine.running.started), usual * 0.25)
                for position, run in enumerate(machine.queue):
                    stuck.append(Stuck(position, machine.name, str(run.index), ahead + usual))
                    ahead += usual
            choice = steal_work(idle, stuck)
            if choice is None:
                return
            run, target = self.runs[int(choice[0].upstream_id)], self._by_name[choice[1]]
            self._by_name[choice[0].backend].queue.remove(run)
            target.begins(self.now)
            self._start(target, run)

    def _usual(self) -> float:
        known = [machine.seconds for machine in self.machines if machine.seconds is not None]
        return sum(known) / len(known) if known else 1.0
