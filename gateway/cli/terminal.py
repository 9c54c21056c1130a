"""Terminal of the commands: exit codes, error messages, tables, and the configuration that a command runs with."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from gateway.settings import ENVIRONMENT_PREFIX, Settings, SettingsError, load
from gateway.store import salvage
from gateway.webhooks.prompt_checks import endpoint_problems

LOG_FORMATS = click.Choice(["json", "console"])
EXIT_UNUSABLE = 1
EXIT_USAGE = 2
OPEN = """refusing to listen on {host} without a key: everybody who can reach it could run workflows and see
all images. Give a key (--api-key KEY, or auth.keys in the file), or say --no-auth if that is meant."""
NO_BACKENDS = "no backend is given: add --backend http://HOST:8188 for each ComfyUI, or backends in the file"


def load_or_exit(config: Path | None, flags: dict[str, Any] | None = None) -> Settings:
    """Return the settings; if something is wrong with them, print each problem and end with exit code 2."""
    path = config or (Path(named) if (named := os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")) else None)
    try:
        settings = load(path, flags=flags)
    except SettingsError as error:
        exit_with("\n".join(error.problems), EXIT_USAGE)
    if problems := endpoint_problems(settings.webhooks):
        exit_with("\n".join(problems), EXIT_USAGE)
    if settings.open_to_strangers and not salvage.had_keys(settings.data_dir):
        exit_with(OPEN.format(host=settings.server.host), EXIT_USAGE)
    if not settings.backends:
        exit_with(NO_BACKENDS, EXIT_USAGE)
    return settings


def complain(message: str) -> None:
    """Print a message to standard error."""
    click.echo(f"comfyui-gateway: {message}", err=True)


def exit_with(message: str, code: int = EXIT_UNUSABLE) -> NoReturn:
    """Print a message to standard error and end the process."""
    complain(message)
    sys.exit(code)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of equally many cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
