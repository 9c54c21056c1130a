"""Rules of the code's structure, and agreement of the documents with the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from click import Command
from click.testing import CliRunner

from gateway.cli.main import main
from gateway.jobs.state.transitions import TRANSITIONS
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from gateway.web.app import COMFYUI, JOBS, OWN

ROOT = Path(__file__).parent.parent
LEVELS = {"debug", "info", "warning", "error"}
# What else the field client_address might be called.
OTHER_NAMES = {"remote", "address", "client", "peer", "ip", "host", "from_"}


def docs() -> str:
    """All documents."""
    return "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def test_imports_go_down_only() -> None:
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_file_is_too_long() -> None:
    """Its imports aside: they take more lines the longer the names of the packages are."""
    for path in (ROOT / "gateway").rglob("*.py"):
        text = path.read_text()
        imports = [node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        lines = len(text.splitlines()) - sum((node.end_lineno or 0) - node.lineno + 1 for node in imports)
        assert lines <= 450, (path, lines)


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()

    def look(model: Any, within: str) -> None:
        for key, field in model.model_fields.items():
            name = f"{within}{key}"
            if f"`{name}`" not in text:
                assert hasattr(field.annotation, "model_fields"), name
                look(field.annotation, f"{name}.")

    look(Settings, "")


def test_the_table_of_metrics_is_the_registry() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^\| (`(?:comfyui_gateway|process)_[^|]+) \|([^|]*)\|", text, re.MULTILINE)
    documented = {name: labels.strip() for names, labels in rows for name in re.findall(r"`(\w+)`", names)}
    registry = Metrics(by_model=True).registry
    suffixes = {"counter": "_total", "info": "_info"}
    there = {family.name + suffixes.get(family.type, ""): "" for family in registry.collect()}
    for each in set(registry._names_to_collectors.values()):
        labels = getattr(each, "_labelnames", None) or getattr(each, "_labels", ())
        there |= {family.name + suffixes.get(family.type, ""): ", ".join(labels) for family in each.collect()}
    there["comfyui_gateway_build_info"] = "version, python, aiohttp"
    assert documented == there


def test_every_command_and_option_is_documented() -> None:
    text = docs()
    for name, command in main.commands.items():
        assert f"comfyui-gateway {name}" in text, name
        for option in command.params:
            for spelling in option.opts:
                assert spelling in text, (name, spelling)


def test_every_route_is_documented() -> None:
    text = docs()
    for _, path, _ in COMFYUI + JOBS + OWN:
        shown = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path)
        assert shown in text, shown


def test_the_drawing_of_a_jobs_life_is_the_table() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    drawn = set(re.findall(r"^    (\w+) --> (\w+): (\w+)$", text, re.MULTILINE))
    assert drawn == {(str(source), str(target), str(move)) for (source, move), target in TRANSITIONS.items()}


def log_calls(path: Path) -> Iterator[tuple[int, list[ast.keyword]]]:
    """The line and the named fields of each call that logs in a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            yield node.lineno, node.keywords


def test_log_lines_name_clients_and_jobs_in_one_way() -> None:
    """A client's address has one name, and where a job is at hand its line has both ids."""
    found = []
    for path in (ROOT / "gateway").rglob("*.py"):
        for line, fields in log_calls(path):
            names = {field.arg for field in fields} & OTHER_NAMES
            found += [(str(path), line, names)] if names else []
            if any(field.arg == "prompt_id" and ast.unparse(field.value) == "job.prompt_id" for field in fields):
                found.append((str(path), line, {"use **job.log_ids"}))
    assert not found, found


def test_help_works() -> None:
    for name, command in main.commands.items():
        assert isinstance(command, Command)
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0, result.output


def test_files_that_documents_name_exist() -> None:
    """Paths of the package, with or without ``gateway/``, and of the tests."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        for named in re.findall(r"`((?:[a-z_0-9]+/)+(?:[a-z_0-9]+\.(?:py|json))?)`", path.read_text()):
            if named.startswith(("gateway/", "tests/", "config/", "packaging/", "examples/", "benchmarks/")):
                assert (ROOT / named).exists() or is_to_come(named), (path, named)
            elif named.endswith(".py") and (ROOT / "gateway" / named.partition("/")[0]).is_dir():
                assert (ROOT / "gateway" / named).exists(), (path, named)


def is_to_come(named: str) -> bool:
    """Return True if the layers have a place for a package that does not exist yet."""
    return f"({named.strip('/').replace('/', '.')})" in (ROOT / "pyproject.toml").read_text()


def test_args_that_docstrings_explain_exist() -> None:
    """Those of functions, and of a class's constructor or fields."""
    wrong = []
    for path in (ROOT / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                unknown = explained(ast.get_docstring(node) or "") - parameters(node)
                wrong += [(path.name, node.name, unknown)] if unknown else []
    assert not wrong


def explained(docstring: str) -> set[str]:
    """Return the names under ``Args:``."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    lines = re.findall(r"^    ((?:\*{0,2}\w+(?:, )?)+):", section[1], re.MULTILINE) if section else []
    return {name for line in lines for name in re.findall(r"\w+", line)}


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    """Return the names of a function's parameters, or of a class's fields and its constructor's parameters."""
    if isinstance(node, ast.ClassDef):
        found = {
            each.target.id
            for each in node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        }
        made = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        return found.union(*(parameters(each) for each in made))
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return {each.arg for each in every if each is not None}
