"""Look whether a gateway of this version could open a journal, without changing it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from gateway.store import trouble
from gateway.store.protocol import StoreDamaged, StoreError
from gateway.store.sqlite import FILE_NAME
from gateway.store.statements import refuse_newer


def look(directory: Path) -> None:
    """Look at the head of the journal in a data directory, if there is one.

    Raises:
        StoreError: a gateway could not open it.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            refuse_newer(connection)
    except sqlite3.Error as error:
        kind = StoreDamaged if trouble.is_damage(error) else StoreError
        raise kind(trouble.sentence(f"{path} can't be opened", error)) from error
