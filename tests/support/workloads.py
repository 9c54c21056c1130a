"""Workloads for tests of routing."""

from __future__ import annotations

from gateway.jobs.routing.signature import Signature, Workload


def workload(model: str, steps: int = 20, px: float = 1.0, sampler: str = "euler", ev: float | None = None) -> Workload:
    """A workload whose node 1 loads the model and that a node called sampler runs."""
    calls = float(steps) if ev is None else ev
    signature = Signature(model, 0, sampler, steps, 1024, 1024, 1, 1, "", calls, px)
    return Workload(signature, f"{model}:{steps}:{px}:{sampler}", "1", ("sampler",))
