"""Expressions of ComfyMathExpression, with the reach of the simpleeval package that ComfyUI uses.

Names, arithmetic, comparisons, indexes, attributes without a leading underscore, and calls of methods of whatever was
linked in: so an expression reads files of the host.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

MAX_POWER = 4000


class InvalidExpression(Exception):
    """An expression that may not be evaluated."""


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > MAX_POWER:
        raise InvalidExpression(f"Sorry! I don't want to evaluate {base} ** {exponent}")
    return base**exponent


_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sum": lambda *values: sum(values[0] if len(values) == 1 and hasattr(values[0], "__iter__") else values),
    "min": min,
    "max": max,
    "abs": abs,
    "round": round,
    "sqrt": math.sqrt,
    "ceil": math.ceil,
    "floor": math.floor,
    "log": math.log,
    "sin": math.sin,
    "cos": math.cos,
    "int": int,
    "float": float,
}
_REFUSED_METHODS = ("format", "format_map", "mro")


def evaluate(expression: str, names: Mapping[str, Any]) -> Any:
    """Return an expression's value.

    Raises:
        InvalidExpression, SyntaxError: it can't be evaluated. Methods that it calls raise what they like.
    """
    return _evaluate(ast.parse(expression.strip(), mode="eval").body, names)


def _attribute(value: Any, name: str) -> Any:
    if name.startswith(("_", "func_")) or name in _REFUSED_METHODS:
        raise InvalidExpression(f"Sorry, access of '{name}' is not available.")
    return getattr(value, name)


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    def value(inner: ast.expr) -> Any:
        return _evaluate(inner, names)

    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            if node.id not in names:
                raise InvalidExpression(f"'{node.id}' is not defined for expression")
            return names[node.id]
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.operand))
        case ast.Compare(ops=[op], comparators=[other]) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](value(node.left), value(other))
        case ast.Subscript():
            return value(node.value)[value(node.slice)]
        case ast.Attribute():
            return _attribute(value(node.value), node.attr)
        case ast.Call(func=ast.Attribute() as method):
            return value(method)(*(value(argument) for argument in node.args))
        case ast.Call(func=ast.Name(id=name)) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(value(argument) for argument in node.args))
        case _:
            raise InvalidExpression(f"Sorry, {type(node).__name__} is not available in this evaluator")
