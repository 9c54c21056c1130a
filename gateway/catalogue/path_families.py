"""Families of paths that custom nodes answer, by the configuration and by the packs that the fleet has."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from gateway.catalogue.catalogue import Catalogue
from gateway.comfy.pack_routes import Keeps, known_prefixes
from gateway.tenants.roles import plain, unquoted


@dataclass(frozen=True, slots=True)
class Family:
    """Paths below one prefix, and the kind of state behind them."""

    prefix: tuple[str, ...]
    keeps: Keeps

    @property
    def name(self) -> str:
        """Return the prefix as a path."""
        return "/" + "/".join(self.prefix)


class PathFamilies:
    """Table of path families. The longest prefix counts; of two alike the operator's.

    Args:
        sticky: the prefixes of the configuration.
    """

    def __init__(self, catalogue: Catalogue, sticky: Iterable[str]) -> None:
        self._catalogue = catalogue
        self._sticky = tuple(sticky)
        self._seen: object = self
        self._table: dict[tuple[str, ...], Keeps] = {}

    def of(self, path: str) -> Family | None:
        """Return the family of a path; None if it is of none."""
        return family_of(path, self._current())

    def keep_state(self) -> bool:
        """Return True if some family keeps state."""
        return Keeps.STATE in self._current().values()

    def _current(self) -> dict[tuple[str, ...], Keeps]:
        if self._catalogue.mark is not self._seen:
            merged_catalogue = self._catalogue.merged_catalogue
            self._seen = self._catalogue.mark
            self._table = table_of(merged_catalogue.classes if merged_catalogue is not None else None, self._sticky)
        return self._table


def table_of(classes: Container[str] | None, sticky: Iterable[str]) -> dict[tuple[str, ...], Keeps]:
    """Return the kind of state behind each known prefix.

    Args:
        classes: the names of the fleet's node classes; None while they are not known.
        sticky: the prefixes of the configuration.
    """
    known = {plain(prefix).parts: keeps for prefix, keeps in known_prefixes(classes)}
    return {**known, **{plain(prefix).parts: Keeps.STATE for prefix in sticky}}


def family_of(path: str, table: Mapping[tuple[str, ...], Keeps]) -> Family | None:
    """Return the family with the longest prefix of a path; None if there is none."""
    parts = plain(path).parts
    for length in range(len(parts), 0, -1):
        keeps = table.get(parts[:length])
        if keeps is not None:
            return Family(parts[:length], keeps)
    return None


def parts_below(path: str, family: Family | None) -> list[str]:
    """Return the parts of a path as they are spelled: those below its family's prefix, or behind its first part."""
    parts = [part for part in unquoted(path).split("/") if part not in ("", ".")]
    while parts and parts[0].casefold() == "api":
        parts = parts[1:]
    return parts[len(family.prefix) if family is not None else 1 :]
