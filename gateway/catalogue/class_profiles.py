"""Profiles of the fleet's node classes, per backend where backends differ. Pure.

Two backends may have a class of the same name and not of the same making, so a prompt is judged for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.catalogue.worker import no_rest
from gateway.comfy.class_profiles import ClassProfile, profile_of
from gateway.comfy.node_review import Review

Lookup = Callable[[str], ClassProfile | None]


@dataclass(frozen=True, slots=True)
class Profiles:
    """Profiles of all classes.

    Attributes:
        common: classes that are the same wherever they are.
        varied: for each other class, its profile on each backend that has it.
        made: by the identity of a description, that description and its profile.
    """

    common: Mapping[str, ClassProfile] = field(default_factory=dict)
    varied: Mapping[str, Mapping[str, ClassProfile]] = field(default_factory=dict)
    made: Mapping[int, tuple[object, ClassProfile]] = field(default_factory=dict, repr=False, compare=False)

    def of(self, name: str) -> Sequence[ClassProfile]:
        """Return the profiles of a class on the backends that have it: one if all are the same."""
        common = self.common.get(name)
        return (common,) if common is not None else tuple(self.varied.get(name, {}).values())

    def groups(self, classes: Iterable[str], backends: frozenset[str]) -> list[tuple[frozenset[str], Lookup]]:
        """Return the backends in groups on which these classes are the same, each with its profiles.

        A backend that lacks a class is grouped with backends that lack it, too.
        """
        differing = sorted({name for name in classes if name in self.varied}) if self.varied else []
        if not differing:
            return [(backends, self.common.get)]
        groups: dict[tuple[int, ...], list[str]] = {}
        for backend in backends:
            key = tuple(id(self.varied[name].get(backend)) for name in differing)
            groups.setdefault(key, []).append(backend)
        return [(frozenset(names), self._lookup(names[0])) for names in groups.values()]

    def _lookup(self, backend: str) -> Lookup:
        def find(name: str) -> ClassProfile | None:
            varied = self.varied.get(name)
            return self.common.get(name) if varied is None else varied.get(backend)

        return find


def make_profiles(
    infos: Mapping[str, Mapping[str, object]],
    review: Review,
    known: Profiles | None = None,
    rest: Callable[[], None] = no_rest,
) -> Profiles:
    """Return the profiles of the classes that backends describe, by the backends' names.

    A description that `known` was made of has the same profile again. `rest` is called between classes.
    """
    made: dict[int, tuple[object, ClassProfile]] = {}
    by_class: dict[str, dict[str, ClassProfile]] = {}
    for backend, info in infos.items():
        for name, description in info.items():
            if isinstance(description, Mapping):
                own = by_class.setdefault(name, {})
                rest()
                key = id(description)
                again = made.get(key) or (known.made.get(key) if known is not None else None)
                made[key] = again or (description, profile_of(name, description, review))
                profile = made[key][1]
                # Equal profiles are one object, so that a group is found by identity.
                own[backend] = next((each for each in own.values() if each is profile or each == profile), profile)
    common: dict[str, ClassProfile] = {}
    varied: dict[str, Mapping[str, ClassProfile]] = {}
    for name, own in by_class.items():
        first = next(iter(own.values()))
        if all(each is first for each in own.values()):
            common[name] = first
        else:
            varied[name] = own
    return Profiles(common, varied, made)
