"""Alerts and searches go by the names of log events: each is a name, is listed, and means one thing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
# A line for each phase of a job, each request, and each act of an admin's: these have the thing's own name.
RECORDS = {"job", "http", "audit"}
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")


def logged(path: Path) -> Iterator[ast.Call]:
    """Yield the calls of a file that log: a level of a logger, or a function that is one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, level = called.rpartition(".")
        if (owner.rpartition(".")[2] == "_log" and level in LEVELS) or called == "log" or "_log.warning if" in called:
            yield node


def names() -> dict[str, str]:
    """Return where each event is logged, by its name."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        for call in logged(path):
            name, at = call.args[0], f"{path.relative_to(ROOT)}:{call.lineno}"
            assert isinstance(name, ast.Constant), f"{at}: no literal name"
            found[str(name.value)] = at
    return found


def test_each_event_has_a_name_and_is_in_the_list() -> None:
    found = names()
    assert len(found) > 60
    odd = {name: at for name, at in found.items() if name not in RECORDS and not NAME.fullmatch(name)}
    assert not odd
    table = (ROOT / "docs" / "logs.md").read_text().partition("\n## Events\n")[2]
    listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE)
    told = [name for names_ in listed for name in re.findall(r"\w+", names_)]
    assert sorted(told) == sorted(found), set(told) ^ set(found)
