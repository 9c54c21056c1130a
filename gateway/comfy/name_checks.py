"""Names that savers are given: prefixes and folders below output/, and parts of file names; names of models. Pure.

ComfyUI joins them to its output folder. `get_save_image_path` (folder_paths.py) refuses what leads out of it. The
savers of datasets don't (comfy_extras/nodes_dataset.py).
"""

from __future__ import annotations

import re
from typing import Any

# Folders below output/ that ComfyUI adds to its folders of models (main.py): what lies there is listed for all.
MODEL_FOLDERS = frozenset({"checkpoints", "clip", "vae", "diffusion_models", "loras"})
_MAX_PREFIX = 4_096
_MAX_FOLDERS = 100
_SEPARATORS = re.compile(r"[/\\]+")
# Windows takes any character before a colon for a drive (ntpath.splitdrive).
_DRIVE = re.compile(r"^.:", re.DOTALL)
# A prefix or model that nothing is wrong with: most are a name in one folder, without a dot at its end.
BARE_NAME = re.compile(r"[A-Za-z0-9_.-]{0,200}[A-Za-z0-9_-]")


def wrong_with_prefix(value: Any) -> str | None:
    """Return the reason why a prefix or folder name is refused, None if it stays in output/ and outside of models."""
    # ComfyUI makes a text of a number (execution.py, validate_inputs); of anything else it makes no sensible name.
    if value is None or isinstance(value, (int, float)):
        return None
    if not isinstance(value, str):
        return "it must be a text"
    if BARE_NAME.fullmatch(value):
        return None
    if len(value) > _MAX_PREFIX:
        return f"it may have {_MAX_PREFIX} characters at most"
    if value.count("/") + value.count("\\") > _MAX_FOLDERS:
        return f"it may name {_MAX_FOLDERS} folders at most"
    if "\0" in value:
        return "it must not hold a NUL"
    if value.startswith(("/", "\\")):
        return "it must be a path inside the output folder"
    parts = [part for part in _SEPARATORS.split(value) if part not in ("", ".")]
    depth = 0
    for part in parts:
        # A file system of Windows takes trailing dots and blanks away.
        depth += -1 if part.rstrip(" .") == "" and part.startswith("..") else 1
        # Windows begins anew at a drive, wherever it stands (os.path.join).
        if depth < 0 or _DRIVE.match(part):
            return "it must be a path inside the output folder"
    first = _first_folder(parts)
    if first in MODEL_FOLDERS:
        return f"'{first}' is a folder of models, which all tenants share"
    return None


def _first_folder(parts: list[str]) -> str:
    """Return the first folder that a path ends up in, in lower case; empty for a bare name."""
    stack: list[str] = []
    for part in parts:
        if part.startswith("..") and part.rstrip(" .") == "":
            stack = stack[:-1]
        else:
            stack.append(part.rstrip(" .").casefold())
    return stack[0] if len(stack) > 1 else ""


def wrong_with_file_part(value: Any) -> str | None:
    """Return the reason why a part of a file's name is refused, None if it holds no separator."""
    if value is None or isinstance(value, (int, float)):
        return None
    if not isinstance(value, str):
        return "it must be a text or a number"
    if len(value) > _MAX_PREFIX or any(char in value for char in "/\\\0:") or ".." in value:
        return "it becomes part of a file's name, so it must hold no '/', '\\', ':' and no '..'"
    return None


def wrong_with_model_name(value: Any) -> str | None:
    """Return the reason why a model's name is refused, None if it stays below the folder of models.

    Most loaders can't leave it; DiffusersLoader joins any name (nodes.py).
    """
    if not isinstance(value, str) or BARE_NAME.fullmatch(value):
        return None
    if len(value) > _MAX_PREFIX:
        return f"it may have {_MAX_PREFIX} characters at most"
    is_inside = (
        not value.startswith(("/", "\\")) and _DRIVE.match(value) is None and ".." not in _SEPARATORS.split(value)
    )
    return None if is_inside else "it must be a name below the folder of models"
