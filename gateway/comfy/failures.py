"""Whose fault an ``execution_error`` is: the workflow's, or the machine's. Pure.

ComfyUI tells both alike, as the exception's type and text (execution.py, full_type_name and handle_execution_error).
The texts are torch's (c10/cuda/CUDAException.cpp, ATen/cuda/Exceptions.h), those of a ROCm build the same with HIP's
names. They are looked for at the beginning alone, and in torch's own types: a node may quote its caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from gateway.comfy.history import messages_of


class Cause(StrEnum):
    """Why a prompt failed.

    MEMORY: the GPU's memory did not suffice for it there and then. POISONED: its process can't use the GPU any more,
    until it is started again. FILE: a file was not there, for whichever reason. WORKFLOW: anything else.
    """

    WORKFLOW = "workflow"
    FILE = "file"
    MEMORY = "memory"
    POISONED = "poisoned"


# comfy/model_management.py, OOM_EXCEPTION: the name has changed from one torch to the next.
_MEMORY_TYPES = frozenset({"torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError"})
# Python's own, and that of PyAV, which LoadImage opens pictures with ("av.error.FileNotFoundError").
_NO_FILE = "FileNotFoundError"
# A RuntimeError until torch 2.8.
_DEVICE_TYPES = frozenset({"RuntimeError", "torch.AcceleratorError"})
_MEMORY = re.compile(
    r"(CUDA|HIP) out of memory|Allocation on device|(CUDA|HIP)( driver)? error: (out of memory|\w+_STATUS_ALLOC_FAILED)"
)
# Those after which each further call answers the same (CUDA runtime API, cudaError); an invalid argument, say,
# is not of them, nor a kernel that was not built for the device.
_POISONED = re.compile(
    r"(CUDA|HIP)( driver)? error: ("
    r"an illegal memory access was encountered|device-side assert triggered|unspecified launch failure|"
    r"misaligned address|an illegal instruction was encountered|the launch timed out and was terminated|"
    r"uncorrectable ECC error encountered|hardware stack error|invalid program counter|unknown error|"
    r"\w*BLAS_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED|MAPPING_ERROR))|"
    r"cuDNN error: CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)",
    re.IGNORECASE,
)


def cause_of(exception_type: str, message: str) -> Cause:
    """Whose fault an error is, from what ComfyUI says of it."""
    if exception_type in _MEMORY_TYPES:
        return Cause.MEMORY
    if exception_type.rpartition(".")[2] == _NO_FILE:
        return Cause.FILE
    if exception_type in _DEVICE_TYPES:
        message = message.lstrip()
        if _MEMORY.match(message):
            return Cause.MEMORY
        if _POISONED.match(message):
            return Cause.POISONED
    return Cause.WORKFLOW


def cause_of_entry(entry: Mapping[str, Any]) -> tuple[Cause, str]:
    """Return whose fault the failure is that a history entry tells of, and the id of the node that failed."""
    for name, data in messages_of(entry.get("status")):
        if name == "execution_error":
            cause = cause_of(str(data.get("exception_type")), str(data.get("exception_message")))
            return cause, str(data.get("node_id"))
    return Cause.WORKFLOW, ""
