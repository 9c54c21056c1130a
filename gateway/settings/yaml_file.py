"""Read a YAML file strictly: no key twice in a mapping, and errors in words of the file, not of its parser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_BARE_VARIABLE = re.compile(r"\$\{")
MERGE = "tag:yaml.org,2002:merge"
MAX_NESTING = 50
# A list of ten thousand keys has forty thousand.
MAX_NODES = 1_000_000
# Patterns of the parser's errors, and the advice for each. The first pattern that matches counts.
_ADVICE = (
    (r"character '\\t'", "a tab; indent with spaces"),
    (
        r"mapping values are not allowed",
        "a second ':' in one line, or a wrong indentation; quote a text with ': '",
    ),
    (r"could not find expected ':'", "a line without ':' after its name, or a quote that is not closed"),
    (r"quoted scalar", "a quote that is not closed"),
    (r"flow node|stream end", "a bracket or a quote that is not closed"),
    (r"flow sequence", "a list in [ ] that is not closed, or lacks a comma"),
    (r"flow mapping", "a mapping in { } that is not closed, or lacks a comma"),
    (r"block (mapping|collection|end)", "an indentation that does not fit the lines above"),
    (r"cannot start any token|alias|anchor|directive", "a text that begins with a special character; put it in quotes"),
    (r"single document", "a second document ('---'); keep one"),
    (r"constructor for the tag|tag", "a '!tag', which settings don't have; quote the text"),
    (r"unhashable|hashable", "a list or a mapping where a name belongs; put a text with { } in quotes"),
)


NO_TEXT = "holds a NUL character or half of a character (\\0 or \\ud800 in quotes), which no setting takes; remove it"


def is_text(text: str) -> bool:
    """Return True if a text can be written as UTF-8 and passed to the system."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


class YamlProblems(Exception):
    """The file can't be used. `problems` holds a sentence for each reason."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file; None if it is empty.

    Raises:
        YamlProblems: the file can't be read, is not YAML, or holds a key twice in one mapping.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise YamlProblems([f"{path}: can't be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise YamlProblems([f"{path}: is not UTF-8 text; save it as UTF-8"]) from error
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        review = _Review()
        try:
            review.walk(node)
        except YamlProblems as error:
            raise YamlProblems([f"{path}: {problem}" for problem in error.problems]) from error
        if not review.problems:
            return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise YamlProblems([f"{path}: {_reason(error, text)}"]) from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's constructors of tagged values fail in any of these ways, such as those of !!bool and !!timestamp.
        raise YamlProblems(
            [f"{path}: is not YAML: it holds an impossible date or number, such as 2026-13-01, or a wrong '!!tag'"]
        ) from error
    except RecursionError as error:
        raise YamlProblems([f"{path}: is nested deeper than settings are"]) from error
    raise YamlProblems([f"{path}: {problem}" for problem in review.problems])


class _Review:
    """A walk through a document that finds keys given twice, because YAML readers silently keep the last one alone."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._nodes = 0

    def walk(self, node: yaml.Node, path: str = "", within: tuple[int, ...] = ()) -> None:
        """Check a node and all nodes below it.

        Raises:
            YamlProblems: the node is endless (it holds an alias of itself), too deep, or too large by aliases.
        """
        self._nodes += 1
        if id(node) in within or len(within) > MAX_NESTING or self._nodes > MAX_NODES:
            raise YamlProblems([f"{path}: this is endless or nested too deep; write it without * and &"])
        within = (*within, id(node))
        if isinstance(node, yaml.ScalarNode) and not is_text(node.value):
            self.problems.append(f"{path}: {NO_TEXT}")
        elif isinstance(node, yaml.SequenceNode):
            for place, item in enumerate(node.value):
                self.walk(item, f"{path}[{place}]", within)
        elif isinstance(node, yaml.MappingNode):
            self._walk_mapping(node, path, within)

    def _walk_mapping(self, node: yaml.MappingNode, path: str, within: tuple[int, ...]) -> None:
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = f"{path}.{key.value}" if path else str(key.value), key.start_mark.line + 1
            if not is_text(key.value):
                self.problems.append(f"line {line}: a setting's name {NO_TEXT}")
                continue
            if key.value in lines and key.tag != MERGE:
                first = lines[key.value]
                where = f"lines {first} and {line}" if first != line else f"line {line}"
                self.problems.append(f"{name} is given twice, in {where}; keep one, and put all entries under it")
            lines.setdefault(key.value, line)
            self.walk(value, name, within)


def _reason(error: yaml.YAMLError, text: str) -> str:
    """Return the place and the reason of a parser's error. The text does not repeat the line, as it may hold a key."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return "is not YAML: it holds a character that YAML does not allow; save it as plain UTF-8 text"
    said = f"{getattr(error, 'context', '') or ''} {getattr(error, 'problem', '') or ''}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    place = f"line {mark.line + 1}, column {mark.column + 1}"
    if "flow" in said and _BARE_VARIABLE.search(line[: mark.column + 1]):
        return f'{place}: is not YAML: a ${{NAME}} within {{ }} or [ ] needs quotes, such as {{key: "${{APP_KEY}}"}}'
    for pattern, advice in _ADVICE:
        if re.search(pattern, said):
            return f"{place}: is not YAML: {advice}"
    return f"{place}: is not YAML; look for a missing quote, bracket or space after ':'"
