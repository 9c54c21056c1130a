"""Formats and formulas: what reaches an object's insides is refused, what people write passes."""

from __future__ import annotations

import pytest

from gateway.comfy.template_checks import wrong_with_expression, wrong_with_format


@pytest.mark.parametrize(
    "template",
    ["", "no fields", "{a}", "{a} and {b}", "{{literal}}", "{a!r:>10}", "{a:0.3f}", "{a:{b}}", "{0}", "{}", 5, None],
)
def test_plain_formats_pass(template: object) -> None:
    assert wrong_with_format(template) is None


@pytest.mark.parametrize(
    "template",
    [
        "{a.save_to}",
        "{a[0]}",
        "{a.b.__globals__[os]}",
        "{0.__class__}",
        "{a!r:{b.c}}",
        "{a:{b[0]}}",
        "{a:{b:{c.d}}}",
        "{a:>{b.__class__}}",
        "{a b}",
        "{a:99999999}",
        "{a:.99999999f}",
        "{",
        "}",
        "{a" * 3,
        ["{a}"],
        {"a": "{a}"},
        "{ａ.b}",
        "{a\u2024b}",
    ],
)
def test_formats_that_reach_further_are_refused(template: object) -> None:
    assert wrong_with_format(template) is not None


@pytest.mark.parametrize(
    "formula",
    [
        "a + b",
        "0.5 * a",
        "max(a, b) // 2",
        "a if a > b else -b",
        "sum(values)",
        "values[0] ** 2",
        "(a)",
        " a ",
        "",
        "1e3",
        5,
    ],
)
def test_plain_formulas_pass(formula: object) -> None:
    assert wrong_with_expression(formula) is None


@pytest.mark.parametrize(
    "formula",
    [
        "a.tolist()",
        "a.untyped_storage().from_file('/etc/passwd', False, 20).tolist()",
        "a . b",
        "(a).b",
        "values[0].save_to('/x')",
        "[x.y for x in values]",
        "[a for a in values]",
        "(lambda: a)()",
        "f'{a.b}'",
        "'text'",
        "b'bytes'",
        "__import__(a)",
        "_a",
        "max(a, b)(c)",
        "values[0](c)",
        "a := b",
        "a\nb",
        "a;b",
        "{a: b}",
        "(" * 500 + "a" + ")" * 500,
        "a+" * 2000 + "a",
        ["a"],
        {"a": 1},
    ],
)
def test_formulas_that_reach_further_are_refused(formula: object) -> None:
    assert wrong_with_expression(formula) is not None
