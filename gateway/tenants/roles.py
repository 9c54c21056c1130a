"""Roles: one table of what each may call. Whatever is not in it is read by users and written by admins alone.

A row's path is a route's template, without the /api that may come before each (server.py, add_routes); one that begins
with /api/ is there with /api alone. ``/**`` at its end stands for all that is below, and for itself. Of the rows that
fit, the one with the longest path counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from urllib.parse import unquote

from gateway.settings import RouteSettings
from gateway.tenants.keys import Identity, Role


class Access(StrEnum):
    """Who may.

    ANYBODY needs no key. MONITORING: keys for metrics and admins; no key at all where `auth.metrics` is open. USERS:
    users and admins. TEAM: admins, and users who are not kept from seeing what others made (`auth.isolation`). ADMINS:
    these alone.
    """

    ANYBODY = "anybody"
    MONITORING = "monitoring"
    USERS = "users"
    TEAM = "team"
    ADMINS = "admins"


@dataclass(frozen=True, slots=True)
class Row:
    """Who may use a route with some methods (separated by blanks; ``*``: all). GET stands for HEAD, too."""

    methods: str
    path: str
    access: Access

    def fits(self, method: str) -> bool:
        """Whether it is about this method."""
        return self.methods == "*" or ("GET" if method == "HEAD" else method) in self.methods.split()


# The folders of ComfyUI-Manager's routes, which are also below /v2.
MANAGER = ("manager", "customnode", "snapshot", "externalmodel", "comfyui_manager")

TABLE: tuple[Row, ...] = (
    # The gateway's own.
    Row("GET", "/healthz", Access.ANYBODY),
    Row("GET", "/readyz", Access.ANYBODY),
    Row("GET", "/metrics", Access.MONITORING),
    Row("GET", "/gateway/openapi.json", Access.USERS),
    Row("GET POST", "/gateway/signin", Access.ANYBODY),
    Row("POST", "/gateway/signout", Access.ANYBODY),
    Row("GET POST", "/gateway/keys", Access.ADMINS),
    Row("DELETE", "/gateway/keys/{name}", Access.ADMINS),
    Row("POST", "/gateway/keys/{name}/rotate", Access.ADMINS),
    Row("GET", "/gateway/backends", Access.ADMINS),
    Row("GET", "/gateway/packs", Access.ADMINS),
    Row("POST", "/gateway/backends/{name}/{action}", Access.ADMINS),
    Row("*", "/gateway/**", Access.ADMINS),
    # ComfyUI's, answered with what is the caller's own.
    Row("GET POST", "/prompt", Access.USERS),
    Row("GET POST", "/queue", Access.USERS),
    Row("POST", "/interrupt", Access.USERS),
    Row("GET POST", "/history", Access.USERS),
    Row("GET", "/history/{prompt_id}", Access.USERS),
    Row("GET", "/api/jobs", Access.USERS),
    Row("GET", "/api/jobs/{job_id}", Access.USERS),
    Row("POST", "/api/jobs/cancel", Access.USERS),
    Row("POST", "/api/jobs/{job_id}/cancel", Access.USERS),
    Row("GET", "/ws", Access.USERS),
    Row("GET", "/view", Access.USERS),
    Row("POST", "/upload/image", Access.USERS),
    Row("POST", "/upload/mask", Access.USERS),
    # What the web UI saves.
    Row("GET", "/users", Access.USERS),
    Row("GET POST", "/settings", Access.USERS),
    Row("GET POST", "/settings/{id}", Access.USERS),
    Row("GET", "/userdata", Access.USERS),
    Row("GET", "/v2/userdata", Access.USERS),
    Row("GET POST DELETE", "/userdata/{file}", Access.USERS),
    Row("POST", "/userdata/{file}/move/{dest}", Access.USERS),
    # What all backends have.
    Row("GET", "/object_info", Access.USERS),
    Row("GET", "/object_info/{node_class}", Access.USERS),
    Row("GET", "/models", Access.USERS),
    Row("GET", "/models/{folder}", Access.USERS),
    Row("GET", "/embeddings", Access.USERS),
    Row("GET", "/experiment/models", Access.USERS),
    Row("GET", "/experiment/models/{folder}", Access.USERS),
    Row("GET", "/experiment/models/preview/{path}", Access.USERS),
    Row("GET", "/view_metadata/{folder}", Access.USERS),
    Row("GET", "/system_stats", Access.USERS),
    Row("GET", "/features", Access.USERS),
    # Touches everybody, or shows what is everybody's.
    Row("*", "/free/**", Access.ADMINS),
    Row("POST", "/free", Access.ADMINS),
    Row("*", "/internal/**", Access.ADMINS),
    Row("GET", "/internal/files/{kind}", Access.ADMINS),
    Row("*", "/users/**", Access.ADMINS),
    # The asset library lists what everybody made (app/assets/api/routes.py). /assets alone is the web UI's own.
    Row("GET", "/api/assets/**", Access.TEAM),
    Row("*", "/api/assets/**", Access.ADMINS),
    Row("GET", "/api/tags/**", Access.TEAM),
    # ComfyUI-Manager: installs and runs code.
    *(Row("*", f"{version}/{name}/**", Access.ADMINS) for version in ("", "/v2") for name in MANAGER),
    # Custom nodes that list or show the folders of a backend as they are.
    Row("*", "/browser/**", Access.TEAM),
    Row("*", "/workspace/**", Access.TEAM),
    Row("*", "/vhs/getpath/**", Access.TEAM),
    # The web UI's own files, and what it reads of them. For other GETs there is `routes.unknown_reads`.
    Row("GET", "/", Access.USERS),
    *(
        Row("GET", path, Access.USERS)
        for path in (
            "/index.html /materialdesignicons.min.css /favicon.ico /user.css /assets/** /cursor/** /docs/** "
            "/extensions/** /fonts/** /global_subgraphs/** /i18n /lib/** /node_replacements /scripts/** /templates/** "
            "/workflow_templates/**"
        ).split()
    ),
    # All else.
    Row("GET", "/**", Access.USERS),
    Row("*", "/**", Access.ADMINS),
)
_BELOW = "/**"
# A browser asks for a page's manifest without its cookies (W3C, Web Application Manifest); nothing in it is anybody's.
_MANIFEST = re.compile(r"^/(assets/)?manifest[\w.-]*\.(json|webmanifest)$")
_MAX_DECODED = 4


def is_manifest(path: str) -> bool:
    """Whether it is the web UI's manifest, which needs no key."""
    return _MANIFEST.match(path) is not None


def without_api(path: str) -> str:
    """A route's own path: every one is there with and without /api (server.py, add_routes)."""
    return path.removeprefix("/api") if path.startswith("/api/") else path


def is_manager(path: str) -> bool:
    """Whether a path is one of ComfyUI-Manager's, which does things on GET as well (restart, install, restore)."""
    parts = plain(path).parts
    return any(part in MANAGER for part in parts[: 2 if parts[:1] == ("v2",) else 1])


def may(identity: Identity, access: Access) -> bool:
    """Whether a caller may use what is for `access`."""
    if identity.role is Role.METRICS:
        return access in (Access.ANYBODY, Access.MONITORING)
    if access is Access.MONITORING:
        return identity.is_admin
    if access is Access.TEAM:
        return identity.is_admin or not identity.isolated
    return identity.is_admin or access is not Access.ADMINS


@dataclass(frozen=True, slots=True)
class Path:
    """What a path comes to: its parts, and whether /api came before them."""

    parts: tuple[str, ...]
    under_api: bool


def unquoted(path: str) -> str:
    """A path without any percent-encoding, however often it was encoded."""
    for _ in range(_MAX_DECODED):
        if "%" not in path:
            break
        path = unquote(path)
    return path


def plain(path: str) -> Path:
    """The path that a request's path leads to, whatever server or proxy reads it, and however it is spelled.

    Case, empty parts, ``.``, ``\\`` and further percent-encoding don't count, nor does how often /api comes before it.
    """
    parts = [part for part in unquoted(path).replace("\\", "/").casefold().split("/") if part not in ("", ".")]
    start = next((place for place, part in enumerate(parts) if part != "api"), len(parts))
    return Path(tuple(parts[start:]), start > 0)


def is_plain(path: str) -> bool:
    """Whether a path is spelled in the one way that a ComfyUI knows."""
    found = plain(path)
    return path.removeprefix("/api" if found.under_api else "") == "/" + "/".join(found.parts)


class Roles:
    """The table, asked.

    Args:
        more: an operator's rows, each for all that is below a path.
    """

    def __init__(self, more: Iterable[Row] = ()) -> None:
        self._more = tuple(more)
        # Of two rows with the same path the operator's goes first, then the one that is about just this path.
        rest = [row for row in self._more if row.path == _BELOW]
        exact = [row for row in TABLE if not row.path.endswith(_BELOW)]
        below = [row for row in TABLE if row.path.endswith(_BELOW)]
        prefixes = [row for row in self._more if row.path != _BELOW]
        rows = tuple(sorted((*prefixes, *exact, *rest, *below), key=lambda row: -len(_split(row.path)[0])))
        # By the first part of their paths, because callers without a key choose the paths: nothing of them is kept.
        self._for_all = tuple(row for row in rows if not _split(row.path)[0])
        firsts = {_split(row.path)[0][0] for row in rows if _split(row.path)[0]}
        self._by_first = {
            first: tuple(row for row in rows if _split(row.path)[0][:1] in ((), (first,))) for first in firsts
        }

    def of_route(self, method: str, template: str) -> Access:
        """Who may use a route of the gateway's. An operator's row can keep users from one, but open none.

        Args:
            template: as the router has it; what is between braces is compared by name alone.

        Raises:
            LookupError: the table has no row of its own for it.
        """
        wanted = _split(template)
        own = next((row for row in TABLE if row.fits(method) and _is_of(row, *wanted)), None)
        if own is None:
            raise LookupError(f"{method} {template} has no row in gateway/tenants/roles.py")
        kept = any(
            row.access is Access.ADMINS and row.fits(method) and row.path != _BELOW and _is_below(row, *wanted)
            for row in self._more
        )
        return Access.ADMINS if kept and own.access in (Access.USERS, Access.TEAM) else own.access

    def of_path(self, method: str, path: str) -> Access:
        """Who may use a path that the gateway passes on. Nothing is passed on for want of a key."""
        found = plain(path)
        where = (found.parts, found.under_api)
        rows = self._by_first.get(found.parts[0], self._for_all) if found.parts else self._for_all
        fitting = (row for row in rows if row.fits(method) and (_is_below(row, *where) or _is_of(row, *where)))
        return next(row.access for row in fitting if row.access not in (Access.ANYBODY, Access.MONITORING))


@lru_cache(maxsize=1024)
def _split(path: str) -> tuple[tuple[str, ...], bool]:
    """A row's, or a template's, parts without /api, and whether it was there. ``{name:pattern}`` is ``{name}``."""
    shown = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path.removesuffix(_BELOW))
    parts = [part for part in shown.split("/") if part]
    start = next((place for place, part in enumerate(parts) if part != "api"), len(parts))
    return tuple(parts[start:]), start > 0


def _is_of(row: Row, parts: tuple[str, ...], under_api: bool) -> bool:
    """Whether a row is about just this path."""
    own, only_api = _split(row.path)
    return own == parts and not row.path.endswith(_BELOW) and (under_api or not only_api)


def _is_below(row: Row, parts: tuple[str, ...], under_api: bool) -> bool:
    """Whether a row is about all below a path, and this is there."""
    own, only_api = _split(row.path)
    return row.path.endswith(_BELOW) and parts[: len(own)] == own and (under_api or not only_api)


class AnsweredHere:
    """The paths that the gateway answers itself, to be told from those that it passes on.

    Args:
        templates: of its routes.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        self._known: dict[int, set[tuple[tuple[str, ...], bool]]] = {}
        for template in templates:
            parts, only_api = _split(template)
            self._known.setdefault(len(parts), set()).add((parts, only_api))

    def __contains__(self, path: str) -> bool:
        """Whether some server or proxy on the way to a backend might take a path for one of these."""
        found = plain(path)
        return any(
            (found.under_api or not only_api) and all(map(_part_fits, parts, found.parts))
            for parts, only_api in self._known.get(len(found.parts), ())
        )


def _part_fits(part: str, value: str) -> bool:
    return part.startswith("{") or part == value


def operators_rows(settings: RouteSettings) -> Iterator[Row]:
    """The rows that the configuration adds."""
    for specifications, access in ((settings.admins, Access.ADMINS), (settings.users, Access.USERS)):
        for specification in specifications:
            method, _, path = specification.rpartition(" ")
            yield Row(method or "*", path.rstrip("/").casefold() + _BELOW, access)
    if settings.unknown_reads == "admins":
        yield Row("GET", _BELOW, Access.ADMINS)
