"""Settings of the Comfy API v2."""

from __future__ import annotations

from gateway.settings.base import Count, Model, Seconds


class V2Settings(Model):
    """Bounds of the Comfy API v2: open event streams of a tenant and of all, and the wait of ``Prefer: wait``."""

    max_streams: Count = 1_000
    max_total_streams: Count = 10_000
    wait_max: Seconds = 60.0
