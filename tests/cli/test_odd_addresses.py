"""Addresses that no look-up takes, given to commands: a sentence, no traceback."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from gateway.cli.main import main


@pytest.mark.parametrize("host", ["gpu..lan", f"{64 * 'a'}.lan", "gpu\\lan", "gpu:99999"])
@pytest.mark.parametrize("command", [["check", "--conformance"], ["keys", "list", "--url"]])
def test_an_impossible_host_is_refused(command: list[str], host: str) -> None:
    result = CliRunner().invoke(main, [*command, f"http://{host}"], env={"COMFYUI_KEY": "a-key-of-some-length"})
    assert result.exit_code == 2
    assert "must be http://HOST:PORT" in result.output
