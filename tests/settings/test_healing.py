"""Settings of restarts: one way to do it, in the configuration file alone, and no error repeats a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.preflight import warnings
from gateway.settings import SettingsError, load
from gateway.settings.healing import RestartSettings


def restart_of(tmp_path: Path, restart: Any, **environment: str) -> RestartSettings | None:
    """Load a configuration whose backend can be restarted."""
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({"backends": [{"url": "http://127.0.0.1:1", "restart": restart}]}))
    return load(path, environment=environment).backends[0].restart


@pytest.mark.parametrize(
    ("restart", "part"),
    [
        ({}, "give either command"),
        ({"command": ["a"], "url": "http://h/x"}, "give either command"),
        ({"command": "systemctl restart hunter2"}, "[systemctl, restart, comfyui@0]"),
        ({"command": [""]}, "begins with a program"),
        ({"command": ["a", "hunter2\0"]}, "NUL"),
        ({"command": ["a"], "method": "PUT"}, "go with url"),
        ({"url": "ftp://hunter2/x"}, "must be http://HOST"),
        ({"url": "http://hunter2..lan/x"}, "must be http://HOST"),
        ({"url": "http://user:hunter2@h/x"}, "belong to headers"),
        ({"url": "http://h/x", "headers": {"A": "hunter2\r\nB: c"}}, "can be sent"),
        ({"url": "http://h/x", "headers": {"A b": "hunter2"}}, "can be sent"),
        ({"url": "http://h/x", "headers": {"A": {"hunter2": 1}}}, "headers"),
        ({"command": ["a"], "max_per_hour": 0}, "max_per_hour"),
    ],
)
def test_wrong_ones_are_refused(tmp_path: Path, restart: Any, part: str) -> None:
    with pytest.raises(SettingsError) as error:
        restart_of(tmp_path, restart)
    assert part in str(error.value)
    assert "backends[0].restart" in str(error.value)
    assert "hunter2" not in str(error.value)


def test_secrets_come_from_the_environment_and_are_not_shown(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer ${TOKEN}"}
    how = restart_of(tmp_path, {"url": "https://h/restart", "headers": headers, "after": "2m"}, TOKEN="hunter2")
    assert how is not None
    assert (how.headers["Authorization"], how.after) == ("Bearer hunter2", 120)
    assert "hunter2" not in repr(how)


@pytest.mark.parametrize("name", ["BACKENDS__0__RESTART__COMMAND", "BACKENDS__RESTART", "RESTART__COMMAND"])
def test_no_variable_sets_a_command(name: str) -> None:
    with pytest.raises(SettingsError, match="no such setting"):
        load(environment={f"COMFYUI_GATEWAY_{name}": "reboot", "COMFYUI_GATEWAY_BACKENDS": "h:1"})


def test_a_program_that_is_not_there_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    backends = [
        {"url": f"http://127.0.0.1:{n}", "restart": {"command": [program, "hunter2"]}}
        for n, program in enumerate(("/bin/sh", "/no/such/program"), start=1)
    ]
    path.write_text(yaml.safe_dump({"backends": backends, "data_dir": str(tmp_path)}))
    found = [each for each in warnings(load(path, environment={})) if ".restart." in each]
    assert len(found) == 1
    assert found[0].startswith("backends[1].restart.command: its program is not there")
