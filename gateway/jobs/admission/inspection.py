"""Inspection of each parsed graph: refuse one that would end the executor of its backend, then judge it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.catalogue.object_info import MergedCatalogue
from gateway.comfy.errors import error_body
from gateway.comfy.executor_faults import executor_fault, no_profiles
from gateway.jobs.state.prompt_bounds import Rejection

Inspect = Callable[[Mapping[str, Any], bool], object]


def inspector(merged_catalogue: MergedCatalogue | None, judge: Inspect | None) -> Inspect:
    """Return the function with which `read` inspects a graph. It returns the judgement; None without a `judge`.

    It raises `Rejection` for a graph that would end an executor, whoever sends it.
    """
    known = merged_catalogue.profiles.of if merged_catalogue is not None else no_profiles

    def inspect(prompt: Mapping[str, Any], is_plain: bool) -> object:
        fault = executor_fault(prompt, known)
        if fault is not None:
            node_id, reason = fault
            extra = {"node_id": node_id[:200]}
            message = f"Node '{node_id[:200]}' would stop the ComfyUI that runs it"
            raise Rejection(400, error_body("invalid_prompt", message, reason, extra))
        return judge(prompt, is_plain) if judge is not None else None

    return inspect
