"""A store in a folder, and what the journal says of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

from gateway.artifacts.probe import FOLDER
from gateway.store.artifact_records import ArtifactRecord
from tests.support.folders import contents_below
from tests.support.lab import GatewayProcess, Lab, until

_NAMES = ", ".join(field.name for field in fields(ArtifactRecord))


def bucket_of(lab: Lab) -> Path:
    """Return the folder that is the store."""
    folder = lab.directory / "bucket"
    folder.mkdir(exist_ok=True)
    return folder


def break_bucket(lab: Lab) -> None:
    """Let the store fail, and keep its objects."""
    bucket_of(lab).rename(lab.directory / "broken bucket")
    (lab.directory / "bucket").write_text("no folder")


def mend_bucket(lab: Lab) -> None:
    """Let the store work again, with its objects."""
    (lab.directory / "bucket").unlink()
    (lab.directory / "broken bucket").rename(lab.directory / "bucket")


def storage(lab: Lab, **settings: str | float) -> dict[str, Any]:
    """Return the settings of storage in a folder, for environment variables."""
    return {"storage__url": bucket_of(lab).as_uri(), **{f"storage__{name}": value for name, value in settings.items()}}


def objects(lab: Lab) -> dict[str, bytes]:
    """Return the objects in the folder, by key, but for those of a trial at the gateway's start."""
    folder = bucket_of(lab)
    found = {path: data for path, data in contents_below(folder).items() if "#" not in path.name}
    return {str(path.relative_to(folder)): data for path, data in found.items() if path.parent != folder / FOLDER}


def spooled(lab: Lab) -> list[Path]:
    """Return the files that wait on the gateway's disk."""
    folder = lab.directory / "data" / "artifacts"
    return list(folder.iterdir()) if folder.exists() else []


def rows(gateway: GatewayProcess) -> list[ArtifactRecord]:
    """Return the journal's rows, the oldest first."""
    journal = sqlite3.connect(f"file:{gateway.data_dir / 'gateway.sqlite3'}?mode=ro", uri=True)
    with closing(journal):
        return [ArtifactRecord(*row) for row in journal.execute(f"SELECT {_NAMES} FROM artifacts ORDER BY created_at")]


async def until_rows(
    gateway: GatewayProcess, is_so: Callable[[list[ArtifactRecord]], bool], limit: float = 20.0
) -> list[ArtifactRecord]:
    """Wait until the rows are so, and return them."""
    seen: list[ArtifactRecord] = []

    async def look() -> bool:
        seen[:] = rows(gateway)
        return is_so(seen)

    try:
        await until(look, limit)
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen}\n{gateway.log.read_text()}") from error
    return seen


async def until_stored(gateway: GatewayProcess, count: int, limit: float = 20.0) -> list[ArtifactRecord]:
    """Wait until so many files are stored, and nothing else is to be done."""
    return await until_rows(gateway, lambda seen: [each.state for each in seen] == ["stored"] * count, limit)
