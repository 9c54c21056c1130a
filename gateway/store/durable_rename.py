"""Renames that outlive a power failure: a file's new name is on the disk only once its folder is."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def replace(source: Path, target: Path) -> None:
    """Move a file or folder to a name, over what has that name, and have the disk keep both folders as they are then.

    The target's folder is made if it is not there.

    Raises:
        OSError: it can't be moved.
    """
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
    for folder in dict.fromkeys((target.parent, *(folder.parent for folder in made), source.parent)):
        sync(folder)


def sync(path: Path) -> None:
    """Have the disk keep a file's bytes, or a folder's names.

    Raises:
        OSError: the disk does not take them.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems keep folders by themselves, and know no fsync of them (fsync(2), EINVAL).
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
