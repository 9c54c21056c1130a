"""Causes of an ``execution_error``: the workflow, or the machine. Pure.

ComfyUI tells both alike, as the exception's type and text (execution.py, full_type_name and handle_execution_error).
The texts are torch's (c10/cuda/CUDAException.cpp, ATen/cuda/Exceptions.h), those of a ROCm build the same with HIP's
names. They are looked for at the beginning alone, and in torch's own types: a node may quote its caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.comfy.history import messages_of

# Characters of an error that are kept as the reason of an ejection.
MAX_ERROR = 300


class Cause(StrEnum):
    """Cause of a prompt's failure.

    MEMORY: the GPU's memory did not suffice there and then. POISONED: the backend's process can't use the GPU until a
    restart. FILE: a file was not there, for whichever reason. MACHINE: the backend's disk, its host's memory, its
    drivers or its model files are to blame, as far as the error tells. WORKFLOW: anything else.
    """

    WORKFLOW = "workflow"
    FILE = "file"
    MACHINE = "machine"
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
# Errors after which each further call answers the same (CUDA runtime API, cudaError). An invalid argument is none of
# these, nor is a kernel that was not built for the device.
_POISONED = re.compile(
    r"(CUDA|HIP)( driver)? error: ("
    r"an illegal memory access was encountered|device-side assert triggered|unspecified launch failure|"
    r"misaligned address|an illegal instruction was encountered|the launch timed out and was terminated|"
    r"uncorrectable ECC error encountered|hardware stack error|invalid program counter|unknown error|"
    r"\w*BLAS_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED|MAPPING_ERROR))|"
    r"cuDNN error: CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)",
    re.IGNORECASE,
)
# Errors of the machine, by the exception's type and the beginning of its text. The first are Python's, with the number
# of errno.h; the others torch's (c10/core/impl/alloc_cpu.cpp, torch/cuda/__init__.py) and safetensors'.
_MACHINE = tuple(
    (frozenset(types.split()), re.compile(text))
    for types, text in (
        # No space, quota exceeded, read-only file system, input/output error, stale file handle, too many open files.
        ("OSError", r"\[Errno (28|122|30|5|116|23|24)\] "),
        ("PermissionError", r"\[Errno 13\] "),
        ("MemoryError", r""),
        ("RuntimeError", r"\[enforce fail at alloc_cpu\.cpp|DefaultCPUAllocator: (can't allocate|not enough) memory"),
        ("RuntimeError", r"Found no NVIDIA driver|No CUDA GPUs are available|No HIP GPUs are available"),
        ("RuntimeError", r"The NVIDIA driver on your system is too old|Unexpected error from cudaGetDeviceCount"),
        ("AssertionError", r"Torch not compiled with CUDA enabled"),
        ("RuntimeError torch.AcceleratorError", r"CUDA error: no kernel image is available"),
        ("RuntimeError torch.AcceleratorError", r"CUDA error: CUDA-capable device\(s\) is/are busy or unavailable"),
        ("safetensors_rust.SafetensorError", r"Error while deserializing header"),
        ("RuntimeError", r"PytorchStreamReader failed"),
        ("EOFError", r"Ran out of input"),
        # A package that is not installed, or installed for another torch.
        ("ModuleNotFoundError", r"No module named "),
        ("ImportError", r"cannot import name |[^ ]+\.so[.0-9]*: cannot open shared object file"),
        ("RuntimeError", r"operator [\w:]+ does not exist"),
    )
)


def cause_of(exception_type: str, message: str) -> Cause:
    """Return the cause of an error, from ComfyUI's exception type and text."""
    if exception_type in _MEMORY_TYPES:
        return Cause.MEMORY
    if exception_type.rpartition(".")[2] == _NO_FILE:
        return Cause.FILE
    message = message.lstrip()
    if any(exception_type in types and text.match(message) for types, text in _MACHINE):
        return Cause.MACHINE
    if exception_type in _DEVICE_TYPES:
        if _MEMORY.match(message):
            return Cause.MEMORY
        if _POISONED.match(message):
            return Cause.POISONED
    return Cause.WORKFLOW


@dataclass(frozen=True, slots=True)
class Failure:
    """Failure in a history entry: its cause, the id of the node that failed, and the error."""

    cause: Cause = Cause.WORKFLOW
    node_id: str = ""
    error: str = ""


def failure_of_entry(entry: Mapping[str, Any]) -> Failure:
    """Return the failure that a history entry tells of."""
    for name, data in messages_of(entry.get("status")):
        if name == "execution_error":
            type_, message = str(data.get("exception_type")), str(data.get("exception_message")).strip()
            return Failure(cause_of(type_, message), str(data.get("node_id")), f"{type_}: {message}"[:MAX_ERROR])
    return Failure()
