"""Attribution of failed jobs, over all ways in which a job ends."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import gateway.jobs
from gateway.comfy.history import entry_without_run, failure_event
from gateway.jobs.lifecycle.faults import OWN_ERRORS, Fault, fault_of

SOURCE = Path(gateway.jobs.__file__).parent


def _of_node(type_: str, message: str = "") -> dict[str, Any]:
    data = {"node_id": "5", "node_type": "KSampler", "exception_type": type_, "exception_message": message}
    return {"status_str": "error", "messages": [["execution_start", {}], ["execution_error", data]]}


@pytest.mark.parametrize(
    ("type_", "message", "fault"),
    [
        ("ValueError", "shapes do not fit", Fault.CALLER),
        ("RuntimeError", "a node says CUDA error: device-side assert triggered", Fault.CALLER),
        ("FileNotFoundError", "no such file", Fault.CALLER),
        # A node may raise what bears the name of an error of the gateway's.
        ("GatewayError", "x", Fault.CALLER),
        ("torch.OutOfMemoryError", "Allocation on device", Fault.BACKEND),
        ("RuntimeError", "CUDA error: device-side assert triggered", Fault.BACKEND),
        ("OSError", "[Errno 28] No space left on device", Fault.BACKEND),
        ("safetensors_rust.SafetensorError", "Error while deserializing header: x", Fault.BACKEND),
    ],
)
def test_errors_of_nodes(type_: str, message: str, fault: Fault) -> None:
    assert fault_of(_of_node(type_, message)) is fault


def test_what_else_is_known_of_the_run() -> None:
    assert fault_of(_of_node("ValueError"), is_poisoned=True) is Fault.BACKEND
    assert fault_of(_of_node("FileNotFoundError"), lost_file=True) is Fault.BACKEND
    assert fault_of(_of_node("ValueError"), lost_file=True) is Fault.CALLER


@pytest.mark.parametrize("status", [None, [], {}, {"status_str": "error", "messages": "x"}, {"messages": [["x", {}]]}])
def test_an_error_without_a_reason_is_the_backends(status: Any) -> None:
    assert fault_of(status) is Fault.BACKEND


@pytest.mark.parametrize("type_", [*OWN_ERRORS, "NobodyKnows"])
def test_errors_of_the_gateways_own(type_: str) -> None:
    event = failure_event("p", "a reason", type_)
    status = entry_without_run([], "execution_error", event)["status"]
    assert fault_of(status) is OWN_ERRORS.get(type_, Fault.GATEWAY)
    assert fault_of(status, is_poisoned=True) is OWN_ERRORS.get(type_, Fault.GATEWAY)


def _ends() -> set[str]:
    """The types with which the code fails jobs: the last text of a call, of a pair, or the default of a parameter."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            values: list[ast.expr] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in ("fail", "_fail", "_fail_unread", "failure_event"):
                    values = node.args[-1:]
            elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
                # A reason and a type, not a class and the name of an input.
                is_name = isinstance(node.elts[0], ast.Constant) and str(node.elts[0].value).isalpha()
                values = [] if is_name else node.elts[-1:]
            elif isinstance(node, ast.arguments):
                values = node.defaults
            texts = [value.value for value in values if isinstance(value, ast.Constant)]
            found |= {text for text in texts if isinstance(text, str) and text.isalpha() and text[:1].isupper()}
    return {text for text in found if not text.isupper()}


def test_each_end_that_the_code_knows_has_a_fault() -> None:
    # The entry of a job that has ended was damaged later.
    assert _ends() - {"HistoryEntryDamaged"} == set(OWN_ERRORS)
