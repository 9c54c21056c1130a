"""Whose fault an error is."""

from __future__ import annotations

import pytest

from gateway.comfy.error_causes import Cause, cause_of, failure_of_entry

ACCELERATOR = "torch.AcceleratorError"


@pytest.mark.parametrize(
    ("type_", "message", "cause"),
    [
        ("torch.OutOfMemoryError", "Allocation on device \n", Cause.MEMORY),
        (
            "torch.cuda.OutOfMemoryError",
            "Allocation on device 0 would exceed allowed memory. (out of memory)",
            "memory",
        ),
        ("RuntimeError", "CUDA out of memory. Tried to allocate 2.00 GiB", Cause.MEMORY),
        ("RuntimeError", "HIP out of memory. Tried to allocate 2.00 GiB", Cause.MEMORY),
        (ACCELERATOR, "CUDA error: out of memory\nCUDA kernel errors might be …", Cause.MEMORY),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", Cause.MEMORY),
        ("RuntimeError", "CUDA error: an illegal memory access was encountered\nCUDA kernel errors …", Cause.POISONED),
        (ACCELERATOR, "CUDA error: device-side assert triggered", Cause.POISONED),
        (ACCELERATOR, "CUDA error: unspecified launch failure", Cause.POISONED),
        ("RuntimeError", "CUDA driver error: unknown error", Cause.POISONED),
        ("RuntimeError", "HIP error: an illegal memory access was encountered", Cause.POISONED),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(…)`", Cause.POISONED),
        ("RuntimeError", "CUDA error: HIPBLAS_STATUS_INTERNAL_ERROR when calling …", Cause.POISONED),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", Cause.POISONED),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling …", Cause.WORKFLOW),
        ("RuntimeError", "CUDA error: no kernel image is available for execution on the device", Cause.MACHINE),
        ("OSError", "[Errno 28] No space left on device: '/output/ComfyUI_00001_.png'", Cause.MACHINE),
        ("OSError", "[Errno 122] Disk quota exceeded", Cause.MACHINE),
        ("OSError", "[Errno 30] Read-only file system: '/output/x.png'", Cause.MACHINE),
        ("OSError", "[Errno 5] Input/output error", Cause.MACHINE),
        ("OSError", "[Errno 2] No such file or directory: 'x'", Cause.WORKFLOW),
        ("OSError", "[Errno 36] File name too long: 'x'", Cause.WORKFLOW),
        ("PermissionError", "[Errno 13] Permission denied: '/output/ComfyUI_00001_.png'", Cause.MACHINE),
        ("RuntimeError", "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU", "machine"),
        ("AssertionError", "Torch not compiled with CUDA enabled", Cause.MACHINE),
        ("MemoryError", "", Cause.MACHINE),
        (
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
            "machine",
        ),
        ("safetensors_rust.SafetensorError", "Error while deserializing header: HeaderTooSmall", Cause.MACHINE),
        ("ModuleNotFoundError", "No module named 'insightface'", Cause.MACHINE),
        ("ImportError", "libGL.so.1: cannot open shared object file: No such file or directory", Cause.MACHINE),
        ("ImportError", "cannot import name 'cached_download' from 'huggingface_hub' (/x/__init__.py)", "machine"),
        ("RuntimeError", "operator torchvision::nms does not exist", Cause.MACHINE),
        ("ImportError", "this node needs a key", Cause.WORKFLOW),
        ("ValueError", "No module named 'insightface'", Cause.WORKFLOW),
        ("ValueError", "[Errno 28] No space left on device", Cause.WORKFLOW),
        ("OSError", "said: [Errno 28] No space left on device", Cause.WORKFLOW),
        ("RuntimeError", "CUDA error: invalid argument", Cause.WORKFLOW),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (77x2048 and 768x320)", Cause.WORKFLOW),
        ("ValueError", "CUDA error: an illegal memory access was encountered", Cause.WORKFLOW),
        ("RuntimeError", "bad prompt: 'CUDA error: an illegal memory access was encountered'", Cause.WORKFLOW),
        ("ValueError", "out of memory", Cause.WORKFLOW),
        ("av.error.FileNotFoundError", "[Errno 2] No such file or directory: '/input/pic.png'", Cause.FILE),
        ("FileNotFoundError", "[Errno 2] No such file or directory: '/input/pic.png'", Cause.FILE),
        ("ValueError", "FileNotFoundError: pic.png", Cause.WORKFLOW),
        ("None", "None", Cause.WORKFLOW),
    ],
)
def test_the_table(type_: str, message: str, cause: Cause) -> None:
    assert cause_of(type_, message) is Cause(cause)


def test_of_a_history_entry() -> None:
    error = {"exception_type": "torch.OutOfMemoryError", "exception_message": "Allocation on device", "node_id": "3"}
    status = {"status_str": "error", "messages": [["execution_start", {}], ["execution_error", error]]}
    failure = failure_of_entry({"status": status})
    assert (failure.cause, failure.node_id) == (Cause.MEMORY, "3")
    assert failure.error == "torch.OutOfMemoryError: Allocation on device"
    for odd in ({}, {"status": None}, {"status": {"messages": [None, ["execution_error", None], "x"]}}):
        assert failure_of_entry(odd).cause is Cause.WORKFLOW
