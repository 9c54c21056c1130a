"""Formats and formulas that a prompt gives to stock nodes, held against what can reach no object's insides. Pure.

StringFormat (comfy_extras/nodes_string.py) is Python's ``str.format``, whose fields reach attributes and items.
ComfyMathExpression (comfy_extras/nodes_math.py) evaluates Python expressions, whose attributes are methods.
"""

from __future__ import annotations

import ast
import re
import string
from typing import Any

_PLAIN_FIELD = re.compile(r"[A-Za-z0-9_]*")
# A width or precision: StringFormat would make a text of that many characters.
_LONG_NUMBER = re.compile(r"\d{5,}")
_MAX_EXPRESSION = 2_000
_MAX_FORMAT = 100_000
_PLAIN_NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.IfExp,
    ast.Call,
    ast.Name,
    ast.Constant,
    ast.Subscript,
    ast.Load,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)


def wrong_with_format(template: Any) -> str | None:
    """Return the reason why a format is refused, None if its fields are plain names."""
    if not isinstance(template, str):
        return None if template is None or isinstance(template, (int, float)) else "a format must be a text"
    if len(template) > _MAX_FORMAT:
        return f"a format may have {_MAX_FORMAT} characters at most"
    try:
        return _wrong_fields(template)
    except ValueError as error:
        return f"the format can't be read: {error}"


def _wrong_fields(template: str) -> str | None:
    for _, field, spec, _ in string.Formatter().parse(template):
        if field is not None and not _PLAIN_FIELD.fullmatch(field):
            return f"the field {{{field[:50]}}} must be a plain name, without '.' and '['"
        if spec and _LONG_NUMBER.search(spec):
            return "a width or precision may have four digits at most"
        # A spec may hold fields of its own: "{a:{b.c}}".
        if spec and (reason := _wrong_spec(spec)) is not None:
            return reason
    return None


def _wrong_spec(spec: str) -> str | None:
    for _, field, inner, _ in string.Formatter().parse(spec):
        if (field is not None and not _PLAIN_FIELD.fullmatch(field)) or (inner and "{" in inner):
            return "a field inside a format spec must be a plain name"
    return None


def wrong_with_expression(formula: Any) -> str | None:
    """Return the reason why a formula is refused, None if it is plain arithmetic with functions."""
    if not isinstance(formula, str):
        return None if formula is None or isinstance(formula, (int, float)) else "a formula must be a text"
    if len(formula) > _MAX_EXPRESSION:
        return f"a formula may have {_MAX_EXPRESSION} characters at most"
    if not formula.strip():
        return None
    try:
        tree = ast.parse(formula.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"the formula can't be read: {error}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            return "a formula must not use '.' but in numbers"
        if not isinstance(node, _PLAIN_NODES):
            return f"a formula must not hold a Python {type(node).__name__}"
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return "a formula must call functions by their plain names"
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            return "a name in a formula must not begin with '_'"
        if isinstance(node, ast.Constant) and not isinstance(node.value, (int, float)):
            return "a formula must hold no texts"
    return None
