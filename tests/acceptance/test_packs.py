"""Packs that wait for the operator's trust, as `check`, the log and the admin API tell of them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.cli.check import Row, _print_trust
from gateway.settings import Settings
from tests.support.commands import command
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.tenancy import BOSS, caller, serve, write_config

LINE = 'tenants: {default: {nodes: {trust: ["gwtest"]}}}'
UNTRUSTED = {"default": {"nodes": {"trust": []}}}


def told(gateway: GatewayProcess) -> list[dict[str, Any]]:
    """Return what the log says of untrusted packs."""
    return [line for line in gateway.log_lines() if line.get("event") == "packs_untrusted"]


async def test_the_operator_is_told_which_packs_wait_for_trust(lab: Lab) -> None:
    """When a shared backend brings a class that is not trusted. Dedicated backends have any."""
    never = ("--without", "BulkNode", "--without", "SaveImageWebsocket")
    without = [option for name in ("PickNode", "FailNode", "TellNode") for option in ("--without", name)]
    simulators = [await lab.simulator(*never, *without), await lab.simulator(*never)]
    config = write_config(lab, simulators, UNTRUSTED, {}, dedicated={"b2": ["anna"]})
    gateway = await serve(lab, config, 2, catalogue__refresh=0.5)
    boss = caller(lab, gateway, BOSS)

    async def knows(classes: int) -> dict[str, Any] | None:
        found: dict[str, Any] = await boss.get("/gateway/packs")
        return found if [pack["classes"] for pack in found["packs"]] == [classes] else None

    found = await until(lambda: knows(1))
    assert found == {
        "packs": [{"pack": "gwtest", "classes": 1, "untrusted_classes": 0, "untrusted": [], "backends": ["b1"]}],
        "trusted": [],
        "to_trust_all": "tenants: {default: {nodes: {trust: []}}}",
        "reviewed_comfyui": "0.33.0",
    }
    assert told(gateway) == []
    await simulators[0].stop()
    simulators[0] = await lab.simulator(*never, port=simulators[0].port)
    found = await until(lambda: knows(4))
    assert found["packs"][0]["untrusted"] == ["FailNode", "PickNode", "TellNode"]
    assert found["to_trust_all"] == LINE

    async def is_told() -> list[dict[str, Any]]:
        return told(gateway)

    (line,) = await until(is_told)
    assert (line["level"], line["packs"], line["classes"]) == ("warning", ["gwtest"], 3)
    assert LINE in line["hint"]
    code, out, error = await command("check", "--config", str(config), cwd=lab.directory)
    assert (code, error) == (0, "")
    assert "gwtest  4        3          b1\n" in out
    assert LINE in out


async def test_nothing_is_told_where_all_is_trusted_or_a_tenant_is_alone(lab: Lab) -> None:
    simulators = [await lab.simulator()]
    config = write_config(lab, simulators, {}, {})
    gateway = await serve(lab, config, 1)
    found = await caller(lab, gateway, BOSS).get("/gateway/packs")
    assert found["packs"][0]["untrusted"] == []
    assert (found["trusted"], found["to_trust_all"]) == (["gwtest"], LINE)
    assert "gwtest" not in (await command("check", "--config", str(config), cwd=lab.directory))[1]
    alone = lab.directory / "alone.yaml"
    alone.write_text(
        f"backends: [{{url: '{simulators[0].url}'}}]\n"
        "auth: {keys: [{name: anna, key: a-key-for-tests}, {name: boss, key: another-for-tests, role: admin}]}\n"
    )
    code, out, _ = await command("check", "--config", str(alone), cwd=lab.directory)
    assert code == 0
    assert "gwtest" not in out


def test_another_version_of_comfyui_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row(name, "", "yes", version, classes={}) for name, version in (("a", "0.33.0"), ("b", "0.34.1"))]
    _print_trust(Settings(), rows)
    assert capsys.readouterr().err == (
        "backend b: ComfyUI 0.34.1; its stock node classes were reviewed for 0.33.0, "
        "and what has changed since was not\n"
    )


async def test_a_dedicated_backend_for_nobody(lab: Lab) -> None:
    """A hint and no more: the tenant's key may be in the store."""
    simulators = await lab.simulators(2)
    config = write_config(lab, simulators, {}, {}, dedicated={"b1": ["anna", "anan"]})
    code, _, error = await command("check", "--config", str(config), cwd=lab.directory)
    assert code == 0
    said = "backends[0].tenants: anan: no key of the configuration stands for this tenant; one of the store may"
    assert error == f"warning: {said}\n"


async def test_check_warns_of_tenants_that_have_no_backend(lab: Lab) -> None:
    """Every backend is dedicated to others. It is a warning, because such a gateway may be meant."""
    simulator = await lab.simulator()
    config = write_config(lab, [simulator], {}, {}, dedicated={"b1": ["anna"]})
    code, _, error = await command("check", "--config", str(config), cwd=lab.directory)
    assert code == 0
    assert error == (
        "warning: tenants.default: every backend that it may use is dedicated to named tenants; all others are refused "
        "(by the configuration's keys: ben, boss, eve); share a backend, or add them to the tenants of one\n"
    )
    config = write_config(lab, [simulator], {}, {}, dedicated={"b1": ["anna", "ben", "boss", "eve"]})
    code, _, error = await command("check", "--config", str(config), cwd=lab.directory)
    assert "(by the configuration's keys: none)" in error
