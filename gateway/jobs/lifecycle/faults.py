"""Attribution of failed jobs: the caller's fault, a backend's, or the gateway's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from gateway.comfy.error_causes import Cause, cause_of
from gateway.comfy.history import messages_of


class Fault(StrEnum):
    """Party at whose fault a job failed. Alerts of operators leave out the callers' own."""

    CALLER = "caller"
    BACKEND = "backend"
    GATEWAY = "gateway"


# Types of the errors with which the gateway ends a job itself. An error that is not here is a defect of its own.
OWN_ERRORS: Mapping[str, Fault] = {
    # The prompt is not valid, or names what its tenant may not use.
    "PromptRefused": Fault.CALLER,
    "PromptValidationError": Fault.CALLER,
    "PolicyDenied": Fault.CALLER,
    "GraphRefused": Fault.CALLER,
    "RequirementUnmet": Fault.CALLER,
    # The backend died with the job once too often, runs for too long, or lost what a custom node kept.
    "BackendLost": Fault.BACKEND,
    "JobTimeout": Fault.BACKEND,
    "StateLost": Fault.BACKEND,
    "ResultUnreadable": Fault.BACKEND,
    # The gateway forgot the partner keys when it was restarted, or failed itself.
    "SecretsLost": Fault.GATEWAY,
    "GatewayError": Fault.GATEWAY,
}
_MACHINES = frozenset({Cause.MACHINE, Cause.MEMORY, Cause.POISONED})


def fault_of(status: Any, *, is_poisoned: bool = False, lost_file: bool = False) -> Fault:
    """Return at whose fault a job failed.

    Args:
        status: the status of its history entry. A job that was cancelled, or whose deadline passed, did not fail.
        is_poisoned: True if its backend can't use the GPU, so that no error says anything about the prompt.
        lost_file: True if the job ran again because a file of the gateway's was gone from a backend.
    """
    for name, data in reversed(messages_of(status)):
        if name == "execution_error":
            return fault_of_error(data, is_poisoned=is_poisoned, lost_file=lost_file)
    # ComfyUI says error without a message about a node, as after a crash of its executor.
    return Fault.BACKEND


def fault_of_error(data: Mapping[str, Any], *, is_poisoned: bool = False, lost_file: bool = False) -> Fault:
    """Return at whose fault a job failed, from the data of its ``execution_error``. `fault_of` explains the rest."""
    type_, message = str(data.get("exception_type")), str(data.get("exception_message"))
    if data.get("node_id") == "" and data.get("node_type") == "":
        # No node failed: the gateway wrote this error.
        return OWN_ERRORS.get(type_, Fault.GATEWAY)
    cause = cause_of(type_, message)
    if is_poisoned or cause in _MACHINES or (cause is Cause.FILE and lost_file):
        return Fault.BACKEND
    return Fault.CALLER
