"""Roles: one table of the routes that each role may call. Users may read any other path, only admins may write it.

A row's path is a route's template, without the /api that may come before each (server.py, add_routes). A path that
begins with /api/ exists with /api alone. ``/**`` at its end stands for the path itself and for all paths below it. Of
the rows that match, the row with the longest path counts.
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
    """Callers that a route permits.

    ANYBODY: no key is needed. MONITORING: keys for metrics and admins; no key is needed if `auth.metrics` is open.
    USERS: users and admins. TEAM: admins, and users who are not isolated (`auth.isolation`). ADMINS: admins alone.
    """

    ANYBODY = "anybody"
    MONITORING = "monitoring"
    USERS = "users"
    TEAM = "team"
    ADMINS = "admins"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: methods (separated by blanks; ``*``: all), a path, and its access. GET includes HEAD."""

    methods: str
    path: str
    access: Access

    def fits(self, method: str) -> bool:
        """Return True if the row applies to this method."""
        return self.methods == "*" or ("GET" if method == "HEAD" else method) in self.methods.split()


# The folders of ComfyUI-Manager's routes, which are also below /v2.
MANAGER = ("manager", "customnode", "snapshot", "externalmodel", "comfyui_manager")
_DOWNLOADS = ("download-model-get", "cancel-download-get", "pause-download", "resume-download")

TABLE: tuple[Row, ...] = (
    # The gateway's own.
    Row("GET", "/healthz", Access.ANYBODY),
    Row("GET", "/readyz", Access.ANYBODY),
    Row("GET", "/metrics", Access.MONITORING),
    Row("GET", "/gateway/openapi.json", Access.USERS),
    # The link's signature lets its readers in.
    Row("GET", "/gateway/stored/{tenant}/{job}/{name}", Access.ANYBODY),
    Row("GET POST", "/gateway/signin", Access.ANYBODY),
    Row("POST", "/gateway/signout", Access.ANYBODY),
    Row("GET POST", "/gateway/keys", Access.ADMINS),
    Row("DELETE", "/gateway/keys/{name}", Access.ADMINS),
    Row("POST", "/gateway/keys/{name}/rotate", Access.ADMINS),
    Row("GET", "/gateway/backends", Access.ADMINS),
    Row("GET", "/gateway/packs", Access.ADMINS),
    Row("GET", "/gateway/differences", Access.ADMINS),
    Row("GET", "/gateway/routing", Access.ADMINS),
    Row("DELETE", "/gateway/routing/times", Access.ADMINS),
    Row("DELETE", "/gateway/routing/out_of_memory", Access.ADMINS),
    Row("GET", "/gateway/poisonous", Access.ADMINS),
    Row("DELETE", "/gateway/poisonous/{id}", Access.ADMINS),
    Row("POST", "/gateway/backends/{name}/{action}", Access.ADMINS),
    Row("POST", "/gateway/api/v1/backends/{name}/sweep", Access.ADMINS),
    Row("GET", "/gateway/api/v1/me/jobs", Access.USERS),
    Row("GET DELETE", "/gateway/api/v1/me/jobs/{prompt_id}", Access.USERS),
    Row("GET DELETE", "/gateway/api/v1/me/uploads", Access.USERS),
    Row("GET POST", "/gateway/api/v1/me/webhooks", Access.USERS),
    Row("GET", "/gateway/api/v1/me/webhooks/deliveries", Access.USERS),
    Row("POST", "/gateway/api/v1/me/webhooks/events/{event_id}/replay", Access.USERS),
    Row("GET PATCH DELETE", "/gateway/api/v1/me/webhooks/{id}", Access.USERS),
    Row("POST", "/gateway/api/v1/me/webhooks/{id}/rotate", Access.USERS),
    Row("POST", "/gateway/api/v1/me/webhooks/{id}/test", Access.USERS),
    Row("GET", "/gateway/api/v1/me/webhooks/{id}/deliveries", Access.USERS),
    Row("POST", "/gateway/api/v1/me/webhooks/{id}/replay", Access.USERS),
    Row("POST", "/gateway/run", Access.USERS),
    Row("GET", "/gateway/run/{prompt_id}", Access.USERS),
    Row("GET", "/gateway/workflows", Access.USERS),
    Row("GET PUT DELETE", "/gateway/workflows/{name}", Access.USERS),
    Row("POST", "/gateway/workflows/{name}/run", Access.USERS),
    Row("POST", "/gateway/workflows/{name}/jobs", Access.USERS),
    Row("*", "/gateway/**", Access.ADMINS),
    # ComfyUI's, answered with the caller's own jobs and files.
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
    # The Comfy API v2, with the caller's own jobs and assets.
    Row("GET POST", "/api/v2/jobs", Access.USERS),
    Row("GET", "/api/v2/jobs/{job_id}", Access.USERS),
    Row("GET", "/api/v2/jobs/{job_id}/workflow", Access.USERS),
    Row("GET", "/api/v2/jobs/{job_id}/events", Access.USERS),
    Row("POST", "/api/v2/jobs/{job_id}/cancel", Access.USERS),
    Row("POST", "/api/v2/assets", Access.USERS),
    Row("POST", "/api/v2/assets/from-hash", Access.USERS),
    Row("GET", "/api/v2/assets/by-hash/{hash}", Access.USERS),
    Row("GET DELETE", "/api/v2/assets/{asset_id}", Access.USERS),
    Row("GET", "/api/v2/assets/{asset_id}/content", Access.USERS),
    Row("GET", "/api/v2/health", Access.USERS),
    Row("GET", "/api/v2/openapi.json", Access.USERS),
    # All that the Comfy API v2 does not have is refused, whatever the method.
    Row("*", "/api/v2{rest}", Access.USERS),
    # Settings and files that the web UI saves.
    Row("GET", "/users", Access.USERS),
    Row("GET POST", "/settings", Access.USERS),
    Row("GET POST", "/settings/{id}", Access.USERS),
    Row("GET", "/userdata", Access.USERS),
    Row("GET", "/v2/userdata", Access.USERS),
    Row("GET POST DELETE", "/userdata/{file}", Access.USERS),
    Row("POST", "/userdata/{file}/move/{dest}", Access.USERS),
    # Node classes, models and facts of all backends.
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
    # Routes that act on all tenants, or show the files of all.
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
    Row("*", "/getpath/**", Access.TEAM),
    # Custom nodes that show what everybody's prompts left in a process, by the ids of nodes.
    *(Row("*", f"/impact/{name}/**", Access.TEAM) for name in ("segs", "get", "view")),
    Row("*", "/inspire/cache/list/**", Access.TEAM),
    # Routes of custom nodes that act when they are read: they restart the process, empty its cache, delete files.
    Row("*", "/easyuse/reboot/**", Access.ADMINS),
    Row("*", "/inspire/cache/**", Access.ADMINS),
    *(
        Row("GET", f"/rgthree/api/{kind}/info/{act}/**", Access.ADMINS)
        for kind in ("loras", "checkpoints")
        for act in ("clear", "refresh")
    ),
    # They download models to the backend's disk (ComfyUI-Lora-Manager), or show the operator's keys (Easy-Use).
    *(Row("*", f"/lm/{act}/**", Access.ADMINS) for act in _DOWNLOADS),
    Row("*", "/easyuse/stability/**", Access.ADMINS),
    # The web UI's own files. For other GETs there is `routes.unknown_reads`.
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
# A browser asks for a page's manifest without its cookies (W3C, Web Application Manifest). It holds nothing private.
_MANIFEST = re.compile(r"^/(assets/)?manifest[\w.-]*\.(json|webmanifest)$")
_MAX_DECODED = 4


def is_manifest(path: str) -> bool:
    """Return True if a path is the web UI's manifest, which needs no key."""
    return _MANIFEST.match(path) is not None


def without_api(path: str) -> str:
    """Return a path without /api, because each route exists with and without it (server.py, add_routes)."""
    return path.removeprefix("/api") if path.startswith("/api/") else path


def is_manager(path: str) -> bool:
    """Return True if a path is ComfyUI-Manager's, which acts on GET as well (restart, install, restore)."""
    parts = plain(path).parts
    return any(part in MANAGER for part in parts[: 2 if parts[:1] == ("v2",) else 1])


def may(identity: Identity, access: Access) -> bool:
    """Return True if a caller may use a route that needs this access."""
    if identity.role is Role.METRICS:
        return access in (Access.ANYBODY, Access.MONITORING)
    if access is Access.MONITORING:
        return identity.is_admin
    if access is Access.TEAM:
        return identity.is_admin or not identity.isolated
    return identity.is_admin or access is not Access.ADMINS


@dataclass(frozen=True, slots=True)
class Path:
    """A path in one spelling: its parts without /api, and if it was `under_api`."""

    parts: tuple[str, ...]
    under_api: bool


def unquoted(path: str) -> str:
    """Return a path without its percent-encoding, also if it was encoded several times."""
    for _ in range(_MAX_DECODED):
        if "%" not in path:
            break
        path = unquote(path)
    return path


def plain(path: str) -> Path:
    """Return the path that any server or proxy may read in a request's path, in one spelling.

    Case, empty parts, ``.``, ``\\`` for a slash, and further percent-encoding don't count. Any number of /api before
    the path counts as one.
    """
    parts = [part for part in unquoted(path).replace("\\", "/").casefold().split("/") if part not in ("", ".")]
    start = next((place for place, part in enumerate(parts) if part != "api"), len(parts))
    return Path(tuple(parts[start:]), start > 0)


def is_plain(path: str) -> bool:
    """Return True if a path is in the one spelling that a ComfyUI knows."""
    found = plain(path)
    return path.removeprefix("/api" if found.under_api else "") == "/" + "/".join(found.parts)


class Roles:
    """The table of roles, with an operator's rows.

    Args:
        more: the operator's rows, each for all paths below one.
    """

    def __init__(self, more: Iterable[Row] = ()) -> None:
        self._more = tuple(more)
        # Of two rows with the same path the operator's comes first, then the row for just this path.
        rest = [row for row in self._more if row.path == _BELOW]
        exact = [row for row in TABLE if not row.path.endswith(_BELOW)]
        below = [row for row in TABLE if row.path.endswith(_BELOW)]
        prefixes = [row for row in self._more if row.path != _BELOW]
        rows = tuple(sorted((*prefixes, *exact, *rest, *below), key=lambda row: -len(_split(row.path)[0])))
        # By the first part of the rows' paths. No requested path is kept, because callers without a key choose those.
        self._for_all = tuple(row for row in rows if not _split(row.path)[0])
        firsts = {_split(row.path)[0][0] for row in rows if _split(row.path)[0]}
        self._by_first = {
            first: tuple(row for row in rows if _split(row.path)[0][:1] in ((), (first,))) for first in firsts
        }

    def of_route(self, method: str, template: str) -> Access:
        """Return the access of one of the gateway's own routes. An operator's row can close it to users, never open it.

        Args:
            template: the route's template as the router has it. A part in braces is compared by its name alone.

        Raises:
            LookupError: the table has no row of its own for the route.
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
        """Return the access of a path that the gateway passes on. Without a key no path is passed on."""
        found = plain(path)
        where = (found.parts, found.under_api)
        rows = self._by_first.get(found.parts[0], self._for_all) if found.parts else self._for_all
        fitting = (row for row in rows if row.fits(method) and (_is_below(row, *where) or _is_of(row, *where)))
        return next(row.access for row in fitting if row.access not in (Access.ANYBODY, Access.MONITORING))


@lru_cache(maxsize=1024)
def _split(path: str) -> tuple[tuple[str, ...], bool]:
    """Return the parts of a row's path or of a template without /api, and True if /api was there.

    ``{name:pattern}`` is returned as ``{name}``.
    """
    shown = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path.removesuffix(_BELOW))
    parts = [part for part in shown.split("/") if part]
    start = next((place for place, part in enumerate(parts) if part != "api"), len(parts))
    return tuple(parts[start:]), start > 0


def _is_of(row: Row, parts: tuple[str, ...], under_api: bool) -> bool:
    """Return True if a row is for just this path."""
    own, only_api = _split(row.path)
    return own == parts and not row.path.endswith(_BELOW) and (under_api or not only_api)


def _is_below(row: Row, parts: tuple[str, ...], under_api: bool) -> bool:
    """Return True if a row ends in ``/**``, and this path is its own or below it."""
    own, only_api = _split(row.path)
    return row.path.endswith(_BELOW) and parts[: len(own)] == own and (under_api or not only_api)


class AnsweredHere:
    """The paths that the gateway answers itself and does not pass on.

    Args:
        templates: the templates of its routes.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        self._known: dict[int, set[tuple[tuple[str, ...], bool]]] = {}
        for template in templates:
            parts, only_api = _split(template)
            self._known.setdefault(len(parts), set()).add((parts, only_api))

    def __contains__(self, path: str) -> bool:
        """Return True if some server or proxy on the way to a backend might take a path for one of these."""
        found = plain(path)
        return any(
            (found.under_api or not only_api) and all(map(_part_fits, parts, found.parts))
            for parts, only_api in self._known.get(len(found.parts), ())
        )


def _part_fits(part: str, value: str) -> bool:
    return part.startswith("{") or part == value


def operators_rows(settings: RouteSettings) -> Iterator[Row]:
    """Yield the rows that the configuration adds."""
    for specifications, access in ((settings.admins, Access.ADMINS), (settings.users, Access.USERS)):
        for specification in specifications:
            method, _, path = specification.rpartition(" ")
            yield Row(method or "*", path.rstrip("/").casefold() + _BELOW, access)
    if settings.unknown_reads == "admins":
        yield Row("GET", _BELOW, Access.ADMINS)
