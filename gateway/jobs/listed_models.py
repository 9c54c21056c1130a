"""Models that metrics may name: only those that a backend lists, because a caller may write any text into a prompt.

ComfyUI ignores an input that a node class does not have, so a prompt may name models that nobody has. If each had a
series, one caller could take the names of all others' models from them for a day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.catalogue.capabilities import has_choice
from gateway.comfy.diffusion_model import LOADER_CLASSES, LOADER_INPUTS
from gateway.jobs.state.job import Job
from gateway.telemetry.model_slots import OTHER

# Other lists of a class are not looked at, because some are long, and their lookup is remembered for few.
_INPUTS = sorted(LOADER_INPUTS.union(LOADER_CLASSES.values()))


class ListedModels:
    """Names of models for metrics.

    Args:
        describe: returns a backend's description of a node class, else another backend's; None if there is none.
        is_shown: False if no metric names a model, so that none is looked for: a list may have 200,000 of them.
    """

    def __init__(self, describe: Callable[[str, str], Mapping[str, Any] | None], *, is_shown: bool) -> None:
        self._describe = describe
        self._is_shown = is_shown

    def name_of(self, job: Job) -> str:
        """Return the name of a job's model; `other` if its loader does not list it, empty if none is shown."""
        submission = job.submission
        if not submission.model or not self._is_shown:
            return ""
        class_type = next((each for node_id, each in submission.nodes if node_id == submission.workload.loader), "")
        description = self._describe(job.backend or "", class_type)
        is_listed = any(has_choice(description, name, submission.model) for name in _INPUTS)
        return submission.model if is_listed else OTHER
