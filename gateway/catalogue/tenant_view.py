"""Reduce the catalogue to the node classes and models that a tenant may use. Pure.

The view leaves out backends that the tenant may not use, and node classes and models that its policy refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from gateway.catalogue.capabilities import choice_lists
from gateway.catalogue.object_info import with_list
from gateway.catalogue.worker import no_rest
from gateway.comfy.graph import MODEL_SUFFIXES, texts
from gateway.tenants.policy import Denied, Policy


def seen(
    infos: Mapping[str, Mapping[str, Any]], policy: Policy, rest: Callable[[], None] = no_rest
) -> dict[str, Mapping[str, Any]]:
    """Return each backend's /object_info, reduced by a policy. `rest` is called between classes."""
    return {
        name: _seen(info, policy, rest)
        for name, info in infos.items()
        if policy.view is None or policy.view.may_use(name)
    }


def _seen(info: Mapping[str, Any], policy: Policy, rest: Callable[[], None]) -> Mapping[str, Any]:
    if not policy.nodes and not policy.models:
        return info
    left: dict[str, Any] = {}
    for name, description in info.items():
        rest()
        if not policy.denies_node(name):
            left[name] = without_models(description, policy)
    return left


def without_models(description: Any, policy: Policy) -> Any:
    """Return a node class's description whose lists offer no model that the policy refuses."""
    for input_name, choices in _model_lists(description) if policy.models else ():
        left = [choice for choice in choices if not (isinstance(choice, str) and policy.denies_model(choice))]
        if len(left) < len(choices):
            description = with_list(description, input_name, left)
    return description


def _model_lists(description: Any) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists that offer models: a choice is named like a model, so all choices of its list are models."""
    for input_name, _, choices in choice_lists(description):
        if any(isinstance(choice, str) and _is_model(choice) for choice in choices):
            yield input_name, choices


def _is_model(text: str) -> bool:
    return text.rstrip(" .").lower().endswith(MODEL_SUFFIXES)


def denied(prompt: Mapping[str, Any], policy: Policy, classes: Mapping[str, Any]) -> list[Denied]:
    """Return the node classes and models of a prompt that a policy refuses, also in nodes that would not run.

    `classes` are the known node classes: a choice of theirs may be a model, whatever its name.
    """
    found: list[Denied] = []
    for node_id, node in prompt.items():
        class_type = node.get("class_type")
        if not isinstance(class_type, str):
            continue
        meta = node.get("_meta")
        title = meta.get("title", class_type) if isinstance(meta, dict) else class_type
        if policy.denies_node(class_type):
            found.append(Denied(node_id, class_type, title))
        elif policy.models:
            lists = {name for name, _ in _model_lists(classes.get(class_type))}
            found += [
                Denied(node_id, class_type, title, name, value)
                for name, value in _denied_models(node.get("inputs"), policy, lists)
            ]
    return found


def _denied_models(inputs: Any, policy: Policy, lists: Collection[str]) -> Iterator[tuple[str, str]]:
    for name, value in inputs.items() if isinstance(inputs, dict) else ():
        for _, text in texts(value):
            if (name in lists or _is_model(text)) and policy.denies_model(text):
                yield name, text
            elif (embedding := policy.denies_embedding(text)) is not None:
                yield name, embedding
