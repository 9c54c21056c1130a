"""What a tenant may use: labels, and patterns of node classes and models."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.views import denied, seen
from gateway.settings import BackendSettings, TenantSettings
from gateway.tenants.policy import Policies, Policy, plain_path

BACKENDS = [
    BackendSettings(url="http://a:1", name="a", labels=("big", "eu")),
    BackendSettings(url="http://b:1", name="b", labels=("eu",)),
    BackendSettings(url="http://c:1", name="c"),
]


def policies(default: dict[str, Any] | None = None, **named: dict[str, Any]) -> Policies:
    """Policies as the configuration gives them."""
    return Policies(TenantSettings.model_validate({"default": default or {}, "named": named}), BACKENDS)


def policy(**settings: Any) -> Policy:
    """The policy that all have."""
    return policies(settings).default


@pytest.mark.parametrize(
    ("labels", "allowed"),
    [([], None), (["big"], {"a"}), (["eu"], {"a", "b"}), (["big", "eu"], {"a", "b"}), (["none"], set())],
)
def test_labels(labels: list[str], allowed: set[str] | None) -> None:
    assert policy(labels=labels).allowed == (None if allowed is None else frozenset(allowed))


def test_what_is_named_differs_field_by_field() -> None:
    some = policies(
        {"labels": ["eu"], "deadline": 60, "nodes": {"deny": ["Shell*"]}, "limits": {"sockets": 3, "jobs_waiting": 9}},
        anna={"labels": ["big"], "limits": {"sockets": None}},
        ben={"nodes": {"deny": []}, "deadline": 5},
        eve={},
    )
    anna, ben = some.of("anna"), some.of("ben")
    assert (anna.allowed, anna.deadline, anna.denies_node("Shell")) == (frozenset("a"), 60, True)
    assert (anna.limits.sockets, anna.limits.jobs_waiting) == (None, 9)
    assert (ben.allowed, ben.deadline, ben.denies_node("Shell")) == (frozenset("ab"), 5, False)
    assert some.of("eve").view == some.of("somebody").view == some.default.view
    assert policy().view is None


@pytest.mark.parametrize(
    ("patterns", "name", "refused"),
    [
        (["*/secret*.safetensors"], "models/secret-1.safetensors", True),
        (["*/secret*.safetensors"], "models\\secret-1.safetensors", True),
        (["*\\secret*.safetensors"], "models/secret-1.safetensors", True),
        (["*/secret*.safetensors"], "Models/SECRET.safetensors", True),
        (["*/secret*.safetensors"], "secret.safetensors", False),
        (["secret*"], "deep/down/secret.safetensors", True),
        (["secret*"], "./secret.safetensors", True),
        (["secret*"], "x/../secret.safetensors", True),
        (["secret.safetensors"], "secret.safetensors. ", True),
        (["private/*"], "private\\any.ckpt", True),
        (["private/*"], "private/./any.ckpt", True),
        (["private/*"], "a/../private/any.ckpt", True),
        (["private/*"], "public/any.ckpt", False),
        (["model-[ab].ckpt"], "model-b.ckpt", True),
        (["model-[ab].ckpt"], "model-c.ckpt", False),
        ([], "secret.safetensors", False),
    ],
)
def test_models(patterns: list[str], name: str, refused: bool) -> None:
    assert policy(models={"deny": patterns}).denies_model(name) is refused


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("a cat, embedding:secret", "secret"),
        ("a cat, (EMBEDDING:Secret.pt:1.2)", "Secret.pt:1.2"),
        ("embedding:other, a cat", None),
        ("the secret of embeddings", None),
    ],
)
def test_embeddings_in_texts(text: str, refused: str | None) -> None:
    assert policy(models={"deny": ["secret*"]}).denies_embedding(text) == refused


INFO = {
    "Loader": {"input": {"required": {"name": [["a.safetensors", "secret.safetensors", "no-suffix-secret"]]}}},
    "Sampler": {"input": {"required": {"kind": [["secret", "euler"]]}}},
    "Combo": {"input": {"optional": {"name": ["COMBO", {"options": ["b.ckpt", "secret.ckpt"]}]}}},
    "ShellRun": {"input": {}},
}


def test_what_is_seen() -> None:
    found = seen(
        {"a": INFO, "c": INFO}, policy(labels=["big"], nodes={"deny": ["Shell*"]}, models={"deny": ["*secret*"]})
    )
    assert found.keys() == {"a"}
    info = found["a"]
    assert "ShellRun" not in info
    assert info["Loader"]["input"]["required"]["name"][0] == ["a.safetensors"]
    assert info["Combo"]["input"]["optional"]["name"][1]["options"] == ["b.ckpt"]
    # A list without any model is none of models.
    assert info["Sampler"] == INFO["Sampler"]
    assert INFO["Loader"]["input"]["required"]["name"][0][1] == "secret.safetensors"


@pytest.mark.parametrize(
    ("inputs", "values"),
    [
        ({"name": "secret.safetensors"}, ["secret.safetensors"]),
        ({"name": "no-suffix-secret"}, ["no-suffix-secret"]),
        ({"other": "no-suffix-secret"}, []),
        ({"other": "sub\\Secret.ckpt"}, ["sub\\Secret.ckpt"]),
        ({"x": {"__value__": "secret.pt"}}, ["secret.pt"]),
        ({"x": [["deep", {"y": ["secret.gguf"]}]]}, ["secret.gguf"]),
        ({"text": "a secret, embedding:my-secret"}, ["my-secret"]),
        ({"text": "a secret"}, []),
        ("no object", []),
    ],
)
def test_models_in_a_prompt(inputs: Any, values: list[str]) -> None:
    found = denied({"1": {"class_type": "Loader", "inputs": inputs}}, policy(models={"deny": ["*secret*"]}), INFO)
    assert [each.value for each in found] == values


def test_node_classes_in_a_prompt() -> None:
    prompt = {
        "1": {"class_type": "ShellRun", "inputs": {}, "_meta": {"title": "Mine"}},
        "2": {"class_type": "shellrun"},
        "3": {"inputs": {}},
        "4": {"class_type": "ShellRun", "_meta": []},
    }
    found = denied(prompt, policy(nodes={"deny": ["Shell*"]}), INFO)
    assert [(each.node_id, each.title) for each in found] == [("1", "Mine"), ("4", "ShellRun")]


@given(st.text(), st.text())
def test_a_path_has_one_spelling(first: str, second: str) -> None:
    name = f"{first}/{second}"
    plain = plain_path(name)
    assert "\\" not in plain
    assert plain_path(plain) == plain
    assert plain_path(name.replace("/", "\\")) == plain
