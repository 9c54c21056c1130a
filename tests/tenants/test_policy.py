"""What a tenant may use: labels, and patterns of node classes and models."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue.tenant_view import denied, seen
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


DEDICATED = [
    BackendSettings(url="http://a:1", name="a", labels=("eu",)),
    BackendSettings(url="http://b:1", name="b", labels=("eu",), tenants=("anna",)),
    BackendSettings(url="http://c:1", name="c", tenants=("anna", "ben")),
]


def test_a_dedicated_backend_is_its_tenants_alone() -> None:
    some = Policies(TenantSettings.model_validate({"default": {"deadline": 7}, "named": {"eve": {}}}), DEDICATED)
    found = {tenant: (some.of(tenant).allowed, some.of(tenant).dedicated) for tenant in ("anna", "ben", "eve", "kim")}
    assert found == {
        "anna": (None, frozenset("bc")),
        "ben": (frozenset("ac"), frozenset("c")),
        "eve": (frozenset("a"), frozenset()),
        "kim": (frozenset("a"), frozenset()),
    }
    # A tenant that only a backend names has the default's settings.
    assert [some.of(tenant).deadline for tenant in ("anna", "ben", "kim")] == [7, 7, 7]
    assert len({id(each) for each in some.all}) == 4


def test_labels_and_dedicated_backends_together() -> None:
    settings = TenantSettings.model_validate({"named": {"anna": {"labels": ["eu"]}, "ben": {"labels": ["eu"]}}})
    some = Policies(settings, DEDICATED)
    assert (some.of("anna").allowed, some.of("anna").dedicated) == (frozenset("ab"), frozenset("b"))
    assert (some.of("ben").allowed, some.of("ben").dedicated) == (frozenset("a"), frozenset())


def test_only_dedicated_backends() -> None:
    some = Policies(TenantSettings(), DEDICATED[1:])
    assert some.of("anna").view is None
    assert some.of("ben").allowed == frozenset("c")
    assert some.default.allowed == frozenset()


def test_a_fleet_without_dedicated_backends_is_seen_as_before() -> None:
    some = policies({"nodes": {"trust": ["*"]}}, anna={}, ben={"labels": ["eu"]})
    assert (some.default.view, some.of("anna").view, some.of("anna").dedicated) == (None, None, frozenset())
    assert some.of("ben").allowed == frozenset("ab")


@pytest.mark.parametrize(
    ("trust", "class_type", "pack", "trusted"),
    [
        ([], "Any", "any", False),
        (["*"], "SaveImage", "nodes", True),
        (["ComfyUI-Impact-Pack"], "FaceDetailer", "ComfyUI-Impact-Pack", True),
        (["ComfyUI-Impact-Pack"], "FaceDetailer", "comfyui-impact-pack", False),
        (["ComfyUI-Impact-Pack"], "FaceDetailer", "ComfyUI-Impact-Pack-2", False),
        (["KSampler *"], "KSampler (Efficient)", "efficiency", True),
        (["KSampler *"], "KSampler", "nodes", False),
        (["a", "pack-[bc]"], "Any", "pack-c", True),
    ],
)
def test_trust(trust: list[str], class_type: str, pack: str, trusted: bool) -> None:
    assert policy(nodes={"trust": trust}).trusts(class_type, pack) is trusted


def test_a_named_tenants_trust_stands_in_the_defaults_stead() -> None:
    some = policies({"nodes": {"trust": ["a"], "deny": ["Shell"]}}, anna={"nodes": {"trust": ["b"]}}, ben={})
    anna, ben = some.of("anna"), some.of("ben")
    assert (anna.trusts("X", "a"), anna.trusts("X", "b"), anna.denies_node("Shell")) == (False, True, True)
    assert (ben.trusts("X", "a"), ben.trusts("X", "b")) == (True, False)


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
