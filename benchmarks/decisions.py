"""Routing decisions of the policy least_work at 3, 64 and 256 backends, with ten thousand distinct prompts waiting."""

from __future__ import annotations

import statistics
import time
from random import Random

from benchmarks.table import Row
from gateway.jobs.routing.policies.least_work import AGEING, LeastWork
from gateway.jobs.routing.shares import Shares
from gateway.jobs.routing.signature import Signature, Workload
from gateway.jobs.routing.snapshot import BackendView, Board, Snapshot
from gateway.jobs.routing.times import RunKind, Times
from gateway.jobs.routing.waiting import WaitingHeads, WaitingJob

WAITING, MODELS, TENANTS = 10_000, 12, 8
WANTED = 100.0


def _work(model: str, steps: int) -> Workload:
    signature = Signature(model, 0, "euler", steps, 1024, 1024, 1, 1, "", float(steps), 1.0)
    return Workload(signature, f"{model}:{steps}", "1", ("2",))


def decisions(backends: int, count: int) -> list[float]:
    """Return the microseconds of each of some decisions: a job ended and was learned, one is chosen."""
    random, times = Random(1), Times()
    models = [f"model-{n}" for n in range(MODELS)]
    for n in range(backends):
        for model in random.sample(models, 3):
            times.learn(_work(model, 20), f"gpu-{n}", random.uniform(5, 50), RunKind.WARM)
    waiting = WaitingHeads(Shares(), times.usual_seconds, AGEING)
    for n in range(WAITING):
        work = _work(random.choice(models), n)
        waiting.add(WaitingJob(str(n), f"tenant-{n % TENANTS}", work, n, -float(WAITING - n) / 10))
    board = Board()
    for n in range(backends):
        board.put(BackendView(f"gpu-{n}", 0, random.uniform(0, 60), frozenset({random.choice(models)})))
    policy, found = LeastWork(), []
    for n in range(count):
        busy = board.views[f"gpu-{n % backends}"]
        ended = _work(random.choice(models), 20)
        times.learn(ended, busy.name, random.uniform(5, 50), RunKind.WARM if n % 4 else RunKind.LOAD)
        board.put(busy._replace(slots=1, ends_at=0.0))
        began = time.perf_counter()
        heads = waiting.heads(board.warm_models(), board.is_open)
        choice = policy.choose(Snapshot(0.0, board, heads, times))
        found.append((time.perf_counter() - began) * 1e6)
        if choice is not None:
            waiting.remove(waiting.first(choice.head).job_id)
        board.put(busy._replace(ends_at=random.uniform(0, 60)))
    return found


async def run(rounds: int, seconds: float) -> list[Row]:
    """Measure."""
    rows = []
    for backends in (3, 64, 256):
        medians = [statistics.median(decisions(backends, 400)) for _ in range(rounds)]
        median = statistics.median(medians)
        spread = f"{median / WANTED:.2f} ({min(medians) / WANTED:.2f} to {max(medians) / WANTED:.2f})"
        what = f"decision, {backends} backends, {WAITING:,} waiting"
        rows.append(Row(what, f"{median:.0f} µs", f"{WANTED:.0f} µs", spread, "≤ 1"))
    return rows
