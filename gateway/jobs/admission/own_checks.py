"""Inputs that core nodes check themselves, so that ComfyUI does not compare them with their lists and ranges. Pure.

See execution.py, validate_inputs. Inputs that name files are not here, because they are handled as files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# None stands for all of a node's inputs.
_OWN_CHECKS: Mapping[str, frozenset[str] | None] = {
    "Load3D": None,
    "Load3DAdvanced": None,
    "CustomCombo": None,
    "ComfySoftSwitchNode": frozenset({"switch", "on_false", "on_true"}),
    "SelectModelDevice": frozenset({"device"}),
    "SelectCLIPDevice": frozenset({"device"}),
    "SelectVAEDevice": frozenset({"device"}),
    "ModelAttentionBackend": frozenset({"attention"}),
}


def inputs_with_own_checks(class_type: str, description: Any) -> frozenset[str]:
    """Return the names of the inputs that a node class checks itself."""
    own = _OWN_CHECKS.get(class_type, frozenset())
    if own is not None:
        return own
    return frozenset(name for part in (description or {}).get("input", {}).values() for name in part)
