"""Settings of the Comfy API v2."""

from __future__ import annotations

from gateway.settings.base import Bytes, Count, Model, Seconds


class V2Settings(Model):
    """Bounds of the Comfy API v2.

    They are for open event streams of a tenant and of all, for the bytes that wait for their readers, of a tenant and
    of all, and for the wait of ``Prefer: wait``.
    """

    max_streams: Count = 1_000
    max_total_streams: Count = 10_000
    tenant_buffer: Bytes = 64 * 1024 * 1024
    total_buffer: Bytes = 256 * 1024 * 1024
    wait_max: Seconds = 60.0
