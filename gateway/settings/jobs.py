"""Settings of jobs: dispatch, history, store, outputs, uploads, catalogue."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.settings.base import Age, Bytes, Count, Model, Seconds


class DispatchSettings(Model):
    """Bounds of prompts, and the times and retries of sending them to backends."""

    max_queue: Count = 16
    max_waiting: Count = 10_000
    max_waiting_bytes: Bytes = 512 * 1024**2
    max_prompt_bytes: Bytes = 12 * 1024**2
    max_nodes: Count = 2_000
    max_graph_values: Count = 40_000
    max_body_values: Count = 150_000
    max_outputs: Count = 500
    max_depth: Annotated[int, Field(ge=16, le=400)] = 200
    connect_timeout: Seconds = 3.0
    send_timeout: Seconds = 20.0
    attempts: Annotated[int, Field(ge=1, le=100)] = 3
    work_stealing: bool = True
    backoff: Seconds = 0.5
    max_backoff: Seconds = 30.0
    rerun_started: bool = True
    stall_after: Seconds = 300.0
    job_timeout: Seconds | None = None
    on_timeout: Literal["fail", "retry"] = "fail"
    deadline: Seconds | None = None


class HistorySettings(Model):
    """Bounds of each tenant's history, of the history in memory, and of a single result."""

    max_items: Count = 10_000
    max_bytes: Bytes = 2 * 1024**3
    memory: Bytes = 128 * 1024 * 1024
    max_result: Bytes = 64 * 1024 * 1024


class RetentionSettings(Model):
    """Bounds of ended jobs in the journal, of all tenants together."""

    max_age: Age = 30 * 86_400.0
    max_items: Count = 100_000
    max_bytes: Bytes = 8 * 1024**3
    max_files: Count = 300_000


class StoreSettings(Model):
    """The journal."""

    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    retention: RetentionSettings = RetentionSettings()


class OutputSettings(Model):
    """Settings for showing the files that jobs wrote."""

    hide_names: bool = False


class UploadSettings(Model):
    """Bounds of uploads, which the gateway keeps in the data directory and puts on backends.

    `after_job` is what becomes of the uploads that a job named when it has ended.
    """

    max_size: Bytes = 4 * 1024**3
    quota: Bytes = 20 * 1024**3
    keep: Age = 30 * 86_400.0
    aside: Age = 7 * 86_400.0
    after_job: Literal["keep", "forget"] = "keep"


class CatalogueSettings(Model):
    """Times for reading /object_info and the model lists of the backends again."""

    refresh: Seconds = 300.0
    timeout: Seconds = 60.0
