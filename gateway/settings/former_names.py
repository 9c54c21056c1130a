"""Former names of settings: accepted for one release, with a warning. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By the former path, the present name beside it.
FORMER = {
    ("auth", "lockout", "most"): "max_time",
    ("dispatch", "backoff_most"): "max_backoff",
    ("dispatch", "take_over"): "work_stealing",
    ("ejection", "most"): "max_time",
}


def present_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the present path of a setting, which is the same unless it was renamed."""
    name = FORMER.get(path)
    return path if name is None else (*path[:-1], name)


def with_present_names(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Replace former names in nested settings.

    Returns:
        The settings; a warning for each former name; a problem for each that is given beside its present name.
    """
    renamed, warnings, problems = dict(settings), [], []
    for path, name in FORMER.items():
        *sections, former = path
        holder = renamed
        for section in sections:
            inner = holder.get(section)
            if not isinstance(inner, Mapping):
                break
            holder[section] = holder = dict(inner)
        else:
            if former not in holder:
                continue
            written, present = ".".join(path), ".".join((*sections, name))
            if name in holder:
                problems.append(f"{written}: this is the former name of {present}, which is given as well; remove it")
            else:
                holder[name] = holder.pop(former)
                warnings.append(f"{written}: this setting is called {present} now; the next release refuses {written}")
    return renamed, warnings, problems
