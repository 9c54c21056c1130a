"""Learning from runs: their times, the models that backends hold, the arrivals of jobs. Routing decides by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.comfy.runs import run_of, run_seconds
from gateway.jobs.routing.arrivals import Arrivals
from gateway.jobs.routing.eta import Calibration
from gateway.jobs.routing.learned_tables import MAX_BACKENDS
from gateway.jobs.routing.levels import numbers
from gateway.jobs.routing.memory import MAX_ARGUMENTS, MAX_MODELS, CacheOptions, HeldModels, Keeping, read_options
from gateway.jobs.routing.out_of_memory import REMEMBER_SECONDS, OutOfMemory
from gateway.jobs.routing.tenant_times import TenantTimes
from gateway.jobs.routing.times import RunKind, Times, kind_of_run
from gateway.jobs.state.job import Job
from gateway.jobs.state.submission import Submission
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics

_log = logs.get("routing")

# Characters of a backend's argument that are kept.
MAX_ARGUMENT = 200
# A backend reloads models a lot if it did so this often, for so many seconds, and for this share of its runs' time.
MANY_RELOADS, MANY_SECONDS, MANY_SHARE = 10, 60.0, 0.05
CACHE_HINT = "start ComfyUI with --cache-ram 4 8, so that it keeps the models that fit"


@dataclass(slots=True, eq=False)
class Launch:
    """Knowledge of a backend since its process or the gateway started, whichever was later.

    `argv` is its command line, None if it did not tell that yet. `running` is the job that began last.
    `reload_seconds` is the time that loading models again cost, as learned; `run_seconds` is the time of all its runs.
    """

    held: HeldModels
    argv: tuple[str, ...] | None = None
    running: Job | None = None
    reload_seconds: float = 0.0
    run_seconds: float = 0.0
    is_told: bool = False

    @property
    def keeps_too_few(self) -> bool:
        """Return True if its launch options keep one prompt's models at most, and it had to load one again."""
        is_so = self.held.options.models <= 1 and not self.held.keeps_several
        return self.argv is not None and is_so and self.held.reloads > 0

    @property
    def costs_much(self) -> bool:
        """Return True if its loads of models cost much that a cache option would spare."""
        share = self.reload_seconds / max(self.run_seconds, 1.0)
        is_much = self.held.reloads >= MANY_RELOADS and self.reload_seconds >= MANY_SECONDS and share >= MANY_SHARE
        return self.keeps_too_few and is_much

    def begin(self) -> None:
        """Count anew, because the process is a new one."""
        self.held.loads = self.held.reloads = 0
        self.reload_seconds = self.run_seconds = 0.0
        self.is_told = False


class Learning:
    """Knowledge of runs, fed by the events of jobs and backends. It has no awaits.

    Args:
        metrics: the metrics that count loads of models; None to count none.
        rate: seconds of routing for each real second; 1 but in simulations that run fast.
        out_of_memory_seconds: time for which a job that ran out of memory is remembered.

    Attributes:
        out_of_memory: the jobs that ran out of memory.
        times: learned times of runs and loads.
        tenants: the same of each tenant's own runs, for what a tenant is shown.
        calibration: width of the ETAs' intervals, by the errors of earlier ones.
        arrivals: gaps between the jobs that came.
        changes: count of changes that the store has to know.
        on_learned: called with a backend's name when a run there has told something.
    """

    def __init__(
        self, metrics: Metrics | None = None, rate: float = 1.0, out_of_memory_seconds: float = REMEMBER_SECONDS
    ) -> None:
        self._rate = rate
        self.out_of_memory = OutOfMemory(self._changed, out_of_memory_seconds)
        self.on_learned: Callable[[str], object] = lambda _: None
        self.times = Times()
        self.tenants = TenantTimes()
        self.calibration = Calibration()
        self.arrivals = Arrivals()
        self.changes = 0
        self._metrics = metrics
        self._launches: dict[str, Launch] = {}
        self._weights: dict[str, float] = {}

    def now(self) -> float:
        """Return the time of routing, in seconds."""
        return time.monotonic() * self._rate

    def at(self, monotonic: float) -> float:
        """Return the time of routing at a time of the monotonic clock."""
        return monotonic * self._rate

    def real(self, seconds: float) -> float:
        """Return the real seconds of some seconds of routing."""
        return seconds / self._rate

    # -- questions -----------------------------------------------------------------------------------------------

    def usual_seconds(self, submission: Submission) -> float:
        """Return the expected seconds of a warm run at usual speed."""
        return self.times.usual_seconds(submission.workload)

    def launch(self, backend_name: str) -> Launch:
        """Return the knowledge of a backend since it started."""
        found = self._launches.get(backend_name)
        if found is None:
            found = self._launches[backend_name] = Launch(HeldModels(read_options(())))
        return found

    def held(self, backend_name: str) -> HeldModels:
        """Return the belief about a backend's models."""
        return self.launch(backend_name).held

    def was_load(self, job: Job) -> bool | None:
        """Return True if the job's run loaded its model, False if it was in memory; None if that is not known."""
        kind = job.live.run_kind
        return None if kind in (None, RunKind.UNKNOWN) else kind is RunKind.LOAD

    def rest(self, job: Job, now: float) -> float:
        """Return the seconds that a running job still takes, its load included. `now` is the time of routing."""
        work, backend_name = job.submission.workload, job.backend
        if backend_name is None:
            return 0.0
        elapsed = max(now - self.at(job.started_at), 0.0) if job.started_at is not None else 0.0
        was_load = self.was_load(job)
        if was_load is None:
            was_load = self._has_to_load(work.signature.model, self.held(backend_name).held)
        load = self.times.load_seconds(work.signature.model, backend_name) if was_load else 0.0
        estimate = self.times.estimate(work, backend_name)
        if elapsed > load + estimate.median:
            self.times.note_elapsed(work, backend_name, elapsed - load)
        return max(load - elapsed, 0.0) + estimate.rest(max(elapsed - load, 0.0))

    def run_seconds(self, submission: Submission, backend_name: str, held: frozenset[str]) -> float:
        """Return the seconds of a queued job's run on a backend that will hold some models when the run begins."""
        work = submission.workload
        seconds, model = self.times.seconds(work, backend_name), work.signature.model
        return seconds + self.times.load_seconds(model, backend_name) if self._has_to_load(model, held) else seconds

    def at_usual_speed(self, backend_name: str, real_seconds: float) -> float:
        """Return the seconds that a run on a backend would have taken at usual speed."""
        return real_seconds * self._rate / self.times.speed(backend_name)

    def _changed(self) -> None:
        self.changes += 1

    def _has_to_load(self, model: str, held: frozenset[str]) -> bool:
        return bool(model) and model not in held

    # -- jobs ----------------------------------------------------------------------------------------------------

    def arrived(self, monotonic: float) -> None:
        """Note that a job came, at a time of the monotonic clock."""
        self.arrivals.arrived(self.at(monotonic))

    def started(self, job: Job) -> None:
        """Note that a job runs now."""
        if job.backend is not None:
            job.live.run_kind = None
            self.launch(job.backend).running = job

    def cached(self, job: Job) -> None:
        """Note what a job's `execution_cached` showed: if its backend had the model in memory."""
        kind = self._kind(job)
        if kind is None or job.backend is None or job.live.run_kind is not None:
            return
        job.live.run_kind = kind
        work, held = job.submission.workload, self.held(job.backend)
        capacity, reloads = held.capacity, held.reloads
        was_held = work.loader in (job.live.cached or ())
        if kind is RunKind.UNKNOWN:
            held.started("")
        elif kind is not RunKind.CACHED or was_held:
            held.started(work.signature.model, was_held)
        self.changes += held.capacity != capacity
        if kind is RunKind.LOAD:
            self._count_load(job.backend, work.signature.model, is_reload=held.reloads > reloads)

    def _count_load(self, backend_name: str, model: str, *, is_reload: bool) -> None:
        seconds = self.times.load_seconds(model, backend_name) if is_reload else 0.0
        self.launch(backend_name).reload_seconds += seconds
        if self._metrics is not None:
            self._metrics.model_loads.labels(backend_name).inc()
            self._metrics.model_reloads.labels(backend_name).inc(is_reload)
            self._metrics.model_reload_seconds.labels(backend_name).inc(seconds)

    def _kind(self, job: Job) -> RunKind | None:
        cached = job.live.cached
        return None if cached is None else kind_of_run(job.submission.workload, len(job.submission.nodes), cached)

    def learn_entry(self, job: Job, backend_name: str, status: Any) -> None:
        """Learn from a run that succeeded, by the status of its history entry.

        The backend's own times are better than those of its events, which come late while it loads a model.
        """
        told = run_of(status)
        if job.live.cached is None:
            job.live.cached = told.cached
        measured = job.live.heard_at - job.started_at if job.started_at is not None else 0.0
        seconds = run_seconds(told.seconds, measured if measured > 0 else None)
        if backend_name and seconds is not None:
            self.succeeded(job, backend_name, seconds)

    def succeeded(self, job: Job, backend_name: str, seconds: float) -> None:
        """Learn from a run that succeeded."""
        work, kind = job.submission.workload, job.live.run_kind or self._kind(job) or RunKind.UNKNOWN
        launch = self.launch(backend_name)
        launch.run_seconds += seconds
        if launch.costs_much and not launch.is_told:
            launch.is_told = True
            about = {"reloads": launch.held.reloads, "seconds": round(launch.reload_seconds), "hint": CACHE_HINT}
            _log.warning("models_reloaded", backend=backend_name, **about)
        # If only a part of the graph ran, its time tells nothing of the whole.
        if kind is RunKind.CACHED or job.submission.targets is not None:
            return
        self.times.learn(work, backend_name, seconds * self._rate, kind)
        self.tenants.learn(job.tenant, work, backend_name, seconds * self._rate, kind)
        self.on_learned(backend_name)
        self.changes += 1

    def ended(self, job: Job) -> None:
        """Note that a job's run is over, however it ended."""
        launch = self._launches.get(job.backend or "")
        if launch is None or launch.running is not job:
            return
        launch.running = None
        if job.live.run_kind is None:
            # Its `execution_cached` was missed. Its model is the last one that was used, whether it was loaded or not.
            launch.held.started(job.submission.workload.signature.model)

    # -- backends ------------------------------------------------------------------------------------------------

    def measured(self, backend_name: str, system: Mapping[str, Any]) -> None:
        """Take note of a backend's command line, as its /system_stats tells it (`system.argv`)."""
        argv, launch = system.get("argv"), self.launch(backend_name)
        if not isinstance(argv, list):
            return
        known = tuple(each[:MAX_ARGUMENT] for each in argv[:MAX_ARGUMENTS] if isinstance(each, str))
        if launch.argv is None:
            launch.argv = known
            launch.held.told(read_options(known))
        elif known != launch.argv:
            self.relaunched(backend_name, known)

    def expect_speeds(self, weights: Mapping[str, float]) -> None:
        """Expect the speeds of backends by their weights, until their runs tell, also after these were forgotten."""
        self._weights = {name: weight for name, weight in weights.items() if weight != 1.0}
        for name, weight in self._weights.items():
            self.times.expect_speed(name, weight)

    def emptied(self, backend_name: str) -> None:
        """Note that a backend freed its memory, or may have lost it."""
        self.held(backend_name).emptied()

    def relaunched(self, backend_name: str, argv: tuple[str, ...] | None = None) -> None:
        """Note that a backend's process is a new one. `argv` is its command line, None if that is not known yet."""
        launch = self.launch(backend_name)
        launch.argv, launch.running = argv, None
        if argv is None:
            launch.held.emptied()
        else:
            launch.held.relaunched(read_options(argv))
        launch.begin()

    def forget(self, backend_name: str) -> None:
        """Forget a backend that left the fleet, or whose GPU was replaced."""
        self.times.forget_backend(backend_name)
        self.tenants.forget_backend(backend_name)
        self.times.expect_speed(backend_name, self._weights.get(backend_name, 0.0))
        launch = self.launch(backend_name)
        launch.held.capacity = launch.held.options.models
        self.changes += 1

    def forget_all(self) -> None:
        """Forget all that was learned of times, and how many models backends keep."""
        self.times.forget_all()
        self.tenants.forget_all()
        self.expect_speeds(self._weights)
        for backend_name in self._launches:
            self.forget(backend_name)
        self.changes += 1

    # -- record --------------------------------------------------------------------------------------------------

    def parts(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield the record in parts: a name, and rows. Runs may be learned in between."""
        yield "calibration", self.calibration.record()
        yield (
            "capacities",
            [
                [name, str(held.options.keeping), held.options.models, held.options.is_default, held.capacity]
                for name, held in [(name, launch.held) for name, launch in self._launches.items()]
                if held.capacity != held.options.models
            ],
        )
        yield "out_of_memory", self.out_of_memory.rows()
        yield from self.times.parts()
        for row in self.tenants.parts():
            yield "tenant", row

    def restore_part(self, name: Any, rows: Any) -> None:
        """Take over a part of an earlier run's record. Skip all that is malformed."""
        if name == "calibration":
            self.calibration.restore(rows)
        elif name == "tenant":
            self.tenants.restore_part(rows)
        elif name == "out_of_memory":
            self.out_of_memory.restore(rows)
        elif name == "capacities":
            for row in rows[:MAX_BACKENDS] if isinstance(rows, list) else ():
                self._restore_capacity(row)
        else:
            self.times.restore_part(name, rows)

    def _restore_capacity(self, row: Any) -> None:
        if not (isinstance(row, list) and len(row) == 5 and isinstance(row[0], str) and row[1] in list(Keeping)):
            return
        found = numbers(row[2:], 3)
        if found is not None and all(0 <= each <= MAX_MODELS for each in found):
            held = HeldModels(CacheOptions(Keeping(row[1]), int(found[0]), bool(found[1])))
            held.capacity = int(found[2])
            self._launches[row[0]] = Launch(held)
