"""Packs that wait for the operator's trust: which, what is shown of them, and the line that trusts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue.packs import (
    MAX_LOGGED_HINT,
    MAX_LOGGED_NAME,
    MAX_LOGGED_PACKS,
    MAX_NAMED_CLASSES,
    MAX_PACKS,
    MAX_PATTERN,
    Pack,
    line_to_paste,
    log_fields,
    packs_of,
    untrusted,
)
from gateway.comfy.node_review import review
from gateway.settings import TenantSettings, load
from gateway.tenants.policy import Policies


def described(pack: str, type_: str = "STRING") -> dict[str, Any]:
    """Return the description of a class with one input."""
    return {"input": {"required": {"x": [type_, {}]}}, "output": ["IMAGE"], "python_module": pack}


def trusting(*patterns: str) -> Policies:
    """Return policies that trust these patterns."""
    return Policies(TenantSettings.model_validate({"default": {"nodes": {"trust": patterns}}}), [])


INFOS = {
    "a": {
        "SaveImage": {"input": {"required": {"filename_prefix": ["STRING", {}]}}, "python_module": "nodes"},
        "Shell": described("custom_nodes.shell-pack"),
        "Blur": described("custom_nodes.shell-pack", "INT"),
        "Harmless": described("custom_nodes.quiet", "FLOAT"),
    },
    "b": {
        "Shell": described("custom_nodes.shell-pack"),
        "BrandNew": described("comfy_extras.nodes_new"),
        "AddMask": described("comfy_extras.nodes_new", "MASK"),
    },
}


def test_packs() -> None:
    found = [pack.describe() for pack in packs_of(INFOS, trusting().default.trusts, review())]
    assert found == [
        {
            "pack": "comfy_extras.nodes_new",
            "classes": 2,
            "untrusted_classes": 1,
            "untrusted": ["BrandNew"],
            "backends": ["b"],
        },
        {
            "pack": "shell-pack",
            "classes": 2,
            "untrusted_classes": 1,
            "untrusted": ["Shell"],
            "backends": ["a", "b"],
        },
        {"pack": "quiet", "classes": 1, "untrusted_classes": 0, "untrusted": [], "backends": ["a"]},
    ]


@pytest.mark.parametrize(
    ("trust", "left"),
    [
        (["shell-pack"], ["comfy_extras.nodes_new"]),
        (["Sh*", "BrandNew"], []),
        (["*"], []),
        (["Blur"], ["comfy_extras.nodes_new", "shell-pack"]),
    ],
)
def test_what_is_trusted_is_not_listed(trust: list[str], left: list[str]) -> None:
    found = packs_of(INFOS, trusting(*trust).default.trusts, review())
    assert [pack.name for pack in untrusted(found)] == left


@pytest.mark.parametrize("description", [None, [], "x", {"input": "x"}, {"input": {"required": [1]}}, {"output": 5}])
def test_what_cant_be_read_needs_trust(description: Any) -> None:
    found = packs_of({"a": {"Odd": description}}, trusting().default.trusts, review())
    assert [pack.untrusted for pack in untrusted(found)] == [{"Odd"}]


def test_a_backend_cant_make_the_list_grow_without_a_bound() -> None:
    classes = {f"Class{n}": described(f"custom_nodes.pack{n}") for n in range(MAX_PACKS + 5)}
    assert len(packs_of({"a": classes}, trusting().default.trusts, review())) == MAX_PACKS
    one = {f"Class{n:03}": described("custom_nodes.pack") for n in range(MAX_NAMED_CLASSES + 5)}
    (pack,) = packs_of({"a": one}, trusting().default.trusts, review())
    assert pack.describe()["untrusted_classes"] == MAX_NAMED_CLASSES + 5
    assert len(pack.describe()["untrusted"]) == MAX_NAMED_CLASSES


def test_the_line_keeps_what_is_trusted() -> None:
    found = untrusted(packs_of(INFOS, trusting("shell-pack").default.trusts, review()))
    assert line_to_paste(found, ["shell-pack", "Old*"]) == (
        'tenants: {default: {nodes: {trust: ["shell-pack", "Old*", "comfy_extras.nodes_new"]}}}'
    )


def test_a_log_line_has_a_bound() -> None:
    """However many packs a backend has, and however long their names are."""
    found = [Pack(f"{n}" + "x" * 1_000, is_stock=False, untrusted={"A"}) for n in range(MAX_PACKS)]
    fields = log_fields(found, ["*"] * 1_000)
    assert (fields["packs_count"], fields["classes"]) == (MAX_PACKS, MAX_PACKS)
    assert len(fields["packs"]) == MAX_LOGGED_PACKS
    assert {len(name) for name in fields["packs"]} == {MAX_LOGGED_NAME}
    assert len(fields["hint"]) <= MAX_LOGGED_HINT
    assert fields["hint"].endswith("GET /gateway/packs shows the setting that trusts all of them")
    few = log_fields([Pack("impact", is_stock=False, untrusted={"A", "B"})], ["old"])
    assert few == {
        "packs": ["impact"],
        "packs_count": 1,
        "classes": 2,
        "hint": "isolated tenants get 400 for these classes; "
        'to trust all of them: tenants: {default: {nodes: {trust: ["old", "impact"]}}}',
    }


@given(st.lists(st.text(min_size=1, max_size=300), max_size=4))
def test_the_line_loads_and_trusts_just_these_packs(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """Whatever a pack is called: quotes, variables, patterns. A name that can't be shown is left out."""
    path: Path = tmp_path_factory.getbasetemp() / "trust.yaml"
    path.write_text(line_to_paste([Pack(name, is_stock=False) for name in names], []), encoding="utf-8")
    policy = Policies(load(path, environment={}).tenants, []).default
    for name in names:
        is_short = len(name) * 3 <= MAX_PATTERN
        assert not (name.isprintable() and is_short) or policy.trusts("", name)
        assert name + "x" in names or not policy.trusts("", name + "x")
    assert len(yaml.safe_load(json.dumps(names))) == len(names)
