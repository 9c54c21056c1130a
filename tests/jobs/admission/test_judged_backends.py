"""Steering for a tenant and the fleet as it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.catalogue.class_profiles import make_profiles
from gateway.comfy import json_codec
from gateway.comfy.node_review import review
from gateway.jobs.admission.judged_backends import IsolationJudge
from gateway.settings import BackendSettings, TenantSettings
from gateway.tenants.policy import Policies
from gateway.tenants.secret_names import KEY_SIZE, SecretNames

_INFO = {
    name: {"input": {"required": {made: [made.upper()], "filename_prefix": ["STRING", {}]}}, "python_module": "nodes"}
    for name, made in (("CheckpointSave", "model"), ("SaveImage", "images"))
}


def steered(class_type: str, prefix: str, trust: tuple[str, ...]) -> Any:
    """Return what a saver's prefix becomes, None if the prompt may not run."""
    tenants = TenantSettings.model_validate({"default": {"nodes": {"trust": list(trust)}}})
    policies = Policies(tenants, [BackendSettings(url="http://127.0.0.1:1", name="b1")])
    profiles = make_profiles({"b1": _INFO}, review())
    merged_catalogue = SimpleNamespace(
        profiles=profiles, capabilities=SimpleNamespace(backends=frozenset({"b1"})), mark=1
    )
    catalogue: Any = SimpleNamespace(
        merged_catalogue=merged_catalogue, mark=1, fleet=SimpleNamespace(backends={"b1": None})
    )
    judge = IsolationJudge(catalogue, policies, lambda _: True, SecretNames(bytes(KEY_SIZE)))
    inspect = judge.inspector("ben", by_admin=False)
    assert inspect is not None
    prompt = {"1": {"class_type": class_type, "inputs": {"filename_prefix": prefix}}}
    submission: Any = SimpleNamespace(by_admin=False, judgement=inspect(prompt, True), prompt=json_codec.dumps(prompt))
    job: Any = SimpleNamespace(tenant="ben", submission=submission, judgement=None)
    steering = judge.steering(job, "b1")
    return steering.changed.get(("1", "filename_prefix"), prefix) if steering is not None else None


def test_savers_of_models_are_steered_like_others() -> None:
    for class_type in ("CheckpointSave", "SaveImage"):
        assert steered(class_type, "mine", ()).startswith("o/")
    assert steered("CheckpointSave", "checkpoints/mine", ()) is None


@pytest.mark.parametrize("trust", [("CheckpointSave",), ("*",)])
def test_trusted_savers_of_models_write_where_the_prompt_says(trust: tuple[str, ...]) -> None:
    assert steered("CheckpointSave", "checkpoints/mine", trust) == "checkpoints/mine"
    assert steered("SaveImage", "mine", trust).startswith("o/")
