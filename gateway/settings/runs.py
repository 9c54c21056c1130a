"""Settings of synchronous runs and of named workflows."""

from __future__ import annotations

from gateway.settings.base import Bytes, Count, Model, Seconds


class RunSettings(Model):
    """Maximum wait of POST /gateway/run, and the answers that wait at a time, of a tenant and of all."""

    wait_max: Seconds = 60.0
    max_waiting: Count = 1_000
    max_total_waiting: Count = 10_000


class WorkflowSettings(Model):
    """Bounds of a tenant's named workflows: their number, the bytes of one, and the bytes of all."""

    max_count: Count = 100
    max_size: Bytes = 2**20
    max_total: Bytes = 16 * 2**20
