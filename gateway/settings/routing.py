"""Settings of routing: which backend runs a job, and when it is sent there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.settings.base import YEAR, Model, Seconds
from gateway.settings.units import TIMES

# The names of the policies (gateway/jobs/routing/policies/registry.py); a test compares both.
PolicyName = Literal["shortest_queue", "least_work", "round_robin", "random_two", "pinned"]


class AffinitySettings(Model):
    """Waiting for a backend that has a job's model in memory."""

    max_delay_seconds: Annotated[float, Field(ge=0, le=86_400)] = 120.0


class RoutingSettings(Model):
    """Policy by which jobs go to backends, and their order.

    `ahead` is the number of jobs that a backend gets before it is free. `priority_seconds` of waiting make up for one
    step of priority. A job that ran out of memory is remembered for `out_of_memory_seconds`; 0 remembers none.
    """

    policy: PolicyName = "shortest_queue"
    ahead: Annotated[int, Field(ge=0, le=16)] = 1
    affinity: AffinitySettings = AffinitySettings()
    priority_seconds: Seconds = 300.0
    out_of_memory_seconds: Annotated[float, Field(ge=0, le=YEAR), *TIMES] = 86_400.0
