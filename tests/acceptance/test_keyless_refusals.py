"""What callers without a key are told speaks of no key of theirs: they have none."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import gateway
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.security_world import ask
from tests.support.tenancy import serve, write_config
from tests.support.workflows import slow, text_to_image

# Modules whose texts are for those who run the gateway, or for somebody who has given a key, or about another key.
ABOUT_KEYS = {
    "cli/check.py",
    "cli/keys.py",
    "cli/main.py",
    "cli/running_gateway.py",
    "cli/sweep.py",
    "conformance/asking.py",
    "tenants/keys.py",
    "tenants/stored_keys.py",
    "tenants/credentials.py",
    "tenants/secret_names.py",
    "telemetry/audit.py",
    "settings/auth.py",
    "settings/tls.py",
    "web/guard/authentication.py",
    "web/routes/openapi_operations.py",
    "web/routes/keys.py",
    "web/routes/openapi.py",
    "web/routes/sign_in.py",
}
OF_A_KEY = re.compile(r"\b(this|your|its|the|that) key\b|\bkey '", re.IGNORECASE)


def texts(tree: ast.AST) -> list[str]:
    """The texts of a module that are no docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return [node.value for node in constants if isinstance(node.value, str)]


def test_no_text_takes_it_for_granted_that_the_caller_has_a_key() -> None:
    top = Path(gateway.__file__).parent
    found = [
        (str(path.relative_to(top)), text)
        for path in top.rglob("*.py")
        if str(path.relative_to(top)) not in ABOUT_KEYS
        for text in texts(ast.parse(path.read_text()))
        if OF_A_KEY.search(text)
    ]
    assert not found, found


async def test_refusals_to_a_caller_without_a_key(lab: Lab) -> None:
    """Each kind that a policy, a limit or a role makes."""
    simulators = await lab.simulators(1)
    limits = {"body_bytes": 4000, "bad_names_per_prompt": 1}
    guests: dict[str, Any] = {"nodes": {"deny": ["FailNode"]}, "models": {"deny": ["*xl*"]}, "limits": limits}
    tenants = {"anonymous": {"networks": ["127.0.0.0/8"], "tenant": "guests"}, "named": {"guests": guests}}
    anyone = Comfy(lab.http, (await serve(lab, write_config(lab, simulators, tenants, {}), 1)).url)
    denied = slow()
    denied["1"]["class_type"] = "FailNode"
    for status, method, path, body in (
        (403, "GET", "/gateway/keys", None),
        (403, "POST", "/free", {}),
        (403, "GET", "/internal/logs", None),
        (400, "POST", "/prompt", {"prompt": denied}),
        (400, "POST", "/prompt", {"prompt": text_to_image(model="sd_xl_base_1.0.safetensors")}),
        (413, "POST", "/prompt", {"prompt": {}, "pad": "x" * 5000}),
    ):
        seen = await ask(anyone, method, path, body)
        assert seen.status == status, (method, path, seen)
        told = json.loads(seen.body)
        assert told["error"]["message"], told
        assert not re.search(r"\b(this|your|the) key\b|anonymous", seen.body.decode()), told
