"""Words: one term for one concept (docs/glossary.md), and none of the private ones that the code once had."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# By a pattern of whole words, the term to use instead.
BANNED = {
    r"house": "package, or code",
    r"rooms|this room|room above|room below": "package",
    r"sight": "visibility",
    r"standing": "record",
    r"telling": "client events",
    r"(?<!third )editions?": "merged catalogue",
    r"takeover|tak(?:e|es|ing) over(?= jobs| work| the job| a job)": "work stealing, steal",
    # Packs have routes and classes of such names.
    r"(?<!image_)(?<!Preview )(?<!Simple )(?<!libs/)chooser": "selection",
    r"carriers?": "credentials",
    r"abilit(?:y|ies)": "capabilities",
    r"collector": "completion",
    r"forgetting": "history deletion",
    r"serving\.py": "server.py",
    r"(?<!_)_?MOST(?:_[A-Z_]+)?|(?<!_)(?!COMFYUI_)[A-Z_]+_MOST": "MAX_…",
}
# A browser's own word for the window in which a file is chosen.
EXEMPT = {"tests/test_words.py", "tests/browser/ui.py"}
# Such an opening is a clause in a verb's or a noun's place.
CLAUSE = re.compile(r"\W*(?:What|Which|Whose|Who|How|Where|When|Whether|Those|It)\b")


def texts() -> list[tuple[str, str]]:
    """All text files of the project that people read, with their paths."""
    named = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    kept = [name for name in named if name.endswith((".py", ".md", ".yaml", ".toml", ".html")) and name not in EXEMPT]
    return [(name, (ROOT / name).read_text()) for name in kept if (ROOT / name).exists()]


@pytest.mark.parametrize("pattern", BANNED)
def test_no_banned_word(pattern: str) -> None:
    word = re.compile(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", 0 if "MOST" in pattern else re.IGNORECASE)
    found = [f"{name}: {match[0]}" for name, text in texts() for match in word.finditer(text)]
    assert not found, f"use instead: {BANNED[pattern]}: {found[:20]}"


def test_each_term_of_the_glossary_is_there_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    terms = [term for row in rows if row != "term" for term in row.split(", ")]
    assert len(terms) > 60
    assert len(terms) == len(set(terms))


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    found = []
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(node) or ""
                if CLAUSE.match(docstring):
                    found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}: {docstring.splitlines()[0]}")
    assert not found, "\n".join(found)
