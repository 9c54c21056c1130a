"""The commands ``journal check`` and ``journal recover``, for a journal that is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gateway.cli.terminal import EXIT_USAGE, exit_with
from gateway.jobs.state.records import fault_of_job
from gateway.settings import SettingsError, load
from gateway.store import salvage
from gateway.store.protocol import StoreError


@click.group()
def journal() -> None:
    """Check a journal, or save the readable entries of a damaged one."""


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--data-dir", type=click.Path(path_type=Path), default=None, help="The journal's place.")(
        command
    )
    return click.option("--config", type=click.Path(path_type=Path), default=None, help="YAML file that names it.")(
        command
    )


@journal.command("check")
@_options
def check_journal(config: Path | None, data_dir: Path | None) -> None:
    """Read through the journal and report its damage; a gateway may be running.

    Exit code: 0 it is whole, 1 it is damaged or can't be read, 2 the configuration is wrong.
    """
    directory = _directory(config, data_dir)
    try:
        problems = salvage.examine(directory, fault_of_job)
    except StoreError as error:
        exit_with(str(error))
    for problem in problems:
        click.echo(problem)
    if problems:
        exit_with(f"{directory}: the journal is damaged; stop the gateway and run 'comfyui-gateway journal recover'")
    click.echo(f"{directory}: the journal is whole")


@journal.command("recover")
@_options
def recover_journal(config: Path | None, data_dir: Path | None) -> None:
    """Save each entry that can be read into a new file; the damaged one is kept beside it. The gateway must be stopped.

    Exit code: 0 there is a new file, 1 nothing can be read or written, 2 the configuration is wrong.
    """
    directory = _directory(config, data_dir)
    try:
        saved, aside = salvage.recover(directory, fault_of_job)
    except StoreError as error:
        exit_with(str(error))
    for table in saved:
        click.echo(str(table))
        for sentence in table.faults:
            click.echo(f"  {sentence}")
    click.echo(f"{directory}: start the gateway again; the old file is kept as {aside.name}")


def _directory(config: Path | None, data_dir: Path | None) -> Path:
    try:
        return load(config, flags={"data_dir": str(data_dir)} if data_dir is not None else None).data_dir
    except SettingsError as error:
        exit_with("\n".join(error.problems), EXIT_USAGE)
