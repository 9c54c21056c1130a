"""Differences of the fleet: for each backend, the classes, choices and versions that others have. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.catalogue.capabilities import Capabilities
from gateway.catalogue.worker import no_rest

# Names of each kind that are listed for a backend; the others are counted.
MAX_NAMED = 50
# A backend chooses the names of its classes and files.
MAX_NAME = 200


@dataclass(slots=True)
class Differences:
    """Differences of one backend.

    Attributes:
        classes: node classes that another backend has.
        choices: choices of lists (models, above all) that another backend has, each with one of its inputs.
        other_versions: ComfyUI versions of others.
    """

    version: str
    other_versions: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    choices: dict[str, str] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Return True if there is a difference."""
        return bool(self.classes or self.choices or self.other_versions)

    def describe(self) -> dict[str, Any]:
        """Return the description for the admin API: some names of each kind, and how many there are."""
        return {
            "version": self.version,
            "other_versions": self.other_versions,
            "missing_classes": [name[:MAX_NAME] for name in sorted(self.classes)[:MAX_NAMED]],
            "missing_classes_count": len(self.classes),
            "missing_choices": [
                {"choice": choice[:MAX_NAME], "input": self.choices[choice][:MAX_NAME]}
                for choice in sorted(self.choices)[:MAX_NAMED]
            ],
            "missing_choices_count": len(self.choices),
        }


def differences(
    known: Capabilities, versions: Mapping[str, str], rest: Callable[[], None] = no_rest
) -> dict[str, Differences]:
    """Return the differences of each backend whose classes are known, in the order of `versions`.

    Args:
        versions: for each backend, its ComfyUI version; ``?`` if it is unknown.
        rest: called between pieces of work.
    """
    found = {
        name: Differences(version, sorted({each for each in versions.values() if each not in (version, "?")}))
        for name, version in versions.items()
        if name in known.backends
    }
    for name, have in known.classes.items():
        for backend in found.keys() - have:
            found[backend].classes.add(name)
    for (class_type, input_name), by_choice in sorted(known.choices.items()):
        # A backend without the class may have the model all the same.
        describing = found.keys() & known.classes.get(class_type, known.backends)
        for choice, have in by_choice.items():
            rest()
            for backend in describing - have:
                found[backend].choices.setdefault(choice, f"{class_type}.{input_name}")
    return found
